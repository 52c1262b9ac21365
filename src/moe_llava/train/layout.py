"""Layouts: how the processes of a job share one model, and the whole model back from its shares."""

from math import gcd
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers.distributed import DistributedConfig

from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.compose import load_state
from moe_llava.model.config import moe_layers
from moe_llava.recipe import Distributed, Stage
from moe_llava.train import processes


def distributed_config(wanted: Distributed, config: MoeLlavaConfig, world: int) -> DistributedConfig | None:
    """What transformers needs to share a model among `world` processes; `None` where each holds all of it.

    Raises:
        ValueError: so many processes or experts cannot be shared that way.
    """
    if wanted.layout == "ddp" or world == 1:
        return None
    if world % wanted.replicas:
        raise ValueError(
            f"distributed.replicas = {wanted.replicas} does not divide {world} processes: choose a divisor of {world}."
        )
    shards = world // wanted.replicas
    return DistributedConfig(
        fsdp_size=shards,
        dp_replicate_size=wanted.replicas,
        ep_size=expert_group(wanted, config, shards),
        fsdp_cpu_offload=wanted.cpu_offload,
    )


def expert_group(wanted: Distributed, config: MoeLlavaConfig, shards: int) -> int:
    """Processes among which the experts of a layer are shared out; 1 where they are not.

    Raises:
        ValueError: the number asked for divides the experts or the processes with a rest.
    """
    if wanted.layout != "fsdp_ep" or not moe_layers(config.text_config):
        return 1
    experts = config.text_config.num_experts
    size = wanted.expert_parallel or gcd(experts, shards)
    if experts % size or shards % size:
        raise ValueError(
            f"distributed.expert_parallel = {size} must divide {experts} experts and {shards} processes: choose "
            f"one of {', '.join(str(one) for one in range(1, experts + 1) if experts % one == shards % one == 0)}."
        )
    return size


def check_stage(name: str, stage: Stage, wanted: Distributed) -> None:
    """Refuse what a layout cannot train.

    Raises:
        ValueError: adapters in a sharded layout.
    """
    if wanted.layout != "ddp" and any(item.lora_rank for item in stage.train.values()):
        raise ValueError(
            f'stages.{name}.train: adapters train with distributed.layout = "ddp" alone, because "{wanted.layout}" has '
            'shared out the weights before they are added. Use "ddp", or leave lora_rank out.'
        )


def load_sharded(folder: Path, config: DistributedConfig) -> MoeLlavaForConditionalGeneration:
    """Read a checkpoint so that each process holds its share alone, in fp32."""
    return MoeLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, distributed_config=config)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds a share of the model."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def whole_model(model: MoeLlavaForConditionalGeneration) -> MoeLlavaForConditionalGeneration | None:
    """The model itself where it is whole. Of a sharded one a gathered copy in the first process's memory, `None` in
    the others; all processes must call.
    """
    if not is_sharded(model):
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    if not processes.is_first():
        return None
    table = model.config.to_dict()
    table.pop("distributed_config", None)
    copy = load_state(MoeLlavaConfig(**table), state, dtype=torch.float32)
    copy.generation_config = model.generation_config
    return copy
