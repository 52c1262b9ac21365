"""What can be said of a picture's thing: keywords, a definition, and the colours of the drawing itself."""

import json
import tarfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from moe_llava.data.demo.concepts import Concept
from moe_llava.data.demo.npm import NpmPackage, tarball
from moe_llava.data.smol.dictionary import Dictionary

EMOJIBASE = NpmPackage(
    name="emojibase-data",
    version="17.0.0",
    sha512="Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    megabytes=6.7,
    folder="package/en",
)
_SPOKEN = 4  # keywords in one answer
_WORDS = 24  # in a definition; longer ones are cut at a comma or semicolon, or left out
_BACKGROUND = 245  # what is as light as this in every channel is paper
_HUES = (  # upper bound in degrees, name
    (18, "red"),
    (40, "orange"),
    (68, "yellow"),
    (165, "green"),
    (255, "blue"),
    (290, "purple"),
    (335, "pink"),
    (361, "red"),
)


@cache
def read_keywords() -> dict[str, tuple[str, ...]]:
    """Code points, upper case -> keywords of an emoji.

    Raises:
        ValueError: the package can be had neither from the cache nor from npm.
    """
    with tarfile.open(tarball(EMOJIBASE)) as archive:
        file = archive.extractfile(f"{EMOJIBASE.folder}/data.json")
        assert file is not None
        entries = json.loads(file.read())
    return {entry["hexcode"].removesuffix("-FE0F"): tuple(entry.get("tags", ())) for entry in entries}


def keywords(concept: Concept) -> tuple[str, ...]:
    """Words that go with a thing, without its own name; at most four."""
    own = set(" ".join(concept.accepted).split())
    found = read_keywords().get(concept.code.removesuffix("-FE0F"), ())
    return tuple(word for word in found if not own.intersection(word.split()))[:_SPOKEN]


def definition(concept: Concept, dictionary: Dictionary) -> str | None:
    """A dictionary's words for a thing, short enough to be said; `None` if there are none."""
    gloss = dictionary.definition(concept.name, concept.kind)
    for mark in (";", ","):
        if gloss and len(gloss.split()) > _WORDS:
            gloss = gloss.partition(mark)[0]
    return gloss if gloss and 3 <= len(gloss.split()) <= _WORDS else None


def colours(picture: Path) -> tuple[str, ...]:
    """The colours of a drawing on white, the largest first: at most two that cover a quarter of what is drawn."""
    hue, saturation, value = (
        channel.astype(int).ravel() for channel in np.moveaxis(np.asarray(Image.open(picture).convert("HSV")), -1, 0)
    )
    drawn = ~((value >= _BACKGROUND) & (saturation <= 255 - _BACKGROUND))
    counted = Counter(
        _name(*pixel)
        for pixel in zip(
            hue[drawn][::7].tolist(), saturation[drawn][::7].tolist(), value[drawn][::7].tolist(), strict=True
        )
    )
    total = counted.total()
    # Some hands draw outlines: black counts where it is most of what there is.
    if counted["black"] < 0.5 * total:
        total -= counted.pop("black", 0)
    return tuple(name for name, count in counted.most_common(2) if count >= 0.25 * total) or ("white",)


def _name(hue: int, saturation: int, value: int) -> str:
    if value < 50:
        return "black"
    if saturation < (80 if value < 150 else 40):
        return "white" if value > 215 else "gray"
    degrees = hue * 360 / 256
    name = next(name for bound, name in _HUES if degrees < bound)
    if name == "red" and saturation < 150 and value > 200:
        return "pink"
    return "brown" if 8 < degrees < 40 and value < 200 else name
