"""Memory of one device while a stage trains: by part, in each layout.

Everything is in fp32 but for what autocast makes: weights, gradients, AdamW's two moments. What one micro-batch keeps
alive is measured on small twins of the layers (`probe.py`). `benchmarks/memory.py` holds all of it against real runs.
"""

from dataclasses import dataclass, fields

from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.accounting import part_of_parameters
from moe_llava.model.config import moe_layers
from moe_llava.recipe import Distributed, Stage
from moe_llava.train.layout import expert_group
from moe_llava.train.probe import LayerBytes, Probe

FP32, BF16 = 4, 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: of the decoder without experts, and of the projector; `experts` and `tower` apart.
        communication: weights gathered from other devices and gradients on their way (FSDP), or DDP's buckets.
        activations: what a micro-batch keeps alive at the worst moment, beyond all others.
    """

    weights: float
    experts: float
    tower: float
    gradients: float
    optimizer: float
    communication: float
    activations: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Sizes:
    """Parameters of a stage's model.

    Attributes:
        parts: by part (see `Accounting`), adapters as `adapters`.
        trained: of each part, those that train.
        largest: of the largest tensor that trains.
    """

    parts: dict[str, int]
    trained: dict[str, int]
    largest: int

    @classmethod
    def of(cls, model: MoeLlavaForConditionalGeneration, trained: set[int], owners: dict[int, str]) -> "Sizes":
        """Count a model, if need be on the meta device. `trained` holds ids of parameters; `owners` id -> part."""
        parts: dict[str, int] = {}
        training: dict[str, int] = {}
        largest = 0
        for parameter in model.parameters():
            part = owners.get(id(parameter), "adapters")
            parts[part] = parts.get(part, 0) + parameter.numel()
            if id(parameter) in trained:
                training[part] = training.get(part, 0) + parameter.numel()
                largest = max(largest, parameter.numel())
        return cls(parts, training, largest)


def owners_of(model: MoeLlavaForConditionalGeneration) -> dict[int, str]:
    """Part of each parameter, by its id: taken before adapters rename the modules."""
    named = dict(model.named_parameters())
    return {id(named[name]): part for name, part in part_of_parameters(model).items()}


@dataclass(frozen=True)
class Batch:
    """One micro-batch: samples, tokens of each (image tokens included), supervised positions and images of each."""

    samples: int
    tokens: float
    supervised: float
    images: int = 1
    accumulates: bool = False


def device_memory(
    config: MoeLlavaConfig, stage: Stage, sizes: Sizes, probe: Probe, batch: Batch, layout: Distributed, world: int
) -> Memory:
    """Bytes on one of `world` devices."""
    sharded = layout.layout != "ddp" and world > 1
    shards = world // layout.replicas if sharded else 1
    on_device = 0 if layout.cpu_offload else FP32 / shards
    tower, experts = sizes.parts.get("vision_tower", 0), sizes.parts.get("experts", 0)
    others = sum(sizes.parts.values()) - tower - experts
    trained = sum(sizes.trained.values())
    gradients = trained * on_device
    if sharded:
        communication = _gathered(config, sizes, expert_group(layout, config, shards))
    else:
        communication = FP32 * trained if world > 1 else 0.0
    peak = _peak(config, stage, sizes, probe, batch, gradients)
    return Memory(
        weights=others * on_device,
        experts=experts * on_device,
        tower=tower * on_device,
        gradients=gradients,
        optimizer=2 * gradients,
        communication=communication,
        activations=max(peak - gradients, 0.0),
    )


def _layer_sizes(config: MoeLlavaConfig, counts: dict[str, int], experts_shared_by: int = 1) -> float:
    """Parameters of the largest decoder layer."""
    text = config.text_config
    sparse, total = len(moe_layers(text)), text.num_hidden_layers
    attention = counts.get("attention_and_norms", 0) / total
    dense = counts.get("ffn", 0) / max(total - sparse, 1) if sparse < total else 0
    experts = counts.get("experts", 0) / sparse / experts_shared_by if sparse else 0
    return attention + max(dense, experts)


def _gathered(config: MoeLlavaConfig, sizes: Sizes, experts_shared_by: int) -> float:
    """FSDP's unsharded weights: the root (head, projector, tower), a layer and the next one, and twice the gradients of
    a layer on their way to their owners. Experts under expert parallelism stay where they are."""
    root = sum(sizes.parts.get(part, 0) for part in ("lm_head", "projector", "vision_tower"))
    root = max(root, sizes.parts.get("embeddings", 0) if not sizes.parts.get("lm_head") else root)
    layer = _layer_sizes(config, sizes.parts, experts_shared_by)
    return FP32 * (root + 2 * layer + 2 * _layer_sizes(config, sizes.trained, experts_shared_by))


def _peak(config: MoeLlavaConfig, stage: Stage, sizes: Sizes, probe: Probe, batch: Batch, gradients: float) -> float:
    """Activations and gradients together, at the worst of four moments of a step."""
    text = config.text_config
    tokens = batch.samples * batch.tokens
    sparse = len(moe_layers(text))
    layers = [(probe.dense, text.num_hidden_layers - sparse), (probe.sparse, sparse)]
    present: list[tuple[LayerBytes, int]] = [(one, count) for one, count in layers if one is not None]
    kept = tokens * sum(one.kept * count for one, count in present) + _inputs(config, stage, batch, probe)
    passing = tokens * max(one.passing for one, _ in present)
    head = batch.samples * batch.supervised * text.vocab_size * probe.head
    # Autograd keeps the cast weights until backward; with checkpointing it keeps those of one layer.
    matrices = sum(sizes.parts.values()) - sizes.parts.get("vision_tower", 0) - sizes.parts.get("embeddings", 0)
    vocabulary = text.vocab_size * text.hidden_size
    casts = 0.0
    if stage.precision == "bf16":
        one_layer = _layer_sizes(config, sizes.parts)
        casts = BF16 * (one_layer if stage.gradient_checkpointing else matrices) + BF16 * vocabulary
    trains_head = bool(sizes.trained.get("lm_head") or sizes.trained.get("embeddings"))
    of_head = FP32 * vocabulary if trains_head else 0.0
    # A gradient is made whole before it is added to what has accumulated.
    before = gradients + FP32 * sizes.largest if batch.accumulates else min(of_head, gradients)
    layer_gradients = 0.0 if batch.accumulates else FP32 * _layer_sizes(config, sizes.trained)
    return max(
        kept + head + casts + before,
        kept + passing + casts + min(before + layer_gradients, max(gradients, before)),
        gradients + passing + casts / max(text.num_hidden_layers, 1),
        gradients + FP32 * sizes.largest,
    )


def _inputs(config: MoeLlavaConfig, stage: Stage, batch: Batch, probe: Probe) -> float:
    """Embeddings before and after the images are put in, and the projector's steps; the tower's where it trains."""
    width = config.text_config.hidden_size
    embeddings = 3 * FP32 * batch.samples * batch.tokens * width
    if config.vision_config is None:
        return embeddings
    images = batch.samples * batch.images
    projector = FP32 * images * config.image_seq_length * (config.vision_hidden_size + 3 * width)
    return embeddings + projector + images * probe.image
