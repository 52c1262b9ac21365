"""What trains in a stage, and at which rate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from moe_llava.model.accounting import part_of_parameters
from moe_llava.model.experts import Experts
from moe_llava.model.moe_llava import MoeLlavaForConditionalGeneration
from moe_llava.model.projector import VocabularyProjector
from moe_llava.recipe import Group, Trainable

GROUP_OF_PART: dict[str, Group] = {
    "vision_tower": "vision_tower",
    "projector": "projector",
    "ffn": "ffn",
    "experts": "experts",
    "routers": "router",
    "embeddings": "language_model",
    "attention_and_norms": "language_model",
    "lm_head": "language_model",
}
# A finer group -> the one that trains its parameters where it is not named.
INSIDE: dict[Group, Group] = {
    "ffn": "language_model",
    "experts": "language_model",
    "router": "language_model",
    "words": "projector",
}
_REMEDIES: dict[Group, str] = {
    "experts": "give the stage a `sparsify` table",
    "router": "give the stage a `sparsify` table",
    "words": 'remove it, or give the model a projector that has some, such as "vocabulary640"',
}


@dataclass(frozen=True)
class TrainingGroup:
    """Parameters that train at one rate."""

    name: str
    lr: float
    parameters: tuple[nn.Parameter, ...]
    lora_rank: int | None = None

    @property
    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def assign_groups(model: MoeLlavaForConditionalGeneration, train: Mapping[Group, Trainable]) -> dict[str, Group]:
    """Name of each parameter that a stage trains -> its group.

    Raises:
        ValueError: a group without parameters in this model.
    """
    assigned: dict[str, Group] = {}
    projector = getattr(model.model, "multi_modal_projector", None)
    words = projector.words.weight if isinstance(projector, VocabularyProjector) else None
    parts = part_of_parameters(model)
    for name, parameter in model.named_parameters():
        group: Group = "words" if parameter is words else GROUP_OF_PART[parts[name]]
        if group not in train:
            group = INSIDE.get(group, group)
        if group in train:
            assigned[name] = group
    for group in train:
        if group not in assigned.values():
            remedy = _REMEDIES.get(group, "remove it")
            raise ValueError(f"train.{group}: this model has no such parameters; {remedy}.")
    return assigned


def prepare(
    model: MoeLlavaForConditionalGeneration, train: Mapping[Group, Trainable]
) -> tuple[list[TrainingGroup], "Adapters | None"]:
    """Freeze the model but for what trains, add adapters where asked, and return the groups of the optimizer."""
    assigned = assign_groups(model, train)
    adapters = Adapters.add(model, assigned, train) if any(item.lora_rank for item in train.values()) else None
    members: dict[Group, list[nn.Parameter]] = {group: [] for group in train}
    for name, parameter in model.named_parameters():
        group = adapters.group_of(name) if adapters else assigned.get(name)
        parameter.requires_grad_(group is not None)
        if group is not None:
            members[group].append(parameter)
    groups = [
        TrainingGroup(group, train[group].lr, tuple(parameters), train[group].lora_rank)
        for group, parameters in members.items()
    ]
    return groups, adapters


class Adapters:
    """LoRA on the linear layers and the stacked experts of whole groups; merged into the weights when a stage ends."""

    def __init__(self, tuner: Any, owners: dict[str, Group], whole: dict[str, Group]) -> None:
        self._tuner = tuner
        self._owners = owners
        self._whole = whole

    @classmethod
    def add(
        cls, model: MoeLlavaForConditionalGeneration, assigned: dict[str, Group], train: Mapping[Group, Trainable]
    ) -> "Adapters":
        """Put adapters into `model`, in place.

        Raises:
            ValueError: PEFT is absent, or groups ask for different ranks.
        """
        try:
            from peft import LoraConfig, LoraModel
        except ImportError as error:
            raise ValueError("lora_rank needs PEFT: pip install 'moe-llava[lora]'.") from error
        adapted = {group: item for group, item in train.items() if item.lora_rank}
        sizes = {(item.lora_rank, item.lora_alpha) for item in adapted.values()}
        if len(sizes) > 1:
            raise ValueError(
                f"train: groups with LoRA must share lora_rank and lora_alpha, not {sorted(map(str, sizes))}."
            )
        first = next(iter(adapted.values()))
        rank = first.lora_rank or 0
        alpha = first.lora_alpha or 2 * rank
        linears, stacks = _adaptable(model, {name for name, group in assigned.items() if group in adapted})
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=sorted(linears),
            target_parameters=sorted(stacks) or None,
        )
        owners = {name: assigned[f"{name}.weight"] for name in linears}
        owners |= {name.rpartition(".")[0]: assigned[name] for name in stacks}
        whole = {name: group for name, group in assigned.items() if group not in adapted}
        return cls(LoraModel(model, {"default": config}, "default"), owners, whole)

    def group_of(self, name: str) -> Group | None:
        """Group of a parameter of the adapted model, `None` if it is frozen."""
        module, marker, _ = name.partition(".lora_")
        if marker:
            return self._owners[module.replace(".base_layer", "")]
        return self._whole.get(name.replace(".base_layer", ""))

    def merge(self) -> None:
        """Add the adapters to the weights they adapt, in place, and remove them."""
        self._tuner.merge_and_unload()


def _adaptable(model: nn.Module, names: set[str]) -> tuple[set[str], set[str]]:
    """Linear modules and stacked expert weights among the parameters `names`."""
    linears, stacks = set(), set()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{path}.weight" in names:
            linears.add(path)
        elif isinstance(module, Experts):
            stacks |= {f"{path}.{key}" for key, tensor in module.named_parameters() if tensor.ndim == 3} & names
    return linears, stacks
