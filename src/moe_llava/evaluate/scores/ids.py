"""Predictions must answer every question once: a gap is an error, never a lower score."""

from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path

SHOWN = 5


def check_ids(given: Iterable[Hashable], asked: Iterable[Hashable], predictions: Path, questions: Path) -> None:
    """Check that the ids `given` in `predictions` are those `asked` in `questions`, each as often; order is free.

    Raises:
        ValueError: ids are missing, doubled or unknown; the message counts them and shows the first few.
    """
    given_count, asked_count = Counter(iter(given)), Counter(iter(asked))
    surplus = given_count - asked_count
    faults = {
        "without a prediction": list(asked_count - given_count),
        "predicted more than once": [key for key in surplus if key in asked_count],
        f"not in {questions}": [key for key in surplus if key not in asked_count],
    }
    found = [f"{len(keys)} {fault} ({_first(keys)})" for fault, keys in faults.items() if keys]
    if found:
        raise ValueError(f"{predictions}: questions {'; '.join(found)}. Answer every question of {questions} once.")


def check_unique(keys: Iterable[Hashable], source: Path) -> None:
    """Raise ValueError, naming the first few, if a key occurs twice in `source`."""
    doubled = [key for key, count in Counter(iter(keys)).items() if count > 1]
    if doubled:
        raise ValueError(f"{source}: {len(doubled)} ids occur more than once ({_first(doubled)}); keep one of each")


def _first(keys: list[Hashable]) -> str:
    shown = ", ".join(" / ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in keys[:SHOWN])
    return shown + (", ..." if len(keys) > SHOWN else "")
