"""Questions of one's own: reading, asking, counting."""

import json
from pathlib import Path

import pytest

from moe_llava.evaluate.questions import Question, accuracy, is_right, read_questions
from moe_llava.evaluate.report import report_table


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_exact_match_forgives_case_blanks_and_a_full_stop() -> None:
    assert is_right(" Yes. ", ["yes"])
    assert is_right("cat face", ["cat", "cat face"])
    assert not is_right("yes it is", ["yes"])


def test_accuracy_is_split_by_kind() -> None:
    questions = [Question(str(n), "?", ("yes",), kind=kind) for n, kind in enumerate(("a", "a", "b"))]
    assert accuracy(questions, ["yes", "no", "yes"]) == {
        "accuracy": pytest.approx(2 / 3),
        "n": 3,
        "kinds": {"a": {"accuracy": 0.5, "n": 2}, "b": {"accuracy": 1.0, "n": 1}},
    }


@pytest.mark.parametrize(
    "rows, message",
    [
        (["{"], r"q.jsonl:1: JSONDecodeError"),
        ([{"id": 1, "question": "?"}], "q.jsonl:1: KeyError 'answer'"),
        ([{"id": 1, "question": "?", "answer": "a"}] * 2, "q.jsonl:2: id '1' occurs twice"),
        ([{"id": 1, "question": "?", "answer": "a", "image": "no.png"}], "no.png does not exist"),
        ([""], "holds no question"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_questions(write(tmp_path / "q.jsonl", *rows))


def test_a_report_has_a_row_a_set_and_kind() -> None:
    entry = {"dense": 0.5, "sparse": 0.75, "n": 4}
    report = {"shapes": entry, "emoji": {"unseen": {**entry, "kinds": {"name": {**entry, "chance": 0.01}}}}}
    table = report_table(report, ["dense", "sparse"])
    assert list(table.columns[0].cells) == ["shapes", "emoji unseen", "  name"]
    assert list(table.columns[3].cells) == ["", "", "1.0"]
