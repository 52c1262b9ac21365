"""The study's data: parts of the demonstration's, cut so that stages II and III see different pictures.

| file | what |
|---|---|
| captions.json | stage I, without the pictures kept for choices |
| instruct.json | stage II: easy-VQA pictures 0 to 1,799, each emoji's name and kind |
| tune.json | stage III: easy-VQA pictures 1,800 to 2,599, a quarter of the emoji conversations |
| choose.jsonl | easy-VQA's training pictures 3,600 to 3,699: for every choice about the recipe |
| test.jsonl | easy-VQA's test pictures 0 to 199, emoji in an unseen drawing style |
"""

import json
from pathlib import Path
from typing import Any

from moe_llava.data.demo import build_demo, easy_vqa
from moe_llava.data.demo.files import write_records

DEMO = Path("runs/tiny/data")
DATA = Path("runs/study/data")
_UP = Path("../../tiny/data")  # from the study's files to the demonstration's folder
_INSTRUCT, _TUNE, _CHOOSE, _TEST = range(1800), range(1800, 2600), range(3600, 3700), range(200)


def write_data() -> None:
    """Make the demonstration's data if need be, and the study's from it."""
    if (DATA / "test.jsonl").exists():
        return
    build_demo(DEMO, progress=True)
    tune = _shapes("train", _TUNE) + _read("emoji/train.json")[::4]
    write_records(DATA / "captions.json", [one for one in _read("captions.json") if _picture(one) < _CHOOSE.start])
    write_records(DATA / "instruct.json", _shapes("balanced", _INSTRUCT) + _read("emoji/naming.json"))
    write_records(DATA / "tune.json", tune)
    write_records(DATA / "choose.jsonl", list(_chosen()))
    # Last, because its presence says that all is there.
    write_records(
        DATA / "test.jsonl", list(_test("easy_vqa/test.jsonl")) + list(_test("emoji/test_unseen_style.jsonl"))
    )


def _read(name: str) -> list[dict[str, Any]]:
    """Records whose images are relative to the study's folder."""
    records = json.loads((DEMO / name).read_text(encoding="utf-8"))
    folder = Path(name).parent
    return [one | ({"image": str(_UP / folder / one["image"])} if "image" in one else {}) for one in records]


def _shapes(name: str, pictures: range) -> list[dict[str, Any]]:
    return [one for one in _read(f"easy_vqa/{name}.json") if _picture(one) in pictures]


def _picture(record: dict[str, Any]) -> int:
    """Number of an easy-VQA picture; -1 of any other."""
    path = Path(record.get("image", ""))
    return int(path.stem) if "easy_vqa" in path.parts else -1


def _chosen() -> Any:
    for number, question in enumerate(easy_vqa.read_questions("train")):
        if question.image in _CHOOSE:
            image = _UP / "easy_vqa" / easy_vqa.image_path("train", question.image)
            yield _row(f"choose/{number}", "easy_vqa", str(image), question.text, question.answer)


def _test(name: str) -> Any:
    folder = Path(name).parent
    for line in (DEMO / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if folder.name != "easy_vqa" or int(Path(row["image"]).stem) in _TEST:
            yield _row(row["id"], folder.name, str(_UP / folder / row["image"]), row["question"], row["answer"])


def _row(identifier: str, group: str, image: str, question: str, answer: str) -> dict[str, str]:
    return {"id": identifier, "image": image, "question": question, "answer": answer, "kind": group}
