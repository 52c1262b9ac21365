"""A whole experiment as frozen data <- TOML <- `--dotted.key value` overrides."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

AspectRatio = Literal["square", "pad"]
Group = Literal["projector", "words", "language_model", "vision_tower", "experts", "router", "ffn"]


class Part(BaseModel):
    """Base of every table of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Language(Part):
    """The decoder: `path` (folder or hub id of a causal language model), or `config` alone to start from scratch.

    Beside a `path`, `config` states the shape, so that a dry run needs no weights; loading checks it.
    """

    path: str | None = None
    config: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_something(self) -> "Language":
        if self.path is None and "model_type" not in self.config:
            raise ValueError("give `path`, or `config` with a `model_type` to start from scratch")
        return self


class Tokenizer(Part):
    """`path`, or train one of `vocab_size` on the text of `train_on`. By default the language model's own."""

    path: str | None = None
    train_on: tuple[str, ...] = ()
    vocab_size: int = Field(default=8192, ge=260)


class Vision(Part):
    """The tower: `path` (folder or hub id); `config` and `image_size` state its shape for a dry run without weights.

    `feature_layer`: a hidden state, or a list of them, whose channels lie side by side; by default the last output.
    `aspect_ratio`: `pad` first pads an image to a square, `square` does not; by default as the tower's own processor.
    """

    path: str
    config: dict[str, Any] = {}
    image_size: int | None = Field(default=None, ge=1)
    feature_layer: int | Annotated[list[int], Field(min_length=1)] | None = None
    prefix_tokens: int | None = Field(default=None, ge=0)
    aspect_ratio: AspectRatio | None = None


class Model(Part):
    language: Language
    tokenizer: Tokenizer = Tokenizer()
    vision: Vision | None = None
    projector: str = "mlp2x_gelu"
    template: str = "vicuna"
    max_length: int = Field(default=2048, ge=8)


class Data(Part):
    """One file of conversations; `weight` is its sampling rate: 0.5 reads half of it, 2 reads it twice an epoch.

    `samples` and `text_tokens` (mean of a sample) state its size for a dry run without the file. `stream` reads rows as
    they are trained on instead of all at first; Parquet, tar shards, patterns and Hugging Face data sets always are.
    """

    path: str
    stream: bool = False
    images: str | None = None
    weight: float = Field(default=1.0, gt=0)
    samples: int | None = Field(default=None, ge=1)
    text_tokens: int = Field(default=0, ge=0)


class Sparsify(Part):
    """Copy feed-forward networks into experts before the stage begins."""

    num_experts: int = Field(default=4, ge=1)
    top_k: int = Field(default=2, ge=1)
    layers: Literal["alternate", "first_half", "second_half", "all"] | tuple[int, ...] = "alternate"
    normalize_gates: bool = True
    balance_coefficient: float = Field(default=0.01, ge=0)
    z_loss_coefficient: float = Field(default=0.0, ge=0)
    noise: float = Field(default=0.0, ge=0)


class Trainable(Part):
    """How one group of parameters trains: its learning rate, and a LoRA rank to train it through adapters."""

    lr: float = Field(gt=0)
    lora_rank: int | None = Field(default=None, ge=1)
    lora_alpha: int | None = Field(default=None, gt=0)


def _rate(value: Any) -> Any:
    return {"lr": value} if isinstance(value, (int, float)) else value


class Questions(Part):
    """Questions with known answers (JSONL)."""

    path: str
    images: str | None = None


class Evaluation(Questions):
    """Questions that the model answers every `every` steps while it trains."""

    every: int = Field(ge=1)
    limit: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=16, ge=1)


