"""Items of a data file come with the line they start on."""

from pathlib import Path

from moe_llava.data.records import Record, read_records


def test_lines_of_array_items(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n[ {"a":\n 1}, 2\n,\n\n"x\\n]" ]\n')
    assert read_records(path) == ([Record(2, {"a": 1}), Record(3, 2), Record(6, "x\n]")], [])


def test_lines_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "\u2028"}\r\n\r\n{"a": 2}'.encode())
    assert read_records(path) == ([Record(1, {"a": "\u2028"}), Record(3, {"a": 2})], [])
