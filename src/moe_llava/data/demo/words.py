"""The words of the emoji questions: everyday names, kinds of things, and the little grammar around them.

Unicode names are exact but stiff ("left-pointing magnifying glass"). The tables in `words/` map them onto what a person
would say and onto one of fourteen kinds. A table line reads `key < value, value, ...`.
"""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

_ENDINGS_TO_DROP = (" face", " symbol", " sign")
_SINGULAR_IN_S = ("ss", "us", "is", "os")


def _lines(table: str) -> Iterator[str]:
    text = (files(__package__) / "words" / f"{table}.txt").read_text(encoding="utf-8")
    return (line for line in text.splitlines() if line and not line.startswith("#"))


@cache
def _key_of_value(table: str) -> dict[str, str]:
    key_of: dict[str, str] = {}
    for line in _lines(table):
        key, values = line.split(" < ")
        key_of.update(dict.fromkeys(values.split(", "), key))
    return key_of


@cache
def _values_of_key(table: str) -> dict[str, tuple[str, ...]]:
    pairs = (line.split(" < ") for line in _lines(table))
    return {key: tuple(values.split(", ")) for key, values in pairs}


@cache
def _look_alikes() -> tuple[frozenset[str], ...]:
    return tuple(frozenset(line.split(", ")) for line in _lines("look_alikes"))


def everyday_name(formal: str) -> str:
    """Lower-case Unicode name -> the short name a person would use: `"fox face"` -> `"fox"`."""
    if formal in _key_of_value("short_names"):
        return _key_of_value("short_names")[formal]
    for ending in _ENDINGS_TO_DROP:
        formal = formal.removesuffix(ending)
    return formal


def kind_of(name: str, subcategory: str) -> str:
    """Everyday name and Unicode subcategory -> kind of thing, one of `kinds()`."""
    return _key_of_value("kinds_of_names").get(name) or _key_of_value("kinds_of_subcategories")[subcategory]


def kinds() -> tuple[str, ...]:
    """All kinds of things, in a fixed order."""
    return tuple(_values_of_key("kind_phrases"))


def kinds_apart(kind: str) -> tuple[str, ...]:
    """Kinds that nothing of `kind` belongs to; none for a vague kind such as "object"."""
    return _values_of_key("kinds_apart").get(kind, ())


def is_plural(name: str) -> bool:
    """Whether `name` takes "are": its head (before "with", "of", ...) ends in a plural s."""
    head = name.split(" with ")[0].split(" of ")[0].split(" behind ")[0].split(" at ")[0]
    return head.endswith("s") and not head.endswith(_SINGULAR_IN_S)


def be(name: str) -> str:
    """The form of "to be" that goes with `name`."""
    return "are" if is_plural(name) else "is"


def with_article(name: str) -> str:
    """`"fox"` -> `"a fox"`, `"owl"` -> `"an owl"`, `"grapes"` -> `"grapes"`, `"sun"` -> `"the sun"`."""
    article = _key_of_value("articles").get(name)
    if article is None:
        article = "none" if is_plural(name) else "an" if name[0] in "aeiou" else "a"
    return name if article == "none" else f"{article} {name}"


def kind_with_article(kind: str, name: str) -> str:
    """The kind as it is said of `name`: `"an animal"` of a fox, `"tools"` of scissors."""
    return _values_of_key("kind_phrases")[kind][is_plural(name)]


def look_alike(name: str, other: str) -> bool:
    """Whether both names could rightly be said of one picture: one contains the other's words, or a table says so."""
    words, other_words = ({word.removesuffix("s") for word in each.split()} for each in (name, other))
    return words <= other_words or other_words <= words or any({name, other} <= group for group in _look_alikes())
