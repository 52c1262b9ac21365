"""Which prompts run together: those about one image share their beginning, batches hold similar lengths."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from PIL import Image

# A file, a picture in memory, or the bytes of an image file.
ImageSource = str | Path | bytes | Image.Image

# A shorter common beginning is not worth a pass of its own.
MIN_SHARED = 16


@dataclass(frozen=True)
class Prompt:
    """Tokens, each image expanded to its own number of them, and the images in order; `id` names it to an observer."""

    ids: list[int]
    images: tuple[ImageSource, ...] = ()
    id: str = ""


@dataclass(frozen=True)
class Prefix:
    """The first `length` tokens of a prompt, which others begin with too."""

    prompt: int
    length: int


@dataclass(frozen=True)
class Wave:
    """Prefixes that are read together, and the batches of prompts that go on from them.

    A batch holds `(prompt, prefix)`: positions in the list of prompts and in `prefixes`. Without prefixes, prompts are
    read whole.
    """

    prefixes: tuple[Prefix, ...]
    batches: tuple[tuple[tuple[int, int], ...], ...]


def plan(
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    max_tokens: int,
    image_token_id: int,
    share: bool = True,
    equal_lengths: bool = False,
) -> Iterator[Wave]:
    """Every prompt once, the longest first.

    Args:
        batch_size: most rows of a batch, and prefixes of a wave.
        max_tokens: most tokens in the cache of a batch, padding included; a single row may have more.
        share: whether prompts may go on from a common prefix at all.
        equal_lengths: a batch's prompts go on by equally many tokens, so that no padding follows a prefix.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[_identity(prompt.images)].append(index)
    alone: list[int] = []
    families: list[tuple[Prefix, list[int]]] = []
    for members in groups.values():
        shared = common_length([prompts[member].ids for member in members], image_token_id) if share else 0
        if len(members) > 1 and shared >= MIN_SHARED:
            families.append((Prefix(members[0], shared), members))
        else:
            alone += members
    yield from _waves_of_families(families, prompts, batch_size, max_tokens, equal_lengths)
    for batch in _batches([(index, -1) for index in alone], prompts, batch_size, max_tokens):
        yield Wave((), (batch,))


def common_length(rows: Sequence[list[int]], image_token_id: int) -> int:
    """Tokens with which all rows begin; at least one is left over in each, and no image is cut in two."""
    longest = min(map(len, rows)) - 1
    first, last = min(rows), max(rows)  # what these two share, all share
    length = next((at for at in range(longest) if first[at] != last[at]), max(longest, 0))
    while length and any(row[length - 1] == row[length] == image_token_id for row in (first, last)):
        length -= 1
    return length


def _identity(images: tuple[ImageSource, ...]) -> tuple:
    return tuple(id(image) if isinstance(image, Image.Image) else image for image in images)


def _waves_of_families(
    families: list[tuple[Prefix, list[int]]],
    prompts: Sequence[Prompt],
    batch_size: int,
    max_tokens: int,
    equal_lengths: bool,
) -> Iterator[Wave]:
    """Families are put together until a batch is full; one that is larger runs in several batches over one prefix."""
    families = sorted(families, key=lambda family: -max(len(prompts[member].ids) for member in family[1]))
    while families:
        longest = max(len(prompts[member].ids) for member in families[0][1])
        room = _rows(longest, batch_size, max_tokens)
        taken = [families.pop(0)]
        while families and sum(len(members) for _, members in taken) + len(families[0][1]) <= room:
            taken.append(families.pop(0))
        rows = [(member, at) for at, (_, members) in enumerate(taken) for member in members]
        lengths = {member: len(prompts[member].ids) - taken[at][0].length for member, at in rows}
        rows.sort(key=lambda row: -lengths[row[0]])
        parts = groupby(rows, key=lambda row: lengths[row[0]]) if equal_lengths else [(0, iter(rows))]
        batches = [batch for _, part in parts for batch in _batches(list(part), prompts, batch_size, max_tokens, False)]
        yield Wave(tuple(prefix for prefix, _ in taken), tuple(batches))


def _batches(
    rows: list[tuple[int, int]], prompts: Sequence[Prompt], batch_size: int, max_tokens: int, by_length: bool = True
) -> Iterator[tuple[tuple[int, int], ...]]:
    if by_length:
        rows = sorted(rows, key=lambda row: -len(prompts[row[0]].ids))
    longest = max((len(prompts[index].ids) for index, _ in rows), default=1)
    while rows:
        if by_length:
            longest = len(prompts[rows[0][0]].ids)
        size = _rows(longest, batch_size, max_tokens)
        yield tuple(rows[:size])
        rows = rows[size:]


def _rows(longest: int, batch_size: int, max_tokens: int) -> int:
    return max(1, min(batch_size, max_tokens // longest))