class Stage(Part):
    """One stage of training.

    Attributes:
        train: group -> learning rate, or a table with `lr` and `lora_rank`. Everything else is frozen.
        template, aspect_ratio: of this stage, where they differ from the model's.
        starts_from: an earlier stage of this recipe, or a folder; by default the stage before.
        steps: optimizer steps; where given, `epochs` does not count.
        batch_size: samples of one optimizer step, over all devices.
        micro_batch_size: samples of one forward pass on one device; accumulation fills the rest.
        workers: processes that read ahead, on each device.
        evaluate: questions to answer while it trains; the share answered exactly is in the log as `accuracy`.
    """

    train: dict[Group, Annotated[Trainable, BeforeValidator(_rate)]]
    data: tuple[Data, ...] = Field(min_length=1)
    starts_from: str | None = None
    sparsify: Sparsify | None = None
    template: str | None = None
    aspect_ratio: AspectRatio | None = None
    batch_size: int = Field(default=128, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    group_by_length: bool = True
    on_error: Literal["raise", "skip"] = "raise"
    log_every: int = Field(default=10, ge=1)
    save_every: int = Field(default=500, ge=1)
    workers: int = Field(default=0, ge=0)
    evaluate: Evaluation | None = None

    @model_validator(mode="after")
    def _is_trainable(self) -> "Stage":
        if not self.train:
            raise ValueError("`train` is empty: name at least one group, for example train = { projector = 1e-3 }")
        if self.epochs is None and self.steps is None:
            raise ValueError("give `epochs`, or `steps`")
        return self


class Distributed(Part):
    """How the processes that `torchrun` or `accelerate launch` starts share a model.

    Attributes:
        layout: `ddp`: each holds all of it; `fsdp`: each holds a share of every layer (FSDP2); `fsdp_ep`: that, and
            each expert lives on one process of a group, to which its tokens travel.
        expert_parallel: processes of such a group; by default as many as divide both experts and processes.
        replicas: whole copies that FSDP keeps, usually one a host: then only gradients travel between hosts.
        cpu_offload: FSDP keeps its shares, gradients and optimizer in the host's memory.
    """

    layout: Literal["ddp", "fsdp", "fsdp_ep"] = "ddp"
    expert_parallel: int | None = Field(default=None, ge=1)
    replicas: int = Field(default=1, ge=1)
    cpu_offload: bool = False

    @model_validator(mode="after")
    def _fits_its_layout(self) -> "Distributed":
        if self.layout == "ddp" and (self.replicas > 1 or self.cpu_offload):
            raise ValueError('`replicas` and `cpu_offload` need layout = "fsdp" or "fsdp_ep"')
        if self.layout != "fsdp_ep" and self.expert_parallel is not None:
            raise ValueError('`expert_parallel` needs layout = "fsdp_ep"')
        return self


class Report(Part):
    """After the last stage: answer `questions` with each of `models` (label -> stage) and write `report.json`."""

    models: dict[str, str]
    questions: dict[str, Questions]
    max_new_tokens: int = Field(default=16, ge=1)


class Recipe(Part):
    """A model through its stages. `model` may be left out where every stage goes back to a checkpoint's folder: then
    the checkpoint's own template and preparation of pixels stay, but for what a stage says.
    """

    name: str
    output: str
    seed: int = 0
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    distributed: Distributed = Distributed()
    model: Model | None = None
    stages: dict[str, Stage] = Field(min_length=1)
    report: Report | None = None

    @model_validator(mode="after")
    def _refers_to_what_exists(self) -> "Recipe":
        if self.model is None and (homeless := [name for name in self.stages if self.origin(name) is None]):
            raise ValueError(f"give `model`, or stages.{homeless[0]}.starts_from with the folder of a checkpoint")
        for label, stage in (self.report.models if self.report else {}).items():
            if stage not in self.stages:
                raise ValueError(f"report.models.{label} = {stage!r} is no stage: stages are {', '.join(self.stages)}")
        return self

    def starting_point(self, stage: str) -> str | None:
        """What a stage starts from: an earlier stage's name, a folder, or `None` for the composed parts."""
        names = list(self.stages)
        position = names.index(stage)
        explicit = self.stages[stage].starts_from
        if explicit is not None:
            return explicit
        return names[position - 1] if position else None

    def origin(self, stage: str) -> str | None:
        """The checkpoint that a stage goes back to; `None` for the composed parts, or for a circle."""
        seen: set[str] = set()
        start: str | None = stage
        while start in self.stages and start not in seen:
            seen.add(start)
            start = self.starting_point(start)
        return None if start in self.stages else start

    def folder(self, stage: str) -> Path:
        return Path(self.output) / stage

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude_defaults=True))


def load_recipe(path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Read a recipe. `overrides` map dotted keys (`stages.align.batch_size`) to TOML values, or bare strings.

    Raises:
        ValueError: the file is no TOML, or a field is missing, unknown or wrong; each is named.
    """
    try:
        table = tomllib.loads(Path(path).read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from error
    for key, value in (overrides or {}).items():
        _override(table, key, value)
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ValueError(f"{path} is not a valid recipe:\n" + "\n".join(lines)) from error


def _override(table: dict[str, Any], key: str, value: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(table, dict) or not isinstance(table.setdefault(parent, {}), dict):
            raise ValueError(f"--{key}: {parent!r} is not a table of the recipe.")
        table = table[parent]
    try:
        table[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = value
