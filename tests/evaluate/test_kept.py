"""Lines that are kept one by one survive a kill; where they cannot be, the error says what to do."""

from pathlib import Path

import pytest

from moe_llava.evaluate.kept import keep, kept


def test_a_cut_off_line_is_passed_over_and_what_follows_stands_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert kept(path) == []
    for number in (1, 2):
        keep(path, {"n": number})
    path.write_bytes(path.read_bytes()[:-4])
    keep(path, {"n": "drei ½"})
    assert kept(path) == [{"n": 1}, {"n": "drei ½"}]


def test_what_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.jsonl cannot be written \(No such file.*is kept: mend that, run again"):
        keep(tmp_path / "away" / "a.jsonl", {})
