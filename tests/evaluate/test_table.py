"""The published layout: rows, order, average."""

from moe_llava.evaluate.table import COLUMNS, PUBLISHED, Line, markdown, rows


def test_published_averages_leave_mme_out() -> None:
    averages = [cells[2] for cells in rows([])[1:]]
    assert averages == ["57.3", "56.7", "61.1", "60.0", "62.9", "62.0"]  # as printed in the model zoo


def test_our_row_stands_under_theirs_and_gaps_are_dashes() -> None:
    ours = Line("mine", "1.1M", {"pope": 66.66, "mme": 1234.56})
    lines = markdown([ours]).splitlines()
    assert lines[-1] == "| mine | 1.1M | - | - | - | - | - | - | 66.7 | 1234.6 | - | - |"
    assert len(lines) == 2 + len(PUBLISHED) + 1
    whole = Line("mine", "1.1M", dict.fromkeys(COLUMNS, 50.0) | {"mme": 1000.0})
    assert whole.average == 50.0
