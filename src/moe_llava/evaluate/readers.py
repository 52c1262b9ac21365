"""Benchmark folders in the official layout -> questions with the prompts of LLaVA's and MoE-LLaVA's scripts.

Images are looked up but not opened.
"""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_llava.evaluate.items import Item
from moe_llava.evaluate.scores import gqa as gqa_files
from moe_llava.evaluate.scores import mmbench as mmbench_files
from moe_llava.evaluate.scores import mme as mme_files
from moe_llava.evaluate.scores import mmvet as mmvet_files
from moe_llava.evaluate.scores import pope as pope_files
from moe_llava.evaluate.scores import seed as seed_files
from moe_llava.evaluate.scores import textvqa as textvqa_files
from moe_llava.evaluate.scores import vizwiz as vizwiz_files
from moe_llava.evaluate.scores import vqav2 as vqav2_files
from moe_llava.evaluate.scores.files import locate, read_json, read_jsonl

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接回答选项字母。"
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT
VQAV2_VAL = "v2_OpenEnded_mscoco_val2014_questions.json"
GQA_FILE = "llava_gqa_testdev_balanced.jsonl"
MMBENCH_OPTIONS = "ABCD"
# A cell this short is no picture but the index of the row that has it.
REFERENCE_LENGTH = 64


@dataclass(frozen=True)
class Asked:
    """The questions of one benchmark's folder.

    Attributes:
        split: which of the benchmark's splits they are.
        needs: files without which the answers can be neither scored nor handed in, each under the names it may have.
        scored: whether the truth is public, so that a score can be computed here; else there is a file to upload.
    """

    split: str
    items: list[Item]
    needs: tuple[tuple[str, ...], ...] = ()
    scored: bool = True


def vqav2(folder: Path) -> Asked:
    """test-dev as LLaVA asks it, or val2014, whose annotations are public."""
    if (folder / vqav2_files.TEST_DEV_QUESTIONS).exists():
        items = _llava(folder, vqav2_files.TEST_DEV_QUESTIONS, "test2015")
        return Asked("test-dev2015", items, ((vqav2_files.TEST_QUESTIONS,),), scored=False)
    rows = read_json(locate(folder, VQAV2_VAL, vqav2_files.TEST_DEV_QUESTIONS))["questions"]
    images = Images(folder, "val2014")
    named = ((row, images.find(f"COCO_val2014_{row['image_id']:012d}.jpg")) for row in rows)
    items = [Item(row["question_id"], row["question"] + SHORT, image) for row, image in named]
    return Asked("val2014", items, ((vqav2_files.ANNOTATIONS,),))


def gqa(folder: Path) -> Asked:
    """testdev-balanced; without LLaVA's question file, from the official one."""
    images = Images(folder, "data/images", "images")
    if (folder / GQA_FILE).exists():
        items = _items(folder / GQA_FILE, images)
    else:
        questions: dict[str, Any] = read_json(locate(folder, *gqa_files.QUESTIONS, GQA_FILE))
        balanced = {key: row for key, row in questions.items() if row["isBalanced"]}
        items = [
            Item(key, row["question"] + SHORT, images.find(f"{row['imageId']}.jpg")) for key, row in balanced.items()
        ]
    return Asked("testdev-balanced", items, (gqa_files.QUESTIONS,))


def vizwiz(folder: Path) -> Asked:
    """test as LLaVA asks it, or val, whose answers are public."""
    if (folder / vizwiz_files.TEST_QUESTIONS).exists():
        return Asked("test", _llava(folder, vizwiz_files.TEST_QUESTIONS, "test"), scored=False)
    needs = ((vizwiz_files.ANNOTATIONS,),)
    if (folder / vizwiz_files.VAL_QUESTIONS).exists():
        return Asked("val", _llava(folder, vizwiz_files.VAL_QUESTIONS, "val"), needs)
    rows = read_json(locate(folder, vizwiz_files.ANNOTATIONS, vizwiz_files.TEST_QUESTIONS))
    images = Images(folder, "val")
    items = [Item(row["image"], row["question"] + UNANSWERABLE, images.find(row["image"])) for row in rows]
    return Asked("val", items, needs)


