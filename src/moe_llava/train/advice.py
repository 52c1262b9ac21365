"""What a stage would be on given devices: memory, the largest micro-batch, hours, and the layout to take."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table

from moe_llava.model import MoeLlavaConfig
from moe_llava.recipe import Distributed, Stage
from moe_llava.train.devices import Cluster
from moe_llava.train.layout import check_stage
from moe_llava.train.memory import Batch, Memory, Sizes, device_memory
from moe_llava.train.probe import Probe

# What the driver, its libraries and fragmentation take of a device.
RESERVED = 0.08
GIB = 2**30


@dataclass(frozen=True)
class Work:
    """What there is to do in a stage.

    Attributes:
        longest: tokens of the longest sample, image tokens included; `supervised` positions of it.
        flops: of one optimizer step, over all devices; `forward` those of one forward pass over its samples.
    """

    config: MoeLlavaConfig
    stage: Stage
    sizes: Sizes
    probe: Probe
    longest: float
    supervised: float
    steps: int | None
    flops: float
    forward: float


@dataclass(frozen=True)
class Option:
    """One layout on given devices. `micro_batch` is the largest that fits and divides the batch, `None` if none does;
    `memory` is with it, or with one sample."""

    layout: Distributed
    micro_batch: int | None
    memory: Memory


@dataclass(frozen=True)
class Advice:
    """All layouts, the advised one (`None` where nothing fits), and hours at the stated utilisation."""

    cluster: Cluster
    options: list[Option]
    advised: Option | None
    steps: int | None
    hours: float | None
    longest: float


def advise(name: str, work: Work, cluster: Cluster, utilisation: float) -> Advice:
    """Try the layouts in the order of how little they communicate.

    Raises:
        ValueError: the batch cannot be shared evenly by so many devices.
    """
    if work.stage.batch_size % cluster.count:
        raise ValueError(
            f"stages.{name}.batch_size = {work.stage.batch_size} cannot be shared by {cluster.count} devices: choose "
            "a multiple, or other devices."
        )
    options = [_option(work, layout, cluster) for layout in _layouts(name, work, cluster)]
    advised = next((option for option in options if option.micro_batch), None)
    peak = cluster.device.bf16 if work.stage.precision == "bf16" else cluster.device.fp32
    hours = None
    if work.steps is not None:
        accumulates = advised is not None and (advised.micro_batch or 0) * cluster.count < work.stage.batch_size
        # With accumulation the first choices of a whole step are counted beforehand, in a pass without gradients.
        counting = work.forward if accumulates and work.sizes.parts.get("experts") else 0.0
        hours = work.steps * (work.flops + counting) / (cluster.count * peak * utilisation) / 3600
    return Advice(cluster, options, advised, work.steps, hours, work.longest)


def _layouts(name: str, work: Work, cluster: Cluster) -> list[Distributed]:
    if cluster.count == 1:
        return [Distributed()]
    layouts = [Distributed(), Distributed(layout="fsdp"), Distributed(layout="fsdp_ep")]
    layouts.append(Distributed(layout="fsdp_ep" if work.sizes.parts.get("experts") else "fsdp", cpu_offload=True))
    if not work.sizes.parts.get("experts"):
        layouts.pop(2)
    if cluster.hosts > 1:  # within a host shares travel fast; between hosts only gradients do
        layouts.insert(1, Distributed(layout="fsdp", replicas=cluster.hosts))
    return [layout for layout in layouts if _is_possible(name, work.stage, layout)]


def _is_possible(name: str, stage: Stage, layout: Distributed) -> bool:
    try:
        check_stage(name, stage, layout)
    except ValueError:
        return False
    return True


def _option(work: Work, layout: Distributed, cluster: Cluster) -> Option:
    share = work.stage.batch_size // cluster.count
    limit = cluster.device.memory * (1 - RESERVED)

    def memory(samples: int) -> Memory:
        batch = Batch(samples, work.longest, work.supervised, accumulates=samples < share)
        return device_memory(work.config, work.stage, work.sizes, work.probe, batch, layout, cluster.count)

    divisors = [number for number in range(share, 0, -1) if share % number == 0]
    largest = next((number for number in divisors if memory(number).total <= limit), None)
    return Option(layout, largest, memory(largest or 1))


def advice_tables(advices: Sequence[tuple[str, Advice]], utilisation: float) -> list[RenderableType]:
    """Tables for people: one row a layout, one table a stage."""
    cluster = advices[0][1].cluster
    shown: list[RenderableType] = []
    for name, advice in advices:
        title = f"{name} on {cluster}, a device's memory in GiB, samples of up to {advice.longest:,.0f} tokens"
        table = Table(title=title, title_justify="left")
        table.add_column("layout", no_wrap=True)
        columns = ("weights", "experts", "tower", "gradients", "optimizer", "communication", "activations")
        for column in (*columns, "total", "micro-batch"):
            table.add_column(column, justify="right")
        for option in advice.options:
            sizes = [f"{getattr(option.memory, column) / GIB:.1f}" for column in columns]
            best = option is advice.advised
            row = [
                layout_name(option.layout),
                *sizes,
                f"{option.memory.total / GIB:.1f}",
                str(option.micro_batch or "-"),
            ]
            table.add_row(*row, style="bold" if best else "")
        shown += [table, _sentence(name, advice, utilisation)]
    return shown


def _sentence(name: str, advice: Advice, utilisation: float) -> str:
    if advice.advised is None:
        return f"{name}: does not fit: take more or larger devices, or turn gradient_checkpointing on.\n"
    hours = "hours unknown: state `samples` of the data"
    if advice.hours is not None:
        hours = f"{advice.steps:,} steps, {advice.hours:.1f} hours at {utilisation:.0%} of the devices' best"
    layout, micro_batch = layout_name(advice.advised.layout), advice.advised.micro_batch
    return f"{name}: take {layout} with micro_batch_size = {micro_batch}; {hours}.\n"


def layout_name(layout: Distributed) -> str:
    """As a recipe says it, in short."""
    name: str = layout.layout
    if layout.replicas > 1:
        name += f", replicas = {layout.replicas}"
    return name + (", cpu_offload" if layout.cpu_offload else "")
