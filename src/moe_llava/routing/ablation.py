"""Cause, not correlation: take an expert away, see which answers change, and whether a random one would do it too."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from moe_llava.generate.engine import Engine
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.routing.compare import Difference, compare
from moe_llava.routing.importance import Usage, usage
from moe_llava.routing.intervene import (
    Rule,
    added_networks,
    mean_network,
    measured,
    random_router,
    redirect,
    rerouted,
    sparse_layers,
)
from moe_llava.routing.score import Sample, Scorer, Scores

Mode = Literal["zero", "mean", "next", "router"]
MODES: tuple[Mode, ...] = get_args(Mode)
Treated = Callable[[Tensor], Tensor]
Target = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Ablation:
    """What happens without some experts.

    Attributes:
        target: layer -> the experts that were taken away; of mode `router`, layer -> none.
        mode: `zero`: they give nothing; `mean`: they are the mean of their layer's experts; `next`: their tokens go to
            the next best; `router`: the layer's experts are drawn at random.
        load: share of the layers' assignments that went to them.
        difference: split -> without minus with them.
        control: the same done to as many of the layers' assignments, drawn at random, of a token one at most where
            the target is one expert.
        beyond: without them minus the control: what is theirs and not any expert's of equal load.
    """

    target: dict[int, list[int]]
    mode: Mode
    load: float
    difference: dict[str, Difference]
    control: dict[str, Difference] | None
    beyond: dict[str, Difference] | None

    @property
    def name(self) -> str:
        parts = [
            f"layer {layer}" + (f" expert{'s' * (len(experts) > 1)} {', '.join(map(str, experts))}" if experts else "")
            for layer, experts in self.target.items()
        ]
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""

        def figures(one: dict[str, Difference] | None) -> Any:
            return one and {name: difference.as_dict() for name, difference in one.items()}

        return {
            "target": {str(layer): experts for layer, experts in self.target.items()},
            "mode": self.mode,
            "load": self.load,
            "difference": figures(self.difference),
            "control": figures(self.control),
            "beyond_control": figures(self.beyond),
        }


def ablate(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    targets: Sequence[Target] | None = None,
    modes: Sequence[Mode] = MODES,
    most: int = 8,
    seed: int = 0,
) -> list[Ablation]:
    """Take away each target in each mode, and each sparse layer's router.

    Args:
        targets: each a set of experts that go together; by default the `most` used experts of each layer, one by one.

    Raises:
        ValueError: the model is dense, or a target or a mode is not there.
    """
    if wrong := [mode for mode in modes if mode not in MODES]:
        raise ValueError(f"{', '.join(wrong)} is no mode: use {', '.join(MODES)}.")
    model = engine.model
    scorer = Scorer(engine, samples)
    used = usage(scorer)
    chosen = _targets(model, used, most) if targets is None else [_checked(model, target) for target in targets]
    found = []
    with measured(model):
        before = scorer.score("as trained")
        for target in chosen:
            for mode in (mode for mode in modes if mode != "router"):
                if (
                    mode == "next"
                    and model.config.text_config.num_experts == model.config.text_config.num_experts_per_tok
                ):
                    continue
                found.append(_ablation(scorer, before, target, mode, _load(used, target), seed))
        for layer in used if "router" in modes else ():
            with rerouted(model, {layer: random_router(seed)}):
                after = scorer.score(f"layer {layer} router")
            found.append(Ablation({layer: []}, "router", 1.0, compare(before, after, samples, seed=seed), None, None))
    return found


def _ablation(
    scorer: Scorer, before: Scores, target: dict[int, list[int]], mode: Mode, load: dict[int, float], seed: int
) -> Ablation:
    model, samples = scorer.engine.model, scorer.samples
    treated = {layer: _is_one_of(experts) for layer, experts in target.items()}
    with without(model, treated, mode, target):
        after = scorer.score(f"{mode} {target}")
    generator = torch.Generator().manual_seed(seed)
    by_chance = {layer: _at_random(load[layer], len(experts) == 1, generator) for layer, experts in target.items()}
    with without(model, by_chance, mode):
        control = scorer.score(f"{mode} at random")
    return Ablation(
        target,
        mode,
        sum(load.values()) / len(load),
        compare(before, after, samples, seed=seed),
        compare(before, control, samples, seed=seed),
        compare(control, after, samples, seed=seed),
    )


@contextmanager
def without(
    model: MoeLlavaForConditionalGeneration, treated: Mapping[int, Treated], mode: Mode, never: Target | None = None
) -> Iterator[None]:
    """Put what `mode` says in the place of the assignments that `treated` (layer -> mask of choices) names.

    To be used under `measured`. `never` are the experts that no token is to go to instead.
    """
    layers = sparse_layers(model)
    rules: dict[int, Rule] = {}
    with ExitStack() as stack:
        for layer, mask in treated.items():
            target = None
            if mode != "next":
                network = None if mode == "zero" else mean_network(layers[layer].experts)
                (target,) = stack.enter_context(added_networks(layers[layer].experts, [network]))
            rules[layer] = redirect(mask, target, (never or {}).get(layer, ()))
        stack.enter_context(rerouted(model, rules))
        yield


def _is_one_of(experts: Sequence[int]) -> Treated:
    return lambda chosen: torch.isin(chosen, torch.tensor(list(experts), device=chosen.device))


def _at_random(share: float, once: bool, generator: torch.Generator) -> Treated:
    """`share` of the assignments; `once`: at most one of a token, as a token chooses an expert at most once."""

    def treated(chosen: Tensor) -> Tensor:
        tokens, top_k = chosen.shape
        if not once:
            return (torch.rand(tokens, top_k, generator=generator) < share).to(chosen.device)
        slot = torch.randint(top_k, (tokens, 1), generator=generator)
        drawn = torch.rand(tokens, 1, generator=generator) < share * top_k
        return ((torch.arange(top_k) == slot) & drawn).to(chosen.device)

    return treated


def _load(used: dict[int, Usage], target: dict[int, list[int]]) -> dict[int, float]:
    counts = {layer: used[layer].text + used[layer].image for layer in target}
    return {layer: (counts[layer][experts].sum() / counts[layer].sum()).item() for layer, experts in target.items()}


def _targets(model: MoeLlavaForConditionalGeneration, used: dict[int, Usage], most: int) -> list[dict[int, list[int]]]:
    found = []
    for layer in sparse_layers(model):
        order = used[layer].importance("load", torch.Generator()).argsort(descending=True, stable=True)[:most]
        found += [{layer: [expert]} for expert in sorted(order.tolist())]
    return found


def _checked(model: MoeLlavaForConditionalGeneration, target: Target) -> dict[int, list[int]]:
    layers, number = sparse_layers(model), model.config.text_config.num_experts
    for layer, experts in target.items():
        if layer not in layers:
            raise ValueError(f"Layer {layer} is not sparse: the sparse ones are {list(layers)}.")
        if wrong := [expert for expert in experts if not 0 <= expert < number]:
            raise ValueError(f"Layer {layer} has no experts {wrong}: there are 0 to {number - 1}.")
    return {layer: sorted(set(experts)) for layer, experts in target.items()}


def read_target(text: str) -> dict[int, list[int]]:
    """`0:1,0:3,2:0` -> `{0: [1, 3], 2: [0]}`: one set, taken away together.

    Raises:
        ValueError: it is written otherwise.
    """
    target: dict[int, list[int]] = {}
    for part in text.split(","):
        layer, colon, expert = part.strip().partition(":")
        if not colon or not layer.isdigit() or not expert.isdigit():
            raise ValueError(f"--experts {text}: write LAYER:EXPERT, several with commas, as 0:1,2:3.")
        target.setdefault(int(layer), []).append(int(expert))
    return target
