"""The parts of the bench one after the other, into one report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moe_llava.bench import answer, block, growth, loading, train
from moe_llava.bench.machine import describe, matmul_rate, read_rate
from moe_llava.bench.models import SHAPES, SPARSE
from moe_llava.bench.peer import DeepSpeed
from moe_llava.model.encoding import Scheme, check_scheme

PARTS = ("block", "answer", "train", "growth", "loading")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What to measure, and how often.

    Args:
        tokens: rows of the block, and with `length` of the training step.
        shapes: of the answers, see `bench.models.SHAPES`.
        quantize: further answers of the first shape, in these schemes.
        deepspeed: Python of an environment with deepspeed; without, it is left out.
        budget: seconds after which a case makes no further round beyond three.
    """

    parts: tuple[str, ...] = PARTS
    rounds: int = 9
    device: str = "cpu"
    tokens: tuple[int, ...] = (1, 64, 576, 2048, 8192)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    directions: tuple[str, ...] = ("forward", "both")
    shapes: tuple[str, ...] = (*SPARSE, "llava-1.5-7b")
    quantize: tuple[Scheme, ...] = ()
    sparse_only: bool = False
    layers: int | None = None
    shape: block.Shape = field(default_factory=block.Shape)
    train_tokens: tuple[int, ...] = (2048, 8192)
    deepspeed: str | None = None
    budget: float = 60.0
    folder: Path = Path()

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ValueError: an unknown name, or a number below 1.
        """
        for given, known, what in (
            (self.parts, PARTS, "part"),
            (self.dtypes, DTYPES, "dtype"),
            (self.directions, ("forward", "both"), "direction"),
            (self.shapes, SHAPES, "shape"),
        ):
            for one in given:
                if one not in known:
                    raise ValueError(f"{one} is no {what} of the bench: use {', '.join(known)}.")
        for scheme in self.quantize:
            check_scheme(scheme)
        if min(self.rounds, *self.tokens, *self.train_tokens) < 1:
            raise ValueError("Rounds and numbers of tokens are at least 1.")
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: torch sees no GPU here.")


def run(options: Options, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure, and return everything as JSON takes it.

    Raises:
        ValueError: options that cannot be measured.
    """
    options.check()
    device = torch.device(options.device)
    deepspeed = None
    if options.deepspeed and {"block", "train"} & set(options.parts):
        deepspeed = DeepSpeed(options.deepspeed)
    report: dict[str, Any] = {"machine": describe(device), "rounds": options.rounds}
    if deepspeed is not None:
        report["deepspeed"] = deepspeed.versions
    progress("machine")
    rates = {name: matmul_rate(DTYPES[name], device).as_dict() for name in options.dtypes}
    report["machine"] |= {"matmul_per_second": rates, "read_per_second": read_rate(device).as_dict()}
    try:
        for part in options.parts:
            report[part] = _part(part, options, device, deepspeed, progress)
    finally:
        if deepspeed is not None:
            deepspeed.close()
    return report


def _part(
    part: str, options: Options, device: torch.device, deepspeed: DeepSpeed | None, progress: Callable[[str], None]
) -> Any:
    dtypes = [DTYPES[name] for name in options.dtypes]
    shared: dict[str, Any] = {"rounds": options.rounds, "progress": progress}
    if part == "block":
        cases = [
            block.Case(tokens, dtype, direction == "both")
            for dtype in dtypes
            for direction in options.directions
            for tokens in options.tokens
        ]
        return block.measure(options.shape, cases, device=device, deepspeed=deepspeed, budget=options.budget, **shared)
    if part == "answer":
        question = answer.Question(dtype=torch.bfloat16 if "bfloat16" in options.dtypes else dtypes[0])
        subjects = answer.subjects(options.shapes, options.quantize, options.sparse_only, options.layers)
        return answer.measure(subjects, question, device=device, **shared)
    if part == "train":
        batches = [
            train.Batch(max(1, tokens // 2048), min(tokens, 2048), dtype)
            for dtype in dtypes
            for tokens in options.train_tokens
        ]
        decoder = train.Decoder(options.shape)
        return train.measure(decoder, batches, device=device, deepspeed=deepspeed, budget=options.budget, **shared)
    if part == "growth":
        return growth.measure(dtype=dtypes[-1], device=device, **shared)
    return [
        loading.measure(options.shapes[0], quantize=scheme, folder=options.folder, layers=options.layers, **shared)
        for scheme in (None, *options.quantize)
    ]
