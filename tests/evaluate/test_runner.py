"""Answering and scoring: one's own questions and benchmarks through one runner that goes on where it was stopped."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from moe_llava.checkpoint.folder import save_model
from moe_llava.evaluate.command import Outcome, Settings, evaluate, show
from moe_llava.evaluate.items import Item, answer_file
from moe_llava.evaluate.runner import Model
from moe_llava.generate.engine import Decoding, Engine
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import COLOURS, Tiny


@pytest.fixture(scope="module")
def checkpoint(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, processor = build_stage(load_recipe(tiny.recipe), "align")
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.25)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, model, processor)
    return folder


@pytest.fixture
def pope(tiny: Tiny, tmp_path: Path) -> Path:
    """POPE's files about four pictures, six questions each, in an order that mixes the pictures."""
    folder = tmp_path / "data" / "pope"
    shutil.copytree(tiny.folder / "images", folder / "val2014")
    questions: list[dict[str, Any]] = []
    for name in ("adversarial", "popular", "random"):
        rows = [
            {"image": f"{colour}.png", "text": f"Is there a {name} {thing}?", "label": label}
            for thing, label in (("dog", "yes"), ("cat", "no"))
            for colour in COLOURS
        ]
        write_lines(folder / "coco" / f"coco_pope_{name}.json", rows)
        for row in rows:
            questions.append(
                {"question_id": len(questions) + 1, "image": row["image"], "text": row["text"], "category": name}
            )
    write_lines(folder / "llava_pope_test.jsonl", questions)
    return tmp_path / "data"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_own_questions_are_answered_scored_and_not_asked_again(
    tiny: Tiny, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(limit: int = 3) -> Outcome:
        settings = Settings(limit=limit, max_new_tokens=4)
        return evaluate(checkpoint, tmp_path / "out", settings, questions=tiny.folder / "questions.jsonl")[0]

    first = once()
    rows = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [row["question_id"] for row in rows] == ["red", "green", "blue"]
    assert len({row["text"] for row in rows}) > 1
    assert first.scores["n"] == 3 and first.scores["figures"] == {"accuracy": 0.0}
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == first.scores
    with pytest.raises(ValueError, match="questions differ.*choose another --out"):
        once(limit=2)
    monkeypatch.setattr(Engine, "load", lambda *_, **__: pytest.fail("nothing is left to ask"))
    assert once().scores == first.scores


def test_a_benchmark_gives_predictions_scores_marks_and_the_published_table(
    checkpoint: Path, pope: Path, tmp_path: Path
) -> None:
    settings = Settings(max_new_tokens=4)
    outcome = evaluate(checkpoint, tmp_path / "out", settings, benchmarks="pope", data=pope)[0]
    rows = read_lines(tmp_path / "out" / "pope" / "predictions.jsonl")
    assert [row["question_id"] for row in rows] == list(range(1, 25))
    assert rows[0]["prompt"] == "Is there a adversarial dog?"
    facts = ("split", "scorer", "preprocessing", "template", "commit", "seconds", "n", "model", "max_new_tokens")
    assert all(fact in outcome.scores for fact in facts)
    assert (outcome.scores["n"], outcome.scores["template"]) == (24, "vicuna")
    assert outcome.scores["figure"] == outcome.scores["figures"]["f1"] == pytest.approx(100 * 2 / 3)  # always yes
    marks = json.loads((tmp_path / "out" / "pope" / "marks.json").read_text())
    assert sum(marks.values()) == 12
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[0].startswith("| Model | Activated | Avg | VQAv2 | GQA")
    assert table[-1].count("66.7") == 1 and "| - |" in table[-1]

    from rich.console import Console

    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    show([outcome], checkpoint, console)
    assert "adversarial" in console.export_text()
    console.file.close()


def test_a_limit_gives_answers_and_no_score(checkpoint: Path, pope: Path, tmp_path: Path) -> None:
    settings = Settings(max_new_tokens=2, limit=5)
    outcome = evaluate(checkpoint, tmp_path / "out", settings, benchmarks="pope", data=pope)[0]
    assert outcome.scores["figure"] is None and "5 of 24" in outcome.scores["note"]
    assert len(read_lines(tmp_path / "out" / "pope" / "predictions.jsonl")) == 5


def test_what_a_server_scores_is_written_and_said_so(checkpoint: Path, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "vizwiz"
    shutil.copytree(tiny.folder / "images", folder / "test")
    rows = [{"question_id": n, "image": f"{colour}.png", "text": "What?"} for n, colour in enumerate(COLOURS)]
    write_lines(folder / "llava_test.jsonl", rows)
    (folder / "val.json").write_text("[]")
    settings = Settings(max_new_tokens=2)
    outcome = evaluate(checkpoint, tmp_path / "out", settings, benchmarks="vizwiz", data=tmp_path / "data")[0]
    assert outcome.scores["figure"] is None and "not public: submit upload.json" in outcome.scores["note"]
    upload = json.loads((tmp_path / "out" / "vizwiz" / outcome.scores["upload"]).read_text())
    assert [row["image"] for row in upload] == [row["image"] for row in rows]


@pytest.mark.parametrize("torn", [True, False])
def test_a_stopped_evaluation_goes_on_where_it_was(
    checkpoint: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    items = [Item(n, f"What is {n}?", tiny.folder / "images" / f"{list(COLOURS)[n % 4]}.png") for n in range(20)]
    engine = Engine.load(checkpoint)

    def ask(path: Path) -> list[str]:
        return answer_file(path, items, lambda: engine, {"a": 1}, decoding=Decoding(4), batch_size=3)[0]

    whole = ask(tmp_path / "whole" / "predictions.jsonl")
    original = Engine.answers
    asked: list[int] = []

    def interrupted(self: Engine, requests: Any, *args: Any, **kwargs: Any) -> Any:
        for count, answer in enumerate(original(self, requests, *args, **kwargs)):
            if count == 7 and not asked:
                asked.append(count)
                raise KeyboardInterrupt
            yield answer
        asked.append(len(requests))

    monkeypatch.setattr(Engine, "answers", interrupted)
    path = tmp_path / "parts" / "predictions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(path)
    assert not path.exists()
    part = path.with_name("predictions.part0.jsonl")
    if torn:
        part.write_bytes(part.read_bytes()[:-5])
    assert ask(path) == whole
    assert asked == [7, 14 if torn else 13]
    assert path.read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == ["predictions.jsonl", "predictions.run.json"]


def test_two_processes_give_the_file_of_one(checkpoint: Path, pope: Path, tmp_path: Path) -> None:
    evaluate(checkpoint, tmp_path / "one", Settings(max_new_tokens=4), benchmarks="pope", data=pope)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["moe_llava", "eval", str(checkpoint), "--benchmark", "pope", "--data", str(pope)]
    command += ["--out", str(tmp_path / "two"), "--max-new-tokens", "4"]
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (tmp_path / name / "pope" / "predictions.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert done.stdout.count("adversarial") == 1  # only the first process prints


def test_images_are_cut_to_the_centre_where_the_official_scripts_do(checkpoint: Path) -> None:
    from moe_llava.evaluate.processes import Processes

    model = Model(checkpoint, Processes())
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    pixels = model.engine("crop").processor.image_processor([wide], return_tensors="pt")["pixel_values"]
    assert pixels[0, 2].min() > pixels[0, 0].max()  # blue everywhere
    assert model.engine("crop").model is model.engine("model").model


def test_what_is_missing_is_told_before_anything_is_asked(checkpoint: Path, pope: Path, tmp_path: Path) -> None:
    def ask(names: str, **changes: Any) -> Callable:
        return evaluate(checkpoint, tmp_path / "out", Settings(**changes), benchmarks=names, data=pope)

    with pytest.raises(ValueError, match="no benchmark 'vqa3'; choose from vqav2, gqa"):
        ask("pope,vqa3")
    with pytest.raises(ValueError, match="llava_gqa_testdev_balanced.jsonl"):
        ask("pope,gqa")
    with pytest.raises(ValueError, match="both --judge-url and --judge-model"):
        ask("pope", judge_url="http://localhost")
    labels = pope / "pope" / "coco" / "coco_pope_popular.json"
    labels.rename(labels.with_suffix(".away"))
    with pytest.raises(ValueError, match=r"holds none of coco/coco_pope_popular.json"):
        ask("pope")
    labels.with_suffix(".away").rename(labels)
    (pope / "pope" / "val2014" / "red.png").unlink()
    with pytest.raises(ValueError, match=r"red.png does not exist; put the benchmark's images into"):
        ask("pope")
    assert not (tmp_path / "out").exists()
