"""Which tensor of a source becomes which part of which tensor of ours."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moe_llava.checkpoint.original.families import Family
from moe_llava.checkpoint.stream import Spec
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.experts import FeedForwardLayout
from moe_llava.model.upcycle import feed_forward_layouts

Block = tuple[int, int]
WHOLE: Block = (0, 1)
_EXPERT = re.compile(r"(model\.language_model\.layers\.(\d+)\.mlp\.experts)\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Piece:
    """Block `(i, n)` of n equal blocks of rows of a source's tensor -> such a block of a target, of one expert if it
    has experts."""

    file: int
    source: str
    take: Block = WHOLE
    expert: int | None = None
    put: Block = WHOLE


@dataclass
class Placement:
    """Where everything goes: target -> its pieces; and what has no place."""

    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)


def target_shapes(config: MoeLlavaConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model, without building it. A tied head has none of its own."""
    with torch.device("meta"):
        model = MoeLlavaForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply every rule, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


class Placer:
    """Finds places for the tensors of one or several files."""

    def __init__(self, config: MoeLlavaConfig, family: Family) -> None:
        self.family = family
        self.shapes = target_shapes(config)
        self.layouts = feed_forward_layouts(config)
        self.placement = Placement()

    def add(self, file: int, names: Iterable[str], rules: Sequence[tuple[str, str]], ignored: Sequence[str]) -> None:
        """Place the tensors of one file; those that match `ignored` carry nothing."""
        for source in names:
            if any(re.search(pattern, source) for pattern in ignored):
                continue
            name = rename(source, rules)
            if name in self.family.zeros or (name == "lm_head.weight" and name not in self.shapes):
                continue
            for target, piece in self._places(file, source, name):
                if target in self.shapes:
                    self.placement.pieces.setdefault(target, []).append(piece)
                else:
                    self.placement.unexpected.append(source)

    def _places(self, file: int, source: str, name: str) -> list[tuple[str, Piece]]:
        for joined, parts in self.family.split.items():
            if f".{joined}." in name:
                return [
                    (name.replace(joined, part), Piece(file, source, take=(number, len(parts))))
                    for number, part in enumerate(parts)
                ]
        if match := _EXPERT.fullmatch(name):
            prefix, layer, expert, projection, kind = match.groups()
            if place := expert_place(self.layouts[int(layer)], projection):
                stack, put = place
                suffix = "_bias" if kind == "bias" else ""
                return [(f"{prefix}.{stack}{suffix}", Piece(file, source, expert=int(expert), put=put))]
        return [(name, Piece(file, source))]

    def missing(self) -> list[str]:
        """Targets that nothing, or not enough, was found for."""
        return [
            name
            for name, shape in self.shapes.items()
            if name not in self.family.zeros and not _is_filled(self.placement.pieces.get(name, []), shape)
        ]


def expert_place(layout: FeedForwardLayout, projection: str) -> tuple[str, Block] | None:
    """The stacked tensor that holds a projection, and its block of rows there."""
    if projection == layout.down:
        return "down_proj", WHOLE
    if projection in layout.inputs:
        return (
            "gate_up_proj" if layout.is_gated else "up_proj",
            (layout.inputs.index(projection), len(layout.inputs)),
        )
    return None


def _is_filled(pieces: list[Piece], shape: tuple[int, ...]) -> bool:
    """Whether every block of every expert is there, once."""
    if not pieces:
        return False
    experts = [None] if pieces[0].expert is None else list(range(shape[0]))
    wanted = {(expert, block) for expert in experts for block in range(pieces[0].put[1])}
    return len(pieces) == len(wanted) and {(piece.expert, piece.put[0]) for piece in pieces} == wanted


def check_shapes(
    placement: Placement, shapes: Mapping[str, tuple[int, ...]], specs: Sequence[Mapping[str, Spec]]
) -> None:
    """Compare every piece with its place.

    Raises:
        ValueError: a tensor does not fit; it is named with both shapes.
    """
    for target, pieces in placement.pieces.items():
        for piece in pieces:
            given = _cut(specs[piece.file][piece.source][0], piece.take[1])
            place = shapes[target] if piece.expert is None else shapes[target][1:]
            if given != _cut(place, piece.put[1]):
                raise ValueError(
                    f"{piece.source} has the shape {specs[piece.file][piece.source][0]}, which does not fit "
                    f"{target} {shapes[target]}: config.json and weights do not belong together."
                )


def _cut(shape: tuple[int, ...], blocks: int) -> tuple[int, ...]:
    return (shape[0] // blocks, *shape[1:]) if shape else shape


def place(target: Tensor, piece: Piece, source: Tensor) -> None:
    """Copy a piece into its target."""
    part = _block(source, piece.take)
    _block(target if piece.expert is None else target[piece.expert], piece.put).copy_(part)


def _block(tensor: Tensor, block: Block) -> Tensor:
    if block == WHOLE:
        return tensor
    rows = tensor.shape[0] // block[1]
    return tensor[block[0] * rows : (block[0] + 1) * rows]
