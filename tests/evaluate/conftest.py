"""Recorded vectors of the official scorers where they are at hand, and a tiny stand-in for every benchmark's files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

Rows = list[dict[str, Any]]
Tiny = Callable[[str], tuple[Path, Rows]]


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of recorded predictions and official figures; they cannot ship with the project."""
    folder = (REPOSITORY / os.environ.get("MOE_LLAVA_FIXTURES", "../shared") / "vectors").resolve()
    if not folder.is_dir():
        pytest.skip(f"no recorded vectors at {folder}; set MOE_LLAVA_FIXTURES to the folder that holds vectors/")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines (or, for a name ending in .json, one JSON value) and return the path."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = json.dumps(content) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(lines, encoding="utf-8")
        return path

    return write_file


@pytest.fixture
def stand_in(tmp_path: Path, write: Callable[..., Path]) -> Tiny:
    """Write a benchmark's files with a few invented questions; return their folder and flawless prediction rows."""

    def build(name: str) -> tuple[Path, Rows]:
        files, rows = BUILDERS[name]()
        for file, content in files.items():
            if isinstance(content, str):
                (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / file).write_text(content, encoding="utf-8")
            else:
                write(f"{name}/{file}", content)
        return tmp_path / name, rows

    return build


Built = tuple[dict[str, Any], Rows]
TRUTHS = ("red", "blue", "cat")


def _people(answer: str) -> Rows:
    return [{"answer": answer, "answer_id": n} for n in range(10)]


def _vqav2() -> Built:
    kinds = {"answer_type": "other", "question_type": "what"}
    annotations = [{"question_id": n, "answers": _people(truth), **kinds} for n, truth in enumerate(TRUTHS)]
    questions = [{"question_id": n, "text": "?"} for n in range(5)]
    files = {
        "v2_mscoco_val2014_annotations.json": {"annotations": annotations},
        "llava_vqav2_mscoco_test-dev2015.jsonl": questions[:3],
        "llava_vqav2_mscoco_test2015.jsonl": questions,
    }
    return files, [{"question_id": n, "text": truth} for n, truth in enumerate(TRUTHS)]


def _gqa() -> Built:
    def question(n: int, truth: str, structural: str) -> dict[str, Any]:
        steps = [{"operation": "select", "argument": "x"}, {"operation": "exist", "argument": "?"}]
        return {
            "question": f"question {n} ?",
            "answer": truth,
            "isBalanced": n < 2,
            "types": {"structural": structural, "semantic": "attr"},
            "groups": {"global": "color"},
            "semantic": steps,
        }

    questions = {
        "q0": question(0, "red", "query"),
        "q1": question(1, "yes", "verify"),
        "q2": question(2, "no", "verify"),
    }
    return {"testdev_balanced_questions.json": questions}, [
        {"question_id": "q0", "text": "Red."},
        {"question_id": "q1", "text": "Yes"},
    ]


def _vizwiz() -> Built:
    images = [f"{truth}.jpg" for truth in TRUTHS]
    people = [
        {"image": image, "answers": _people(truth), "answer_type": "other"}
        for image, truth in zip(images, TRUTHS, strict=True)
    ]
    files = {"val.json": people, "llava_test.jsonl": [{"question_id": image, "image": image} for image in images]}
    return files, [{"question_id": image, "text": truth} for image, truth in zip(images, TRUTHS, strict=True)]


def _scienceqa() -> Built:
    problems = {str(n): {"choices": ["x", "y"], "answer": n % 2} for n in range(3)}
    rows = [{"question_id": str(n), "prompt": "<image>" if n else "", "text": "AB"[n % 2]} for n in range(3)]
    return {"problems.json": problems, "pid_splits.json": {"test": ["0", "1", "2"]}}, rows


def _textvqa() -> Built:
    asked = [("i1", "What is it?"), ("i1", "What now?"), ("i2", "What is it?")]
    people = [
        {"image_id": image, "question": text.lower(), "answers": [truth] * 10}
        for (image, text), truth in zip(asked, TRUTHS, strict=True)
    ]
    rows = [
        {"question_id": image, "prompt": f"{text}\nAnswer the question using a single word or phrase.", "text": truth}
        for (image, text), truth in zip(asked, TRUTHS, strict=True)
    ]
    return {"TextVQA_0.5.1_val.json": {"data": people}}, rows


