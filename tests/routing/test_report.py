"""The page holds all it needs and says what the trace says; the command that makes it."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moe_llava.assistant import Assistant
from moe_llava.checkpoint.folder import save_model
from moe_llava.cli import main
from moe_llava.generate.engine import Decoding
from moe_llava.recipe import load_recipe
from moe_llava.routing.report import write_report
from moe_llava.train.build import build_stage
from tests.routing.made import write_routes
from tests.tiny import IMAGE_TOKENS, Tiny


class Page(HTMLParser):
    """What a browser would fetch, and the tags that were never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.fetched += [values[name] or "" for name in ("src", "srcset", "data") if name in values]
        self.fetched += [values["href"] or ""] if tag == "link" else []
        if tag not in ("meta", "link", "img", "input", "br", "path", "use", "image"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def script_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_needs_nothing_and_tells_the_trace(
    vlm: Assistant, prompts: list[tuple[str, Any]], tmp_path: Path
) -> None:
    with vlm.trace() as trace:
        vlm.batch([*prompts, ("</script><b>", None)], decoding=Decoding(max_new_tokens=4))
    trace.report(tmp_path / "report.html", tmp_path / "figures")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(address.startswith("data:") for address in page.fetched)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", text)
    data = script_data(text)
    table = trace.table().to_pylist()
    assert len(data["examples"]) == 4
    for example in data["examples"]:
        rows = [row for row in table if row["id"] == example["id"]]
        experts = np.frombuffer(base64.b64decode(example["experts"]), dtype=np.uint8).reshape(len(rows), 2, 2)
        assert experts.tolist() == [row["experts"] for row in rows]
        assert example["tokens"] == [row["token"] if row["modality"] == "text" else None for row in rows]
        images = {row["image"] for row in rows} - {None}
        assert len(example["pictures"]) == len(images)
    names = {"load", "modality", "decisiveness", "paths", "transitions"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{n}.{k}" for n in names for k in ("png", "svg")
    }
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 5
        assert "<svg" in (tmp_path / "figures" / f"{name}.svg").read_text()


def test_a_trace_without_images_and_one_of_nothing(vlm: Assistant, tmp_path: Path) -> None:
    with vlm.trace() as trace:
        vlm.chat("Hello", decoding=Decoding(max_new_tokens=3))
    trace.report(tmp_path / "text.html")
    text = (tmp_path / "text.html").read_text()
    assert 'id="load"' in text
    assert 'id="modality"' not in text
    with vlm.trace() as empty:
        pass
    with pytest.raises(ValueError, match="Nothing was traced"):
        empty.report(tmp_path / "empty.html")
    assert not (tmp_path / "empty.html").exists()


def test_a_report_of_many_experts_stays_small(vlm: Assistant, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    experts = random.permuted(np.tile(np.arange(128), (600, 6, 1)), axis=-1)[:, :, :4]
    picture = Image.new("RGB", (64, 64), "teal")
    with write_routes(
        tmp_path / "routes.parquet", experts, np.arange(600) < 500, num_experts=128, grid=(20, 25)
    ) as file:
        summary = write_report(file, tmp_path / "report.html", vlm.engine.processor, {"s0": (picture,)})
    assert any("No two image patches took the same path" in sentence for sentence in summary["findings"])
    assert (tmp_path / "report.html").stat().st_size < 1.5e6
    assert Page((tmp_path / "report.html").read_text()).open == []


def test_the_command_traces_and_reports(
    model_folder: Path, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["route", str(model_folder), "--data", str(tiny.folder / "questions.jsonl"), "--out", str(out)]
    assert main([*arguments, "--json", "--max-new-tokens", "3"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["samples"] == 4
    assert summary["modalities"]["image"]["tokens"] == 4 * IMAGE_TOKENS
    present = {path.name for path in out.iterdir()}
    assert present == {"routes.parquet", "samples.jsonl", "statistics.json", "report.html", "figures"}
    assert json.loads((out / "statistics.json").read_text()) == summary
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [sample["id"] for sample in samples] == ["red", "green", "blue", "white"]
    assert main(arguments) == 1
    assert "exists" in capfd.readouterr().err


def test_the_commands_mistakes_are_one_sentence(
    model_folder: Path, tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dense = tmp_path / "dense"
    dense.mkdir()
    save_model(dense, *build_stage(load_recipe(tiny.recipe), "align"))
    questions, empty = tiny.folder / "questions.jsonl", tmp_path / "empty.jsonl"
    empty.write_text("")
    for model, data, message in (
        (dense, questions, "dense"),
        (tmp_path / "nowhere", questions, "not a checkpoint"),
        (model_folder, tmp_path / "nowhere.json", "cannot be read"),
        (model_folder, empty, "empty.jsonl"),
        (model_folder, tiny.recipe, "recipe.toml"),
    ):
        assert main(["route", str(model), "--data", str(data), "--out", str(tmp_path / "out")]) == 1
        assert message in capfd.readouterr().err
        assert not (tmp_path / "out" / "routes.parquet").exists()
