"""Every benchmark's files become the prompts of the official scripts, and a flawless answer file scores full marks."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from moe_llava.evaluate.benchmarks import BENCHMARKS
from moe_llava.evaluate.scores import SCORERS

SHORT = "\nAnswer the question using a single word or phrase."


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def llava(folder: Path, questions: str, images: str, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / questions).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        if "image" in row:
            picture(folder / images / row["image"])


@pytest.mark.parametrize(
    "name, folder, questions, images",
    [
        ("vqav2", "vqav2", "llava_vqav2_mscoco_test-dev2015.jsonl", "test2015"),
        ("gqa", "gqa", "llava_gqa_testdev_balanced.jsonl", "data/images"),
        ("vizwiz", "vizwiz", "llava_test.jsonl", "test"),
        ("textvqa", "textvqa", "llava_textvqa_val_v051_ocr.jsonl", "train_images"),
        ("pope", "pope", "llava_pope_test.jsonl", "val2014"),
        ("mme", "MME", "llava_mme.jsonl", "MME_Benchmark_release_version"),
        ("mmvet", "mm-vet", "llava-mm-vet.jsonl", "images"),
        ("seed", "seed_bench", "llava-seed-bench.jsonl", "."),
        ("llava_bench", "llava-bench-in-the-wild", "questions.jsonl", "images"),
    ],
)
def test_question_files_of_llava_are_asked_as_they_stand(
    tmp_path: Path, name: str, folder: str, questions: str, images: str
) -> None:
    row = {"question_id": "a/b", "image": "x/1.jpg", "text": "What?" + SHORT, "category": "c"}
    llava(tmp_path / folder, questions, images, row)
    benchmark = BENCHMARKS[name]
    found = benchmark.folder(tmp_path)
    (item,) = benchmark.read(found).items
    assert found == tmp_path / folder
    assert (item.id, item.prompt, item.image) == ("a/b", "What?" + SHORT, tmp_path / folder / images / "x/1.jpg")
    assert item.request().messages[0]["content"] == "<image>\nWhat?" + SHORT
    assert benchmark.read(benchmark.folder(found)).items == [item]  # the folder itself serves as well


def test_public_splits_are_read_from_the_official_files(tmp_path: Path) -> None:
    vqa, gqa, vizwiz = (tmp_path / name for name in ("vqav2", "gqa", "vizwiz"))
    picture(vqa / "val2014" / "COCO_val2014_000000000042.jpg")
    question = {"image_id": 42, "question": "What?", "question_id": 420}
    (vqa / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": [question]}))
    asked = BENCHMARKS["vqav2"].read(vqa)
    assert (asked.split, asked.scored, asked.items[0].prompt) == ("val2014", True, "What?" + SHORT)

    picture(gqa / "images" / "n1.jpg")
    rows = {"7": {"question": "Who?", "imageId": "n1", "isBalanced": True}, "8": {"isBalanced": False}}
    (gqa / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    assert [(item.id, item.prompt) for item in BENCHMARKS["gqa"].read(gqa).items] == [("7", "Who?" + SHORT)]

    picture(vizwiz / "val" / "v.jpg")
    (vizwiz / "val.json").write_text(json.dumps([{"image": "v.jpg", "question": "Why?"}]))
    (item,) = BENCHMARKS["vizwiz"].read(vizwiz).items
    assert item.id == "v.jpg" and "respond with 'Unanswerable'." in item.prompt and item.prompt.endswith(SHORT)


def test_scienceqa_marks_the_questions_with_an_image(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "test" / "5" / "image.png")
    rows = [
        {"id": "4", "conversations": [{"value": "Context: N/A\nWhich?\nA. x\nB. y"}]},
        {"id": "5", "image": "5/image.png", "conversations": [{"value": "<image>\nWhich?\nA. x\nB. y"}]},
    ]
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps(rows))
    plain, shown = BENCHMARKS["scienceqa"].read(tmp_path).items
    letter = "\nAnswer with the option's letter from the given choices directly."
    assert plain.prompt == "Context: N/A\nWhich?\nA. x\nB. y" + letter and plain.image is None
    assert shown.prompt == "<image>\nWhich?\nA. x\nB. y" + letter
    assert shown.request().messages[0]["content"] == shown.prompt


@pytest.mark.parametrize(
    "name, file, instruction",
    [
        ("mmbench", "mmbench_dev_20230712.tsv", "Answer with the option's letter from the given choices directly."),
        ("mmbench_cn", "mmbench_dev_cn_20231003.tsv", "请直接回答选项字母。"),
    ],
)
def test_mmbench_asks_every_rotation_about_one_picture(tmp_path: Path, name: str, file: str, instruction: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
    cell = base64.b64encode(buffer.getvalue()).decode()
    header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\n"
    rows = f"1\tWhich?\tLook.\tx\ty\t\t\tA\t{cell}\n1000001\tWhich?\tNone\ty\tx\tnan\tz\tB\t1\n"
    (tmp_path / file).write_text(header + rows)
    asked = BENCHMARKS[name].read(tmp_path)
    first, rotated = asked.items
    assert asked.scored and [first.id, rotated.id] == [1, 1000001]
    assert first.prompt == "Look.\nWhich?\nA. x\nB. y" and rotated.prompt == "Which?\nA. y\nB. x"
    assert first.asked == f"{first.prompt}\n{instruction}"
    assert first.image == rotated.image == buffer.getvalue()


def test_recorded_questions_give_the_recorded_prompts(vectors: Path, tmp_path: Path) -> None:
    """POPE's question file, with the prompts that LLaVA-1.5's own answer file recorded."""
    questions = [json.loads(line) for line in (vectors / "pope/data/llava_pope_test.jsonl").read_text().splitlines()]
    llava(tmp_path, "llava_pope_test.jsonl", "val2014", *questions[:50])
    items = BENCHMARKS["pope"].read(tmp_path).items
    assert [item.prompt for item in items] == [row["text"] for row in questions[:50]]


def test_every_benchmark_has_a_scorer_and_reads_its_figure(stand_in: Callable, write: Callable) -> None:
    assert set(BENCHMARKS) == set(SCORERS)
    for name, benchmark in BENCHMARKS.items():
        if benchmark.judged:
            continue
        data, rows = stand_in(name)
        report = SCORERS[name](write(f"{name}.jsonl", rows), data)
        assert benchmark.figure(report.figures) == pytest.approx(2000 if name == "mme" else 100)
        assert report.marks and all(mark == pytest.approx(1) for mark in report.marks.values())
