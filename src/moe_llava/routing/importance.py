"""How much each expert is used, by modality, and how much it adds when it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from moe_llava.routing.intervene import network_of, run_network, sparse_layers
from moe_llava.routing.score import Scorer

By = Literal["load", "text-load", "image-load", "reap", "random"]
WAYS: tuple[By, ...] = get_args(By)


@dataclass
class Usage:
    """One sparse layer, over the real tokens of all answers.

    Attributes:
        text, image: how many tokens of each modality chose each expert.
        contribution: sum over the tokens that chose it of the expert's weight times the norm of its output.
    """

    text: Float[Tensor, " expert"]
    image: Float[Tensor, " expert"]
    contribution: Float[Tensor, " expert"]

    def importance(self, by: By, generator: torch.Generator) -> Float[Tensor, " expert"]:
        """One number an expert; the smallest goes first.

        `load` is the mean over modalities of the share of a modality's choices, so that the many tokens of images do
        not drown those of text; `reap` is REAP's score (2510.13999), the mean contribution where chosen.
        """
        if by == "random":
            return torch.rand(len(self.text), generator=generator)
        if by == "reap":
            return self.contribution / (self.text + self.image).clamp_min(1)
        shares = [counts / counts.sum() for counts in (self.text, self.image) if counts.sum() > 0]
        if by == "load":
            return torch.stack(shares).mean(dim=0)
        counts = self.text if by == "text-load" else self.image
        if not counts.sum():
            raise ValueError(f"--by {by}: the data holds no such tokens.")
        return counts / counts.sum()


@torch.inference_mode()
def usage(scorer: Scorer) -> dict[int, Usage]:
    """Each sparse layer -> the usage of its experts on the scorer's samples."""
    model: Any = scorer.engine.model
    layers = sparse_layers(model)
    number = model.config.text_config.num_experts
    found = {index: Usage(torch.zeros(number), torch.zeros(number), torch.zeros(number)) for index in layers}
    masks: dict[str, Tensor] = {}

    def count(index: int, inputs: Sequence[Tensor], output: Sequence[Tensor]) -> None:
        one, (_, weights, experts) = found[index], output
        for name in ("text", "image"):
            counts = torch.bincount(experts[masks[name]].flatten(), minlength=number).cpu()
            setattr(one, name, getattr(one, name) + counts)
        real = masks["text"] | masks["image"]
        for expert in range(number):
            token, slot = ((experts == expert) & real[:, None]).nonzero(as_tuple=True)
            module = layers[index].experts
            result = run_network(module, network_of(module, expert), inputs[0][token]).float()
            one.contribution[expert] += (weights[token, slot] * result.norm(dim=-1)).sum().cpu()

    handles = [
        mlp.gate.register_forward_hook(lambda _, inputs, output, index=index: count(index, inputs, output))
        for index, mlp in layers.items()
    ]
    try:
        for _, batch in scorer.batches:
            given = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
            is_image = (given["input_ids"] == model.config.image_token_id).reshape(-1)
            masks |= {"image": is_image, "text": given["attention_mask"].reshape(-1).bool() & ~is_image}
            model.model(**given, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def most_important(found: dict[int, Usage], by: By, number: int, seed: int = 0) -> dict[int, list[int]]:
    """Each sparse layer -> its `number` most important experts, most important first.

    Raises:
        ValueError: an impossible number, or a way that is not one of `WAYS`.
    """
    if by not in WAYS:
        raise ValueError(f"--by {by} is unknown: use one of {', '.join(WAYS)}.")
    total = len(next(iter(found.values())).text)
    if not 1 <= number <= total:
        raise ValueError(f"{number} experts of {total} is impossible: give 1 to {total}.")
    generator = torch.Generator().manual_seed(seed)
    return {
        index: one.importance(by, generator).argsort(descending=True, stable=True)[:number].tolist()
        for index, one in found.items()
    }
