"""What a recipe would do, from shapes alone: trainables, parameters, steps, tokens, memory."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import RenderableType
from rich.table import Table
from transformers import AutoConfig, PreTrainedConfig

from moe_llava.checkpoint.hub import fetch
from moe_llava.checkpoint.published import published_config
from moe_llava.data.conversation import read_conversations
from moe_llava.data.stream import open_rows
from moe_llava.data.stream.sources import streams
from moe_llava.model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from moe_llava.model.accounting import Accounting, account, account_model
from moe_llava.model.config import moe_layers, sparse_text_config
from moe_llava.model.vision import tower_shape
from moe_llava.recipe import Data, Distributed, Recipe, Stage, load_recipe
from moe_llava.train.advice import Work
from moe_llava.train.memory import Batch, Memory, Sizes, device_memory, owners_of
from moe_llava.train.probe import probe
from moe_llava.train.stages import TrainingGroup, prepare
from moe_llava.train.trainer import optimizer_steps

CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class StagePlan:
    """One stage before it runs. `samples`, `steps` and `tokens` are `None` where neither files nor recipe say.

    `memory` is that of one device of plain data parallelism, with the stage's micro-batch of its longest samples;
    `work` is what `advise` needs to know of it.
    """

    name: str
    groups: list[TrainingGroup]
    accounting: Accounting
    samples: int | None
    steps: int | None
    tokens: int | None
    memory: Memory
    work: Work


def plan(recipe: Recipe, stages: Iterable[str] | None = None) -> list[StagePlan]:
    """Check every field of a recipe against its model, and count. Needs no weights, and no data where `samples` says.

    Raises:
        ValueError: as the run itself would.
    """
    names = list(stages) if stages is not None else list(recipe.stages)
    return [_plan_stage(recipe, name) for name in names]


def _plan_stage(recipe: Recipe, name: str) -> StagePlan:
    stage = recipe.stages[name]
    config = stage_config(recipe, name)
    with torch.device("meta"):
        model = MoeLlavaForConditionalGeneration(config)
    if config.tie_word_embeddings:
        model.tie_weights()
    accounting = account_model(model)
    owners = owners_of(model)
    groups, _ = prepare(model, stage.train)
    sizes = Sizes.of(model, {id(one) for group in groups for one in group.parameters}, owners)
    samples, text_tokens = _data_size(recipe, stage)
    steps = stage.steps
    if steps is None and samples is not None:
        steps = optimizer_steps(samples, stage.batch_size, stage.epochs or 1.0)
    per_sample = text_tokens + config.image_seq_length
    work = _work(recipe, stage, config, accounting, sizes, per_sample, steps)
    return StagePlan(
        name=name,
        groups=groups,
        accounting=accounting,
        samples=samples,
        steps=steps,
        tokens=None if steps is None else int(steps * stage.batch_size * per_sample),
        memory=_plain_memory(work),
        work=work,
    )


def _work(
    recipe: Recipe,
    stage: Stage,
    config: MoeLlavaConfig,
    accounting: Accounting,
    sizes: Sizes,
    per_sample: float,
    steps: int | None,
) -> Work:
    """Memory is that of the longest sample which the recipe lets pass, all of its text supervised; time the mean's."""
    longest = max(float(recipe.model.max_length) if recipe.model else 0.0, per_sample)
    tokens = stage.batch_size * per_sample
    forward = accounting.training_flops_per_token(per_sample)
    backward = forward * (1 + sum(sizes.trained.values()) / sum(sizes.parts.values()))
    again = forward if stage.gradient_checkpointing else 0.0
    return Work(
        config=config,
        stage=stage,
        sizes=sizes,
        probe=probe(config, stage),
        longest=longest,
        supervised=longest - config.image_seq_length,
        steps=steps,
        flops=tokens * (forward + backward + again),
        forward=tokens * forward,
    )


def _plain_memory(work: Work) -> Memory:
    samples = work.stage.micro_batch_size or work.stage.batch_size
    batch = Batch(samples, work.longest, work.supervised, accumulates=samples < work.stage.batch_size)
    return device_memory(work.config, work.stage, work.sizes, work.probe, batch, Distributed(), 1)


def stage_config(recipe: Recipe, name: str) -> MoeLlavaConfig:
    """Configuration of the model that a stage trains."""
    lineage: list[str] = []
    start: str | None = name
    while start in recipe.stages:
        if start in lineage:
            raise ValueError(f"stages.{name}: starts_from goes round in a circle: {' <- '.join([*lineage, start])}.")
        lineage.append(start)
        start = recipe.starting_point(start)
    config = recipe_config(recipe) if start is None else read_any_config(start)
    for stage in reversed(lineage):
        if table := recipe.stages[stage].sparsify:
            config.text_config = sparse_text_config(config.text_config, **table.model_dump(exclude={"noise"}))
    return MoeLlavaConfig(**config.to_dict())


