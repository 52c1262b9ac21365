"""The paths that tokens took through the sparse layers, counted exactly."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from moe_llava.routing.routes import RouteFile, array, is_image
from moe_llava.routing.statistics import MODALITIES

MOST_PATHS = 1_000_000  # different ones in memory


@dataclass(frozen=True)
class TravelledPath:
    """One path. Shares are of all tokens of its modality and of all samples that have such tokens.

    Attributes:
        experts: of each sparse layer, the one or several experts.
        texts: the most frequent tokens that took it, with their number; empty for image patches.
    """

    experts: tuple[tuple[int, ...], ...]
    tokens: int
    token_share: float
    sample_share: float
    texts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class PathTable:
    """The most-travelled paths of one modality, and how many different ones there are."""

    kind: int
    distinct: int
    paths: tuple[TravelledPath, ...]


def travelled(
    file: RouteFile, kind: int, *, choices: int = 1, top: int = 10, most_paths: int = MOST_PATHS
) -> PathTable:
    """Count the paths of one modality, each exactly.

    A path is the expert of the first choice in every sparse layer or, with `choices` of them, the set of experts.
    At most about `most_paths` different ones are in memory: where there are more, the file is read several times, each
    time for the paths of one class (by a checksum), so that no path is ever split.
    """
    number, classes = 0, 1
    distinct, best = 0, list[tuple[bytes, int]]()
    while number < classes:
        counter = _count(file, kind, choices, number, classes, most_paths)
        if counter is None:
            number, classes, distinct, best = 0, 4 * classes, 0, []
            continue
        number += 1
        distinct += len(counter)
        best = sorted([*best, *counter.most_common(top)], key=lambda entry: -entry[1])[:top]
    shape = (len(file.info.layers), choices)
    return PathTable(kind, distinct, _describe(file, kind, choices, best, shape))


def _count(
    file: RouteFile, kind: int, choices: int, number: int, classes: int, most_paths: int
) -> Counter[bytes] | None:
    """How often each path of one class was taken; `None` if there are too many."""
    counter: Counter[bytes] = Counter()
    for keys in _keys(file, kind, choices):
        unique, counts = np.unique(_of_class(keys, number, classes), return_counts=True)
        for key, count in zip(unique.tolist(), counts.tolist(), strict=True):
            counter[key] += count
        if len(counter) > most_paths:
            return None
    return counter


def path_of(experts: Int[np.ndarray, "token layer k"], choices: int) -> Int[np.ndarray, "token layer choices"]:
    """The path of each token: its first choice in each layer, or the first few in ascending order."""
    return np.sort(experts[:, :, :choices], axis=-1)


def _keys(file: RouteFile, kind: int, choices: int) -> Iterator[np.ndarray]:
    """The paths of one modality as one void scalar a token, piece by piece."""
    for batch in file.tables(["modality", "experts"]):
        experts = array(batch["experts"])[is_image(batch) == bool(kind)]
        yield _as_keys(path_of(experts, choices))


def _as_keys(paths: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(paths.astype(np.int16)).reshape(len(paths), -1)
    return flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).reshape(-1)


def _of_class(keys: np.ndarray, number: int, classes: int) -> np.ndarray:
    if classes == 1:
        return keys
    words = keys.view(np.uint16).reshape(len(keys), -1).astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**31, words.shape[1], dtype=np.uint64)
    return keys[((words * factors).sum(axis=1) >> np.uint64(8)) % np.uint64(classes) == number]


def _describe(
    file: RouteFile, kind: int, choices: int, best: list[tuple[bytes, int]], shape: tuple[int, int]
) -> tuple[TravelledPath, ...]:
    """A second reading, for the best paths alone: in how many samples they occur, and of which tokens."""
    keys = np.array([np.frombuffer(key, dtype=np.int16) for key, _ in best]).reshape(len(best), -1)
    samples: list[set[int]] = [set() for _ in best]
    texts: list[Counter[str]] = [Counter() for _ in best]
    seen: set[int] = set()
    total = 0
    for batch in file.tables(["sample", "modality", "token", "experts"]):
        of_kind = is_image(batch) == bool(kind)
        number_of_kind = int(of_kind.sum())
        total += number_of_kind
        flat = path_of(array(batch["experts"])[of_kind], choices).reshape(number_of_kind, -1)
        sample = batch["sample"].to_numpy()[of_kind]
        token = batch["token"].filter(of_kind) if kind == MODALITIES.index("text") else None
        seen.update(np.unique(sample).tolist())
        for number, key in enumerate(keys):
            took = (flat == key).all(axis=1)
            samples[number].update(np.unique(sample[took]).tolist())
            if token is not None:
                texts[number].update(token.filter(took).to_pylist())
    return tuple(
        TravelledPath(
            experts=tuple(tuple(layer) for layer in key.reshape(shape).tolist()),
            tokens=count,
            token_share=count / max(total, 1),
            sample_share=len(samples[number]) / max(len(seen), 1),
            texts=tuple(texts[number].most_common(8)),
        )
        for number, (key, (_, count)) in enumerate(zip(keys, best, strict=True))
    )
