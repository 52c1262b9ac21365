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
        self.num_experts = getattr(config.text_config, "num_experts", 0)
        self.placement = Placement()

    def add(self, file: int, names: Iterable[str], rules: Sequence[tuple[str, str]], ignored: Sequence[str]) -> None:
        """Place the tensors of one file; those that match `ignored` carry nothing."""
        for source in names:
            if any(re.search(pattern, source) for pattern in ignored):
                continue
            name = rename(source, rules)
            if name in self.family.zeros or (name == "lm_head.weight" and name not in self.shapes):
                continue
            places = self._places(file, source, name)
            if all(self._is_free(target, piece) for target, piece in places):
                for target, piece in places:
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
            exists = int(layer) < len(self.layouts) and int(expert) < self.num_experts
            if exists and (place := expert_place(self.layouts[int(layer)], projection)):
                stack, put = place
                suffix = "_bias" if kind == "bias" else ""
                return [(f"{prefix}.{stack}{suffix}", Piece(file, source, expert=int(expert), put=put))]
        return [(name, Piece(file, source))]

    def _is_free(self, target: str, piece: Piece) -> bool:
        taken = self.placement.pieces.get(target, [])
        return target in self.shapes and (piece.expert, piece.put) not in [(one.expert, one.put) for one in taken]

    def missing(self) -> list[str]:
        """Targets that nothing was found for; of a stack of experts, the experts that lack something."""
        missing = []
        for name, shape in self.shapes.items():
            pieces = self.placement.pieces.get(name, [])
            if pieces and (experts := _lacking_experts(pieces, shape)):
                missing.append(f"{name} (experts {', '.join(map(str, experts))})")
            elif not pieces and name not in self.family.zeros:
                missing.append(name)
        return missing


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


def _lacking_experts(pieces: list[Piece], shape: tuple[int, ...]) -> list[int]:
    """The experts of a stack of which a block is not there; none of a tensor that is no stack."""
    if pieces[0].expert is None:
        return []
    blocks = pieces[0].put[1]
    return [n for n in range(shape[0]) if sum(piece.expert == n for piece in pieces) < blocks]


def check_shapes(
    placement: Placement, shapes: Mapping[str, tuple[int, ...]], specs: Sequence[Mapping[str, Spec]]
) -> None:
    """Compare every piece with its place.

    Raises:
        ValueError: a tensor does not fit; it is named with both shapes. Or it holds no real numbers.
    """
    for target, pieces in placement.pieces.items():
        for piece in pieces:
            shape, dtype = specs[piece.file][piece.source]
            if not dtype.is_floating_point:
                raise ValueError(f"{piece.source} holds {dtype}: quantised weights are not supported.")
            given = _cut(shape, piece.take[1])
            place = shapes[target] if piece.expert is None else shapes[target][1:]
            if given != _cut(place, piece.put[1]):
                raise ValueError(
                    f"{piece.source} has the shape {shape}, which does not fit "
                    f"{target} {shapes[target]}: config.json and weights do not belong together."
                )


def _cut(shape: tuple[int, ...], blocks: int) -> tuple[int, ...]:
    return (shape[0] // blocks, *shape[1:]) if shape else shape


def place(target: Tensor, piece: Piece, source: Tensor) -> None:
    """Copy a piece into its target."""
    part = block_of(source, piece.take)
    block_of(target if piece.expert is None else target[piece.expert], piece.put).copy_(part)


def block_of(tensor: Tensor, block: Block) -> Tensor:
    """Those rows of a tensor, as a view."""
    if block == WHOLE:
        return tensor
    rows = tensor.shape[0] // block[1]
    return tensor[block[0] * rows : (block[0] + 1) * rows]