def _pope() -> Built:
    files: dict[str, Any] = {"llava_pope_test.jsonl": []}
    rows: Rows = []
    for name in ("adversarial", "popular", "random"):
        asked = [{"image": f"{n}.jpg", "text": f"Is there a {name} dog?", "label": ("yes", "no")[n]} for n in (0, 1)]
        files[f"coco/coco_pope_{name}.json"] = "".join(json.dumps(row) + "\n" for row in asked)
        for row in asked:
            key = len(rows) + 1
            text = f"{row['text']}\nAnswer the question using a single word or phrase."
            files["llava_pope_test.jsonl"].append(
                {"question_id": key, "image": row["image"], "text": text, "category": name}
            )
            rows.append({"question_id": key, "text": row["label"].capitalize()})
    return files, rows


PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MME_TASKS = PERCEPTION + COGNITION


def _mme() -> Built:
    template = "".join(f"1.jpg\tIs it {word}? Please answer yes or no.\t{word.title()}\n" for word in ("yes", "no"))
    files = {f"eval_tool/Your_Results/{task}.txt": template for task in MME_TASKS}
    rows = [
        {
            "question_id": f"{task}/1.jpg",
            "prompt": f"Is it {word}?\nAnswer the question using a single word or phrase.",
            "text": word,
        }
        for task in MME_TASKS
        for word in ("yes", "no")
    ]
    return files, rows


def _mmbench(file: str) -> Built:
    header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit\n"
    cells = {"1": "x\ty\t\t\tA", "1000001": "y\tx\t\t\tB", "2": "x\ty\tz\t\tC", "1000002": "z\tx\ty\t\tA"}
    lines = (f"{index}\twhich?\t\t{options}\tc\tQUJD\ts\tl\t\tdev\n" for index, options in cells.items())
    letters = zip(cells, "ABCA", strict=True)
    return {file: header + "".join(lines)}, [{"question_id": int(index), "text": letter} for index, letter in letters]


def _mmvet() -> Built:
    questions = {"v1_0": {"capability": ["ocr", "math"]}, "v1_1": {"capability": ["rec"]}}
    return {"mm-vet.json": questions}, [{"question_id": n, "text": f"é{n}"} for n in range(2)]


def _seed() -> Built:
    kinds = (("1", "image", 1), ("2", "image", 2), ("v3", "video", 2))
    questions = [
        {"question_id": key, "data_type": media, "question_type_id": kind, "answer": "A"} for key, media, kind in kinds
    ]
    types = {"Scene Understanding": 1, "Action Recognition": 2}
    rows = [{"question_id": int(key) if key.isdecimal() else key, "text": "A"} for key, _, _ in kinds]
    return {"SEED-Bench.json": {"questions": questions, "question_type": types}}, rows


def _llava_bench() -> Built:
    rows = [{"question_id": n, "category": f"c{n % 2}", "tuple": [8.0, 8.0]} for n in range(3)]
    return {"questions.jsonl": [{"question_id": n} for n in range(3)]}, rows


def _easy_vqa() -> Built:
    questions = [{"id": n, "image": "x.png", "question": "?", "answer": truth} for n, truth in enumerate(TRUTHS)]
    return {"test.jsonl": questions}, [{"id": n, "text": f" {truth.upper()}\n"} for n, truth in enumerate(TRUTHS)]


BUILDERS: dict[str, Callable[[], Built]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "scienceqa": _scienceqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench": lambda: _mmbench("mmbench_dev_20230712.tsv"),
    "mmbench_cn": lambda: _mmbench("mmbench_dev_cn_20231003.tsv"),
    "mmvet": _mmvet,
    "seed": _seed,
    "llava_bench": _llava_bench,
    "easy_vqa": _easy_vqa,
    "emoji_pope": _pope,
}