def recipe_config(recipe: Recipe) -> MoeLlavaConfig:
    """Configuration of a recipe's composed, still dense model; from the stated shapes where there are any."""
    parts = recipe.model
    assert parts is not None
    stated = dict(parts.language.config)
    if parts.language.path is None:
        stated.setdefault("vocab_size", parts.tokenizer.vocab_size)
    text = AutoConfig.for_model(**stated) if "model_type" in stated else _read_config(parts.language.path or "")
    config = MoeLlavaConfig(
        text_config=text.get_text_config().to_dict(), image_token_id=text.vocab_size, projector_type=parts.projector
    )
    if (vision := parts.vision) is None:
        return config
    tower = AutoConfig.for_model(**vision.config) if vision.config else _read_config(vision.path)
    tower = getattr(tower, "vision_config", tower)
    size = vision.image_size or getattr(tower, "image_size", None) or 224
    shape = tower_shape(tower, size, size, vision.feature_layer)
    dropped = shape.prefix_tokens if vision.prefix_tokens is None else vision.prefix_tokens
    config.vision_config = tower
    config.vision_feature_layer = vision.feature_layer
    config.vision_hidden_size = shape.width
    config.vision_prefix_tokens = dropped
    config.image_seq_length = shape.tokens + shape.prefix_tokens - dropped
    return config


def read_any_config(source: str | Path) -> MoeLlavaConfig:
    """Configuration of a checkpoint, ours or published, or of any causal language model as a text-only model.

    Raises:
        ValueError: there is no such model, or it is of a kind that is not supported.
    """
    config = _read_config(str(source))
    if isinstance(config, MoeLlavaConfig):
        return config
    text = config.get_text_config()
    return MoeLlavaConfig(text_config=text.to_dict(), image_token_id=text.vocab_size)


def _read_config(source: str) -> PreTrainedConfig:
    remedy = "Give a folder with a config.json, a hub id that can be reached, or a recipe that states the shape."
    folder = fetch(source, remedy=remedy, weights=False)
    try:
        return published_config(folder) or AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Cannot read a model's configuration from {source!r}: {str(error).splitlines()[0]} {remedy}"
        ) from error


def inspect(source: str) -> Accounting:
    """Sizes of a recipe's final model (`.toml`), of a folder, or of a hub id."""
    if source.endswith(".toml"):
        recipe = load_recipe(source)
        configs = [stage_config(recipe, name) for name in recipe.stages]
        return account(next((one for one in reversed(configs) if moe_layers(one.text_config)), configs[-1]))
    return account(read_any_config(source))


def _data_size(recipe: Recipe, stage: Stage) -> tuple[int | None, float]:
    """Samples of one epoch, and mean text tokens a sample: stated, or estimated from the files' characters."""
    samples, tokens = 0.0, 0.0
    for data in stage.data:
        if data.samples is None and (data.stream or streams(data.path)):
            size, text = _stream_size(data, Path(recipe.output) / "index")
        elif Path(data.path).is_file():
            conversations = read_conversations(data.path, data.images)
            size = len(conversations)
            characters = sum(len(message.content) for one in conversations for message in one.messages)
            text = characters / CHARACTERS_PER_TOKEN / max(size, 1)
        elif data.samples is not None:
            size, text = data.samples, float(data.text_tokens)
        else:
            return None, 0.0
        samples += data.weight * size
        tokens += data.weight * size * text
    mean = tokens / max(samples, 1)
    return round(samples), min(mean, recipe.model.max_length) if recipe.model else mean


def _stream_size(data: Data, index: Path) -> tuple[int, float]:
    """Rows of a stream, and the mean text tokens of its first hundred."""
    rows = open_rows(data.path, index)
    texts = [len(json.dumps(rows[number].value, default=str)) for number in range(min(len(rows), 100))]
    return len(rows), sum(texts) / max(len(texts), 1) / CHARACTERS_PER_TOKEN


def plan_table(plans: list[StagePlan]) -> list[RenderableType]:
    """Tables for people: the stages, and the parts of the final model."""
    table = Table(title="stages", title_justify="left")
    for column in ("stage", "trains", "parameters", "rate", "steps", "tokens", "memory"):
        table.add_column(column, justify="left" if column in ("stage", "trains") else "right", no_wrap=True)
    for one in plans:
        steps = "?" if one.steps is None else f"{one.steps:,}"
        tokens = "?" if one.tokens is None else _short(one.tokens)
        stage = (one.name, steps, tokens, f"{one.memory.total / 2**30:.1f} GiB")
        for number, group in enumerate(one.groups):
            name, *rest = stage if number == 0 else ("", "", "", "")
            table.add_row(name, group.name, _short(group.count), f"{group.lr:g}", *rest)
        table.add_row("", "of all", _short(one.accounting.total), "", "", "", "", style="dim")
        table.add_row("", "activated", _short(one.accounting.activated), "", "", "", "", style="dim", end_section=True)
    sparse = [one for one in plans if one.accounting.moe_layers]
    return [table, accounting_table((sparse or plans)[-1].accounting)]


def accounting_table(accounting: Accounting) -> Table:
    """Parameters by part, total and activated."""
    title = "parameters"
    if accounting.moe_layers:
        where = ", ".join(map(str, accounting.moe_layers))
        title += f" ({accounting.num_experts} experts, top-{accounting.top_k}, in layers {where})"
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("total", justify="right")
    table.add_column("activated", justify="right")
    for part, count in accounting.parts.items():
        activated = accounting.activated_experts if part == "experts" else count
        table.add_row(part, f"{count:,}", f"{activated:,}")
    table.add_section()
    table.add_row("language model", f"{accounting.language_total:,}", f"{accounting.language_activated:,}")
    table.add_row("all", f"{accounting.total:,}", f"{accounting.activated:,}")
    table.add_section()
    table.add_row("FLOPs a token, at 2,048 tokens", "", f"{accounting.flops_per_token(2048):,}")
    table.add_row("weights in bf16, bytes", f"{2 * accounting.total:,}", "")
    return table


def _short(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
