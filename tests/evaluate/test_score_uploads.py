"""Upload files equal those of the original's converters, byte for byte where those are themselves reproducible."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from moe_llava.cli import main
from moe_llava.evaluate.scores import WRITERS, write_upload

Write = Callable[..., Path]
Tiny = Callable[[str], tuple[Path, list[dict[str, Any]]]]


def test_gqa(vectors: Path, tmp_path: Path) -> None:
    out = tmp_path / "upload.json"
    write_upload("gqa", vectors / "gqa/predictions/llava15_13b.first3000.jsonl", vectors / "gqa", out)
    expected = vectors / "gqa/expected_testdev_balanced_predictions.first3000.json"
    assert out.read_bytes() == expected.read_bytes()


def test_mme(vectors: Path, tmp_path: Path) -> None:
    write_upload("mme", vectors / "mme/predictions/llava15_13b.jsonl", vectors / "mme/data", tmp_path / "out")
    expected = {path.name: path.read_bytes() for path in (vectors / "mme/converted/llava15_13b").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected


def test_vizwiz(vectors: Path, tmp_path: Path, write: Write) -> None:
    text = (vectors / "vizwiz/llava15_13b_raw_vs_submission.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    write("llava_test.jsonl", [{"question_id": row["question_id"], "image": row["image"]} for row in rows])
    answers = write("answers.jsonl", [{"question_id": row["question_id"], "text": row["raw"]} for row in rows])
    write_upload("vizwiz", answers, tmp_path, tmp_path / "upload.json")
    expected = [{"image": row["image"], "answer": row["submitted"]} for row in rows]
    assert (tmp_path / "upload.json").read_text(encoding="utf-8") == json.dumps(expected)


def test_vqav2(vectors: Path, tmp_path: Path, write: Write) -> None:
    rows = json.loads((vectors / "vqav2/predictions/results.json").read_text(encoding="utf-8"))
    write("llava_vqav2_mscoco_test2015.jsonl", [{"question_id": row["question_id"]} for row in rows])
    answers = write("answers.jsonl", [{"question_id": row["question_id"], "text": row["answer"]} for row in rows])
    write_upload("vqav2", answers, tmp_path, tmp_path / "upload.json")
    expected = vectors / "vqav2/predictions/results_after_llava_conversion.json"
    assert (tmp_path / "upload.json").read_text(encoding="utf-8") == expected.read_text(encoding="utf-8").strip()


def test_vqav2_fills_what_test_dev_does_not_ask(stand_in: Tiny, write: Write, tmp_path: Path) -> None:
    data, rows = stand_in("vqav2")
    write_upload("vqav2", write("answers.jsonl", rows), data, tmp_path / "upload.json")
    upload = json.loads((tmp_path / "upload.json").read_text(encoding="utf-8"))
    assert [row["answer"] for row in upload] == ["red", "blue", "cat", "", ""]


def test_seed_keeps_the_ids_of_the_question_file(stand_in: Tiny, write: Write, tmp_path: Path) -> None:
    data, rows = stand_in("seed")
    write_upload("seed", write("answers.jsonl", rows[::-1]), data, tmp_path / "upload.jsonl")
    assert (tmp_path / "upload.jsonl").read_bytes() == (
        b'{"question_id": "1", "prediction": "A"}\n'
        b'{"question_id": "2", "prediction": "A"}\n'
        b'{"question_id": "v3", "prediction": "A"}\n'
    )


def test_mmvet(stand_in: Tiny, write: Write, tmp_path: Path) -> None:
    data, rows = stand_in("mmvet")
    write_upload("mmvet", write("answers.jsonl", rows), data, tmp_path / "upload.json")
    assert (tmp_path / "upload.json").read_bytes() == b'{\n  "v1_0": "\\u00e90",\n  "v1_1": "\\u00e91"\n}'


def test_mmbench_sheet(stand_in: Tiny, write: Write, tmp_path: Path) -> None:
    data, rows = stand_in("mmbench")
    rows[2]["text"] = 'A < "B" &\nC'
    out = tmp_path / "upload.xlsx"
    write_upload("mmbench", write("answers.jsonl", rows), data, out)
    with zipfile.ZipFile(out) as archive:
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    cells = [{cell.get("r"): "".join(cell.itertext()) for cell in row} for row in sheet[0]]
    names = ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert cells[0] == {f"{letter}1": name for letter, name in zip("ABCDEFGHI", names, strict=True)}
    assert cells[1] == {"A2": "1", "B2": "which?", "C2": "x", "D2": "y", "G2": "A", "H2": "A", "I2": "dev"}
    assert cells[3]["G4"] == 'A < "B" &\nC'
    again = tmp_path / "again.xlsx"
    write_upload("mmbench", tmp_path / "answers.jsonl", data, again)
    assert again.read_bytes() == out.read_bytes()


def test_mmbench_sheet_refuses_control_characters(stand_in: Tiny, write: Write, tmp_path: Path) -> None:
    data, rows = stand_in("mmbench_cn")
    rows[0]["text"] = "A\x0b"
    with pytest.raises(ValueError, match=r"G2.*control character"):
        write_upload("mmbench_cn", write("answers.jsonl", rows), data, tmp_path / "upload.xlsx")


@pytest.mark.parametrize("name", WRITERS)
def test_missing_and_doubled_answers_are_not_uploaded(stand_in: Tiny, write: Write, tmp_path: Path, name: str) -> None:
    data, rows = stand_in(name)
    out = tmp_path / "upload"
    with pytest.raises(ValueError, match="1 without a prediction"):
        write_upload(name, write("missing.jsonl", rows[1:]), data, out)
    with pytest.raises(ValueError, match="more than once"):
        write_upload(name, write("doubled.jsonl", [*rows, rows[0]]), data, out)
    assert not out.exists()


def test_from_the_shell(stand_in: Tiny, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, rows = stand_in("vizwiz")
    out = tmp_path / "upload.json"
    arguments = ["vizwiz", "--predictions", str(write("answers.jsonl", rows)), "--data", str(data)]
    assert main(["score", *arguments, "--upload", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"upload": str(out)}
    assert json.loads(out.read_text())[0] == {"image": "red.jpg", "answer": "red"}


def test_names_without_an_upload_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'pope' is not a benchmark that can be uploaded; choose from vqav2"):
        write_upload("pope", tmp_path / "p", tmp_path, tmp_path / "out")
