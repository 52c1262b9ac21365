"""A stage that streams: stopped and resumed it goes on at the sample; skipped rows are counted."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_llava.checkpoint.folder import save_model
from moe_llava.data import DataError
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from moe_llava.train.plan import plan
from tests.tiny import Tiny
from tests.train.layouts import run


@pytest.fixture
def fields(tiny: Tiny, tmp_path: Path) -> dict[str, str]:
    rows = json.loads((tiny.folder / "train.json").read_text())
    rows[5]["image"] = "gone.png"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "images").symlink_to(tiny.folder / "images")
    start = tmp_path / "start"
    start.mkdir()
    save_model(start, *build_stage(load_recipe(tiny.recipe), "align"))
    return {
        "stages.sparsify.starts_from": str(start),
        "stages.sparsify.data": f'[{{ path = "{tmp_path}/rows.jsonl", stream = true, weight = 1.5 }}]',
        "stages.sparsify.evaluate": f'{{ path = "{tiny.folder}/questions.jsonl", every = 3, max_new_tokens = 2 }}',
        "stages.sparsify.on_error": "skip",
        "stages.sparsify.log_every": "2",
    }


def test_a_stopped_stream_goes_on_at_the_sample(tiny: Tiny, tmp_path: Path, fields: dict[str, str]) -> None:
    run(str(tiny.recipe), f"{tmp_path}/run", fields)
    run(str(tiny.recipe), f"{tmp_path}/run-stopped", fields, resume=True)
    expected = load_file(tmp_path / "run" / "sparsify" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "run-stopped" / "sparsify" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    summary = json.loads((tmp_path / "run" / "sparsify" / "stage.json").read_text())
    assert summary["samples"] == 48
    assert summary["skipped_rows"] in (1, 2)  # row 5, and perhaps once more in the half that is read again
    lines = [json.loads(line) for line in (tmp_path / "run" / "sparsify" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped_rows"] == summary["skipped_rows"]
    planned = plan(load_recipe(tiny.recipe, {**fields, "output": f"{tmp_path}/run"}), ["sparsify"])[0]
    assert planned.samples == 48


def test_a_broken_row_stops_a_strict_run(tiny: Tiny, tmp_path: Path, fields: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:6: image: .*gone\.png does not exist"):
        run(str(tiny.recipe), f"{tmp_path}/strict", {**fields, "stages.sparsify.on_error": "raise"})
