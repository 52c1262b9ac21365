"""Recordings of the original's models: their inputs in our form, and a converted model to compare."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from moe_llava.checkpoint.original import convert
from moe_llava.checkpoint.original.families import COMMON_NAMES, IGNORED
from moe_llava.checkpoint.original.layout import read_layout
from moe_llava.checkpoint.original.placing import Placer, block_of
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.config import moe_layers
from tests.original_gating import Gating, gate

FAMILIES = ("stablelm", "phi", "qwen", "qwen1_5", "llama", "mistral", "minicpm")
# Prompts of the original hold -200 where an image stands.
IMAGE = -200


@dataclass
class Recording:
    """One family: the converted model, what went into the original, what came out."""

    model: MoeLlavaForConditionalGeneration
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    meta: dict[str, Any]
    placer: Placer

    @classmethod
    def open(cls, folder: Path, out: Path) -> "Recording":
        convert(folder / "checkpoint", out, vision_tower=folder / "vision_tower")
        model = MoeLlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
        meta = json.loads((folder / "meta.json").read_text())
        family = read_layout(folder / "checkpoint").family
        placer = Placer(model.config, family)
        placer.add(0, meta["state_dict_keys"], (*COMMON_NAMES, *family.names), IGNORED)
        inputs, outputs = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
        return cls(model, inputs, outputs, meta, placer)

    def case(self, name: str) -> dict[str, Tensor]:
        return {key.partition("/")[2]: t for key, t in self.outputs.items() if key.startswith(f"{name}/")}

    def router_case(self, name: str, key: str) -> list[Tensor]:
        """One recorded tensor for each sparse layer."""
        return [
            self.outputs[f"{name}/moe{layer}.{key}"] for layer in range(len(moe_layers(self.model.config.text_config)))
        ]

    def gradients(self) -> dict[str, Tensor]:
        """The model's gradients under the original's names, expert by expert; without those of the tower."""
        parameters = dict(self.model.named_parameters())
        parts: dict[str, list[Tensor]] = {}
        for target, pieces in self.placer.placement.pieces.items():
            if "vision_tower" not in target:
                gradient = parameters[target].grad
                assert gradient is not None
                for piece in pieces:
                    own = gradient if piece.expert is None else gradient[piece.expert]
                    parts.setdefault(piece.source, []).append(block_of(own, piece.put))
        return {source: torch.cat(tensors) for source, tensors in parts.items()}

    def batch(self, name: str, left: bool = False) -> dict[str, Tensor]:
        """A recorded input with images expanded, padded to one length; images of text-only samples left out."""
        ids, mask, labels = (self.inputs[f"{name}/{key}"] for key in ("input_ids", "attention_mask", "labels"))
        pixels = list(self.inputs[f"{name}/pixel_values"])
        images, rows = [], []
        for sample, keep, target in zip(ids, mask, labels, strict=True):
            tokens, wanted = sample[keep.bool()], target[keep.bool()]
            here = int((tokens == IMAGE).sum())
            images += pixels[:here]
            pixels = pixels[max(here, 1) :]  # a text-only sample carries a blank image
            repeats = torch.where(tokens == IMAGE, self.model.config.image_seq_length, 1)
            wanted = wanted.masked_fill(tokens == IMAGE, -100)
            tokens = tokens.masked_fill(tokens == IMAGE, self.model.config.image_token_id)
            rows.append((tokens.repeat_interleave(repeats), wanted.repeat_interleave(repeats)))
        length = max(len(tokens) for tokens, _ in rows)
        padded = [
            [
                _pad(tokens, length, 0, left),
                _pad(torch.ones_like(tokens), length, 0, left),
                _pad(wanted, length, -100, left),
            ]
            for tokens, wanted in rows
        ]
        stacked = [torch.stack(column) for column in zip(*padded, strict=True)]
        names = ("input_ids", "attention_mask", "labels")
        return dict(zip(names, stacked, strict=True)) | {"pixel_values": torch.stack(images)}


def _pad(row: Tensor, length: int, value: int, left: bool) -> Tensor:
    fill = row.new_full((length - len(row),), value)
    return torch.cat([fill, row] if left else [row, fill])


@contextmanager
def routed_as_the_original(
    model: MoeLlavaForConditionalGeneration, factor: float, noise: list[Tensor] | None
) -> Iterator[list[Gating]]:
    """Let every sparse layer of our model route as the original does: capacity, padding and noise included."""
    gatings: list[Gating] = []
    layers = model.model.language_model.layers
    sparse = [layers[index].mlp for index in moe_layers(model.config.text_config)]

    def forward_of(number: int) -> Any:
        def forward(self: Any, hidden_states: Tensor) -> Tensor:
            tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
            logits, _, _ = self.gate(tokens)
            gating = gate(logits, 2, factor, 0, noise[number] if noise else None)
            gatings.append(gating)
            every = torch.arange(gating.weights.shape[1]).expand(len(tokens), -1)
            return self.experts(tokens, every, gating.weights).reshape(hidden_states.shape)

        return forward

    for number, block in enumerate(sparse):
        block.forward = MethodType(forward_of(number), block)
    try:
        yield gatings
    finally:
        for block in sparse:
            del block.forward


def embedded_as_the_original(model: MoeLlavaForConditionalGeneration, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with embeddings for ids: the original pads with zeros, which its routers see."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    embeddings = model.get_input_embeddings()(ids.masked_fill(ids == model.config.image_token_id, 0))
    images = model.get_image_features(batch["pixel_values"])
    embeddings = model.model._merge(ids, embeddings, images) * mask[..., None]
    return {"inputs_embeds": embeddings, "attention_mask": mask}
