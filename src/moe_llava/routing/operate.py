"""Surgery from folder to folder: what it costs, and what it takes from the answers."""

import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from moe_llava.checkpoint.deltas import compress, expand, save_compressed
from moe_llava.checkpoint.folder import load_model, save_model
from moe_llava.generate.engine import Engine
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.accounting import account_model
from moe_llava.model.compose import load_state
from moe_llava.model.upcycle import noise_jump
from moe_llava.routing.compare import compare
from moe_llava.routing.importance import By, most_important, usage
from moe_llava.routing.score import Sample, Scorer, Scores
from moe_llava.routing.similarity import similarity
from moe_llava.routing.surgery import add_copies, clone, merge, most_similar_groups, num_experts, prune

SUMMARY = "surgery.json"
_TIMED_ROWS, _TIMED_RUNS = 8, 9


@dataclass(frozen=True)
class Operation:
    """What to do.

    Attributes:
        experts: of `prune` and `merge`: how many stay in each layer.
        by: of `prune`: what makes an expert important. Of `clone` with `add`: which experts are copied.
        times, add: of `clone`: copies of every expert, or this many copies of single ones.
        rank, share: of `rebase`: rank of the differences, or the share of their numbers to keep.
    """

    name: Literal["prune", "merge", "clone", "rebase"]
    experts: int | None = None
    by: By = "load"
    times: int | None = None
    add: int | None = None
    rank: int | None = None
    share: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Operated:
    """The new model; `tensors` is its compressed form where it has one."""

    model: MoeLlavaForConditionalGeneration
    tensors: dict[str, Tensor] | None = None

    @property
    def weight_bytes(self) -> int:
        """What the weights take on the disk."""
        if self.tensors is not None:
            return sum(tensor.nbytes for tensor in self.tensors.values())
        return sum(parameter.nbytes for parameter in self.model.parameters())


def apply(operation: Operation, calibration: Scorer) -> Operated:
    """Operate on the model of `calibration`, whose samples tell usage and likeness. The model itself stays.

    Raises:
        ValueError: impossible numbers.
    """
    model = calibration.engine.model
    if operation.name == "rebase":
        tensors = compress(model, rank=operation.rank, share=operation.share)
        rebased = load_state(model.config, expand(tensors), dtype=model.dtype)
        rebased.generation_config = model.generation_config
        return Operated(rebased.to(model.device), tensors)  # type: ignore[arg-type]
    if operation.name == "clone":
        if operation.add is None:
            return Operated(clone(model, operation.times or 2))
        return Operated(add_copies(model, most_important(usage(calibration), operation.by, operation.add)))
    if operation.experts is None:
        raise ValueError(f"{operation.name}: say how many experts stay in each layer (--experts).")
    if operation.name == "prune":
        keep = most_important(usage(calibration), operation.by, operation.experts, operation.seed)
        return Operated(prune(model, keep))
    alike = similarity(calibration)
    groups = {layer: most_similar_groups(one.cka, operation.experts) for layer, one in alike.items()}
    load = {layer: one.importance("load", torch.Generator()) for layer, one in usage(calibration).items()}
    return Operated(merge(model, groups, load))


@dataclass(frozen=True)
class Measurement:
    """One model's size, speed and scores; `milliseconds`: of a pass over a few answers, see `time_passes`."""

    parameters: int
    activated: int
    weight_bytes: int
    milliseconds: float
    scores: Scores

    def as_dict(self) -> dict[str, float]:
        figures: dict[str, float] = {
            "parameters": self.parameters,
            "activated_parameters": self.activated,
            "weight_bytes": self.weight_bytes,
            "milliseconds": round(self.milliseconds, 2),
            "log_probability": float(self.scores.log_probability.mean()),
        }
        return figures | ({} if self.scores.right is None else {"accuracy": float(self.scores.right.mean())})


def measure(scorer: Scorer, weight_bytes: int, milliseconds: float, title: str) -> Measurement:
    """Score a model and count its parameters."""
    account = account_model(scorer.engine.model)
    return Measurement(account.total, account.activated, weight_bytes, milliseconds, scorer.score(title))


@torch.inference_mode()
def time_passes(scorers: Sequence[Scorer]) -> list[float]:
    """Median milliseconds of each model's pass through projector and decoder, over the eight longest answers.

    The models take turns, so that what else the machine does slows all of them alike.
    """
    passes = [_timed_pass(scorer) for scorer in scorers]
    times = [[one() for one in passes] for _ in range(_TIMED_RUNS + 1)]
    return [1000 * statistics.median(column) for column in zip(*times[1:], strict=True)]