def scienceqa(folder: Path) -> Asked:
    """test, with and without images, "answer with the letter" (LLaVA's --single-pred-prompt)."""
    images = Images(folder, "images/test", "test")
    items = []
    for row in read_json(locate(folder, "llava_test_CQM-A.json")):
        text = row["conversations"][0]["value"].replace("<image>", "").strip() + LETTER
        image = images.find(row["image"]) if "image" in row else None
        items.append(Item(row["id"], f"<image>\n{text}" if image else text, image))
    return Asked("test", items, (("problems.json",), ("pid_splits.json",)))


def textvqa(folder: Path) -> Asked:
    """val v0.5.1 with OCR tokens in the prompt; ids are those of images."""
    items = _llava(folder, "llava_textvqa_val_v051_ocr.jsonl", "train_images")
    return Asked("val", items, ((textvqa_files.ANNOTATIONS,),))


def pope(folder: Path) -> Asked:
    """All three sets."""
    labels = tuple((pope_files.label_file(name),) for name in pope_files.SETS)
    return Asked("test", _llava(folder, pope_files.QUESTIONS, "val2014"), labels)


def mme(folder: Path) -> Asked:
    """All fourteen sub-tasks; ids are paths of images, two questions each."""
    truths = (str(mme_files.TEMPLATES), str(mme_files.IMAGES))
    return Asked("test", _llava(folder, "llava_mme.jsonl", "MME_Benchmark_release_version"), (truths,))


def mmvet(folder: Path) -> Asked:
    return Asked("v1", _llava(folder, "llava-mm-vet.jsonl", "images"), ((mmvet_files.QUESTIONS,),))


def seed(folder: Path) -> Asked:
    """Images, and videos as the one frame that LLaVA cuts out of each."""
    return Asked("images and videos", _llava(folder, "llava-seed-bench.jsonl", "."), ((seed_files.QUESTIONS,),))


def llava_bench(folder: Path) -> Asked:
    return Asked("in the wild", _llava(folder, "questions.jsonl", "images"))


def easy_vqa(folder: Path) -> Asked:
    """The demo's test questions, asked as they stand."""
    images = Images(folder)
    rows = read_jsonl(locate(folder, "test.jsonl"), "id", "image", "question", "answer")
    return Asked("test", [Item(row["id"], row["question"], images.find(row["image"])) for row in rows])


def mmbench(folder: Path) -> Asked:
    return _mmbench(locate(folder, *mmbench_files.ENGLISH), LETTER)


def mmbench_cn(folder: Path) -> Asked:
    return _mmbench(locate(folder, *mmbench_files.CHINESE), LETTER_CN)


def _mmbench(source: Path, instruction: str) -> Asked:
    """Every rotation of every question; the answer file records the prompt without the instruction, as the original."""
    columns, table = mmbench_files.read_table(source)
    pictures: dict[str, bytes] = {}
    items = []
    for index, row in table.items():
        cell = row.get("image", "")
        if cell and len(cell) <= REFERENCE_LENGTH and cell in table:
            cell = table[cell]["image"]
        if cell not in pictures:
            pictures[cell] = _decode(cell, f"{source}: row {index}")
        options = [(letter, row.get(letter, "")) for letter in MMBENCH_OPTIONS]
        until = next((at for at, (_, text) in enumerate(options) if not text), len(options))
        lines = [row["hint"]] if row.get("hint") else []
        lines += [row["question"], *(f"{letter}. {text}" for letter, text in options[:until])]
        prompt = "\n".join(lines)
        items.append(Item(int(index), prompt, pictures[cell], asked=prompt + instruction))
    return Asked(source.stem, items, scored="answer" in columns)


def _decode(cell: str, place: str) -> bytes:
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{place}: the image is not base64 ({error}); download the file again") from error


def _llava(folder: Path, questions: str, *images: str) -> list[Item]:
    return _items(locate(folder, questions), Images(folder, *images))


def _items(source: Path, images: "Images") -> list[Item]:
    """LLaVA's question files: `question_id`, `image`, `text` with the instruction in it."""
    rows = read_jsonl(source, "question_id", "text")
    return [
        Item(row["question_id"], row["text"], images.find(row["image"]) if row.get("image") else None) for row in rows
    ]


class Images:
    """Pictures of one benchmark: in the first of some folders that exists, or beside the questions."""

    def __init__(self, folder: Path, *candidates: str) -> None:
        self.folder = next((folder / name for name in candidates if (folder / name).is_dir()), folder)

    def find(self, name: str) -> Path:
        """Path of a picture.

        Raises:
            ValueError: it does not exist.
        """
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"{path} does not exist; put the benchmark's images into {self.folder}")
        return path
