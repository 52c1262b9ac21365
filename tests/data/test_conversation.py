"""Data files in both formats become conversations; what is wrong is told with file, line and field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_llava.data import DataError, Message, read_conversations, scan

Picture = Callable[..., Path]


def llava(*turns: str, **fields: Any) -> dict[str, Any]:
    """An item in LLaVA's format; turns alternate between human and gpt."""
    speakers = ("human", "gpt")
    conversations = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"id": "7", "conversations": conversations, **fields}


def messages(*turns: Any, **fields: Any) -> dict[str, Any]:
    """An item in the messages format."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)], **fields}


def write(folder: Path, items: Any, name: str = "train.json") -> Path:
    path = folder / name
    path.write_text(items if isinstance(items, str) else json.dumps(items, indent=1), encoding="utf-8")
    return path


def only_problem(path: Path, **options: Any) -> tuple[str, str, str]:
    _, problems = scan(path, **options)
    assert len(problems) == 1, problems
    return problems[0].source, problems[0].field, problems[0].message


def test_llava_json(tmp_path: Path, picture: Picture) -> None:
    red = picture("red")
    items = [llava("<image>\nWhat?", "A cat.", image="red.png"), llava("Hello", "Hi.", id=8)]
    first, second = read_conversations(write(tmp_path, items))
    assert first.id == "7"
    assert first.messages == (Message("user", "<image>\nWhat?"), Message("assistant", "A cat."))
    assert first.images == (red.resolve(),)
    assert (second.id, second.images) == ("8", ())


def test_messages_jsonl(tmp_path: Path, picture: Picture) -> None:
    red, blue = picture("red"), picture("blue")
    parts = [{"type": "image", "path": "blue.png"}, {"type": "text", "text": "What?"}]
    lines = [
        messages("<image>\nWhat?", "Red.", images=["red.png"]),
        messages(parts, "Blue."),
        messages([{"type": "image"}, {"type": "image"}], [{"type": "text", "text": "Two."}], images=["red.png"] * 2),
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, lines)) + "\n", "train.jsonl")
    one, two, three = read_conversations(path)
    assert one.images == (red.resolve(),)
    assert one.id == one.source == f"{path}:1"
    assert two.messages[0].content == "<image>\nWhat?"
    assert two.images == (blue.resolve(),)
    assert three.messages[0].content == "<image>\n<image>"
    assert three.messages[1].content == "Two."


def test_content_decides_not_the_extension(tmp_path: Path) -> None:
    array = write(tmp_path, [messages("Hello", "Hi.")], "array.jsonl")
    lines = write(tmp_path, json.dumps(llava("Hello", "Hi.")) + "\n\n" + json.dumps(llava("A", "B")), "lines.json")
    assert len(read_conversations(array)) == 1
    assert [c.source.rpartition(":")[2] for c in read_conversations(lines)] == ["1", "3"]


def test_image_folder(tmp_path: Path, picture: Picture) -> None:
    picture("red")
    (tmp_path / "lists").mkdir()
    path = write(tmp_path / "lists", [llava("<image>", "A.", image="red.png")])
    assert read_conversations(path, image_folder=tmp_path)[0].images == ((tmp_path / "red.png").resolve(),)
    assert "set the image folder" in only_problem(path)[2]


def test_source_is_the_line_where_the_item_starts(tmp_path: Path) -> None:
    text = '[\n{"conversations": [\n{"from": "human", "value": "a"},\n{"from": "gpt", "value": "b"}]},\n\n 3]'
    path = write(tmp_path, text)
    conversations, problems = scan(path)
    assert conversations[0].source == f"{path}:2"
    assert (problems[0].source, problems[0].field) == (f"{path}:6", "item")


def test_system_turn_may_lead(tmp_path: Path) -> None:
    item = llava("Hello", "Hi.")
    item["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert read_conversations(write(tmp_path, [item]))[0].messages[0] == Message("system", "Be brief.")


@pytest.mark.parametrize(
    ("item", "field", "message"),
    [
        ("text", "item", "expected an object"),
        ({"id": "1"}, "messages", "`conversations` or `messages`"),
        (llava(), "conversations", "at least one question"),
        ({"conversations": ["hi"]}, "conversations[0]", "is text"),
        ({"conversations": [{"from": "human"}]}, "conversations[0]", "lacks `value`"),
        ({"conversations": [{"from": "bot", "value": ""}]}, "conversations[0].from", "human, gpt"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", "user, assistant"),
        ({"conversations": [{"from": "human", "value": 3}]}, "conversations[0].value", "is a number"),
        (messages([{"type": "audio"}], "x"), "messages[0].content[0]", '"type": "image"'),
        (llava("Hello"), "conversations", "no answer"),
        (llava("Hello", " "), "conversations[1]", "empty answer"),
        (llava("Hello", "Hi.", "And?"), "conversations[2]", "no answer"),
        ({"messages": messages("a", "b")["messages"][::-1]}, "messages[0]", "out of order"),
        ({"messages": [{"role": "system", "content": ""}] * 2}, "messages", "2 system turns"),
        (llava("<image>", "Hi."), "image", "1 <image> without a path and the item lists 0 images"),
        (llava("Hello", "Hi.", image="a.png"), "image", "0 <image> without a path and the item lists 1 images"),
        (llava("<image>", "Hi.", image=3), "image", "a path or a list"),
        (llava("<image>", "Hi.", image="gone.png"), "image", "gone.png does not exist"),
        (llava("<image>", "Hi.", image="https://x.org/a.png"), "image", "download it"),
        (llava("<video>", "Hi.", video="a.mp4"), "video", "not supported"),
        (llava("a", "b", id=[1]), "id", "expected a string"),
        (llava("a", "b", image="a", images=["a"]), "images", "not both"),
    ],
)
def test_each_mistake_names_its_field(tmp_path: Path, item: Any, field: str, message: str) -> None:
    path = write(tmp_path, [item])
    source, found_field, found = only_problem(path)
    assert (source, found_field) == (f"{path}:2", field)
    assert message in found


def test_scan_collects_everything_and_read_raises_it(tmp_path: Path) -> None:
    path = write(tmp_path, [llava("a"), llava("a", "b"), llava("a", "", "c", "d")])
    conversations, problems = scan(path)
    assert len(conversations) == 1
    assert len(problems) == 2
    with pytest.raises(DataError, match="2 problems") as error:
        read_conversations(path)
    assert error.value.problems == problems


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "holds no conversation"),
        ("[]", None, "holds no conversation"),
        ('{"id": 1,\n "x": 2}', 1, "put it into [ ]"),
        ('[{"messages": []}\n {}]', 2, "Expecting ','"),
        ("[\n{]", 2, "invalid JSON at column 2"),
        ("[3] 4", 1, "Extra data"),
        ("[", 1, "Expecting value"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    path = write(tmp_path, text)
    _, problems = scan(path)
    source = str(path) if line is None else f"{path}:{line}"
    assert any(problem.source == source and message in problem.message for problem in problems)


def test_a_broken_line_does_not_hide_the_others(tmp_path: Path) -> None:
    good = json.dumps(llava("a", "b"))
    path = write(tmp_path, f"{good}\n{{oops\n{good}\n")
    conversations, problems = scan(path)
    assert len(conversations) == 2
    assert [problem.source for problem in problems] == [f"{path}:2"]


def test_unreadable_files(tmp_path: Path) -> None:
    assert "check the path" in only_problem(tmp_path / "gone.json")[2]
    (tmp_path / "latin.json").write_bytes(b'[{"id": "\xe9"}]')
    assert "UTF-8" in only_problem(tmp_path / "latin.json")[2]


def test_images_are_decoded_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    path = write(tmp_path, [llava("<image>", "a", image="broken.png")])
    assert len(read_conversations(path)) == 1
    source, field, message = only_problem(path, check_images=True)
    assert (source, field) == (f"{path}:2", "image")
    assert "broken.png: cannot decode" in message
