"""What an answer owes to which expert, patch by patch: take one expert away at one patch only, and see."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moe_llava.data.images import load_image
from moe_llava.generate.engine import Engine
from moe_llava.model.vision import grid_size
from moe_llava.routing.ablation import Mode, Treated, without
from moe_llava.routing.intervene import measured, rerouted, sparse_layers
from moe_llava.routing.score import Sample, Scorer, answer_log_probability

_ROWS = 64  # copies of a sample in one pass
_SHOWN = 6  # experts of a layer in a figure


@dataclass(frozen=True)
class PatchMap:
    """One answer. `owes[layer] (expert, patch)`: how much less likely, in nats, the answer is with the expert taken
    away at that patch alone; exactly 0 where it was not chosen."""

    sample: Sample
    owes: dict[int, Float[Tensor, "expert patch"]]


def patch_maps(engine: Engine, samples: Sequence[Sample], mode: Mode = "mean") -> list[PatchMap]:
    """Maps of the first image of each sample that has one; `patches * top_k` passes of one row for each layer."""
    with measured(engine.model):
        return [PatchMap(one, _owes(engine, one, mode)) for one in samples if one.images]


@torch.inference_mode()
def _owes(engine: Engine, sample: Sample, mode: Mode) -> dict[int, Tensor]:
    model = engine.model
    ((_, inputs),) = Scorer(engine, [sample], generate=False).batches
    patches = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[: model.config.image_seq_length, 0]
    number, length = model.config.text_config.num_experts, inputs["input_ids"].shape[1]
    found = {}
    for layer in sparse_layers(model):
        chosen = _choices(engine, inputs, layer)[patches]
        owes = torch.zeros(number, len(patches), dtype=torch.float64)
        cases = [(place, slot) for place in range(len(patches)) for slot in range(chosen.shape[1])]
        for start in range(0, len(cases), _ROWS):
            part = cases[start : start + _ROWS]
            mask = torch.zeros(len(part), length, chosen.shape[1], dtype=torch.bool)
            for row, (place, slot) in enumerate(part):
                mask[row, patches[place], slot] = True
            copies = _repeated(inputs, len(part))
            before = answer_log_probability(model, copies)
            with without(model, {layer: _always(mask.flatten(0, 1).to(model.device))}, mode):
                lost = before - answer_log_probability(model, copies)
            for value, (place, slot) in zip(lost.tolist(), part, strict=True):
                owes[chosen[place, slot], place] = value
        found[layer] = owes
    return found


def _always(mask: Tensor) -> Treated:
    return lambda chosen: mask


def _choices(engine: Engine, inputs: dict[str, Tensor], layer: int) -> Tensor:
    """The experts `(token, k)` of one sample's tokens in a layer."""
    seen: list[Tensor] = []

    def watch(_: Any, __: Tensor, ___: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(experts.cpu())
        return weights, experts

    with rerouted(engine.model, {layer: watch}):
        answer_log_probability(engine.model, inputs)
    return seen[0]


def _repeated(inputs: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    return {name: tensor.repeat(rows, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}


def draw_patch_map(engine: Engine, one: PatchMap, path: Path) -> list[Path]:
    """The picture, and for each sparse layer and expert its map over it; as PNG and SVG.

    Raises:
        ValueError: matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("Maps need matplotlib: pip install 'moe-llava[routing]'.") from error
    pixels = engine.processor.image_processor(images=[load_image(one.sample.images[0])], return_tensors="pt")
    picture = pixels["pixel_values"][0].permute(1, 2, 0).float()
    picture = (picture - picture.min()) / (picture.max() - picture.min()).clamp_min(1e-9)
    largest = max(owes.abs().max().item() for owes in one.owes.values()) or 1e-9
    shown = {layer: _shown(owes) for layer, owes in one.owes.items()}
    columns = 1 + max(map(len, shown.values()))
    figure: Any = Figure(figsize=(1.9 * columns + 0.9, 2.1 * len(shown) + 0.7), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    image = None
    for row, (layer, experts) in zip(grid, shown.items(), strict=True):
        row[0].imshow(picture.numpy())
        row[0].set_title(f"layer {layer}", fontsize=9)
        for axes, expert in zip(row[1:], experts, strict=False):
            image = _draw_expert(axes, picture, one.owes[layer][expert], largest)
            axes.set_title(f"expert {expert}: {one.owes[layer][expert].sum():+.2g}", fontsize=9)
        for axes in row:
            axes.axis("off")
    figure.colorbar(image, ax=grid, label="the answer owes, nats", shrink=0.8)
    asked = one.sample.messages[-2]["content"].replace("<image>", "").strip()
    figure.suptitle(f"{asked}  →  {one.sample.accepted[0]}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for target in paths:
        figure.savefig(target, dpi=150)
    return paths


def _shown(owes: Float[Tensor, "expert patch"]) -> list[int]:
    """The experts to show, in their order: all of a few, else those that matter most."""
    order = owes.abs().sum(dim=1).argsort(descending=True, stable=True)[:_SHOWN]
    return sorted(order.tolist())


def _draw_expert(axes: Any, picture: Tensor, owes: Tensor, largest: float) -> Any:
    height, width = picture.shape[:2]
    grey = picture.mean(dim=-1)
    axes.imshow(grey.numpy(), cmap="gray", vmin=-0.4, vmax=1.4)
    try:
        rows, columns = grid_size(len(owes))
    except ValueError:
        rows, columns = 1, len(owes)
    return axes.imshow(
        owes.reshape(rows, columns).numpy(),
        cmap="RdBu_r",
        vmin=-largest,
        vmax=largest,
        alpha=0.65,
        extent=(0, width, height, 0),
    )