def _timed_pass(scorer: Scorer) -> Callable[[], float]:
    model: Any = scorer.engine.model
    chosen, batch = scorer.batches[0]
    rows = min(_TIMED_ROWS, len(chosen))
    pictures = sum(len(scorer.samples[index].images) for index in chosen[:rows])
    given = {name: batch[name][:rows].to(model.device) for name in ("input_ids", "attention_mask")}
    if pictures:
        given["image_features"] = batch["image_features"][:pictures].to(model.device)

    def seconds() -> float:
        started = time.perf_counter()
        model.model(**given, use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return seconds


def halves(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to choose experts on, and others to score with; those that share an image stay together.

    Raises:
        ValueError: there is nothing to divide.
    """
    groups = list(dict.fromkeys(sample.group for sample in samples))
    first = set(groups[::2])
    chosen, rest = [one for one in samples if one.group in first], [one for one in samples if one.group not in first]
    if not rest:
        raise ValueError("The data holds one image or question: give more, some to choose by and others to score with.")
    return chosen, rest


@dataclass(frozen=True)
class Recalibration:
    """Training of the routers alone, on conversations, by the same machinery as every stage."""

    data: str
    images: str | None = None
    steps: int = 100
    lr: float = 1e-3
    batch_size: int = 16


def operate(
    source: str | Path,
    out: Path,
    operation: Operation,
    samples: Sequence[Sample],
    *,
    recalibration: Recalibration | None = None,
    console: Console,
) -> dict[str, Any]:
    """Write the model of `source`, operated on, to `out`; score both on the same answers and return the figures.

    Raises:
        ValueError: `out` is in use, or the operation is impossible.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists: choose another folder.")
    chosen_by, scored = halves(samples)
    engine = Engine.load(source)
    whole = Scorer(engine, scored)
    operated = apply(operation, Scorer(engine, chosen_by, generate=False))
    jump = noise_jump(engine.model, operated.model)
    out.mkdir(parents=True, exist_ok=True)
    model = operated.model
    if recalibration:
        model = recalibrate(model, engine, out, recalibration, operation.seed, console)
    if operated.tensors is None:
        save_model(out, model, engine.processor)
    else:
        routers = {name: tensor for name, tensor in model.state_dict().items() if name in operated.tensors}
        save_compressed(out, model, engine.processor, operated.tensors | routers)
    smaller = Scorer(Engine.load(out), scored)
    times = time_passes([whole, smaller])
    before = measure(whole, _weight_bytes(Path(source)), times[0], "before")
    after = measure(smaller, _weight_bytes(out), times[1], "after")
    difference = compare(before.scores, after.scores, scored)
    figures = {
        "operation": {key: value for key, value in vars(operation).items() if value is not None},
        "recalibration": vars(recalibration) if recalibration else None,
        "experts": {"before": num_experts(engine.model), "after": num_experts(model)},
        "largest_change_of_a_logit": jump,
        "scored_answers": len(scored),
        "before": before.as_dict(),
        "after": after.as_dict(),
        "difference": {name: one.as_dict() for name, one in difference.items()},
    }
    (out / SUMMARY).write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def recalibrate(
    model: MoeLlavaForConditionalGeneration,
    engine: Engine,
    out: Path,
    how: Recalibration,
    seed: int,
    console: Console,
) -> MoeLlavaForConditionalGeneration:
    """Train the routers of `model` and nothing else; the log stays in `out/recalibration.jsonl`.

    Raises:
        ValueError: there is one expert, so nothing to choose, or the data is wrong.
    """
    from moe_llava.recipe import Data, Language, Model, Recipe, Stage, Trainable
    from moe_llava.train.folder import METRICS
    from moe_llava.train.run import train

    if num_experts(model) == 1:
        raise ValueError("One expert is left: there is nothing to choose, and no router to recalibrate.")
    work = out / ".recalibration"
    shutil.rmtree(work, ignore_errors=True)
    start = work / "start"
    start.mkdir(parents=True)
    save_model(start, model, engine.processor)
    template = str(engine.processor.chat_template)
    stage = Stage(
        train={"router": Trainable(lr=how.lr)},
        data=(Data(path=how.data, images=how.images),),
        starts_from=str(start),
        steps=how.steps,
        log_every=min(10, how.steps),
        batch_size=how.batch_size,
    )
    described = Model(language=Language(config={"model_type": model.config.text_config.model_type}), template=template)
    recipe = Recipe(name="surgery", output=str(work), seed=seed, model=described, stages={"recalibrate": stage})
    try:
        train(recipe, console=console)
        (work / "recalibrate" / METRICS).replace(out / "recalibration.jsonl")
        return load_model(work / "recalibrate", dtype=model.dtype)[0].eval()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
