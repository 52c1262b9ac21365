"""Official scores of the benchmarks from recorded predictions: pure rules, no model, no network, no judge.

`score` gives the figures; `write_upload` writes what a test server or an official tool takes. `data` is always a
folder with the benchmark's own files under their official names. Wherever the official code lets a missing, doubled
or misplaced prediction lower the score, these raise ValueError.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from moe_llava.evaluate.scores import (
    easy_vqa,
    gqa,
    llava_bench,
    mmbench,
    mme,
    mmvet,
    pope,
    scienceqa,
    seed,
    textvqa,
    vizwiz,
    vqav2,
)
from moe_llava.evaluate.scores.report import ScoreReport

__all__ = ["SCORERS", "WRITERS", "ScoreReport", "score", "write_upload"]

Entry = TypeVar("Entry")

SCORERS: Mapping[str, Callable[[Path, Path], ScoreReport]] = {
    "vqav2": vqav2.score,
    "gqa": gqa.score,
    "vizwiz": vizwiz.score,
    "scienceqa": scienceqa.score,
    "textvqa": textvqa.score,
    "pope": pope.score,
    "mme": mme.score,
    "mmbench": mmbench.score,
    "mmbench_cn": mmbench.score_cn,
    "mmvet": mmvet.score,
    "seed": seed.score,
    "llava_bench": llava_bench.score,
    "easy_vqa": easy_vqa.score,
    "emoji_pope": pope.score,
}

WRITERS: Mapping[str, Callable[[Path, Path, Path], None]] = {
    "vqav2": vqav2.write_upload,
    "gqa": gqa.write_upload,
    "vizwiz": vizwiz.write_upload,
    "mme": mme.write_upload,
    "mmbench": mmbench.write_upload,
    "mmbench_cn": mmbench.write_upload_cn,
    "mmvet": mmvet.write_upload,
    "seed": seed.write_upload,
}


def score(name: str, predictions: Path, data: Path) -> ScoreReport:
    """Score the predictions of one benchmark.

    Args:
        name: a key of `SCORERS`.
        predictions: the answer file (JSON lines with `question_id` and `text`); for `mmvet` and `llava_bench` what
            the judge wrote, as they are scored by one.
        data: the folder with the benchmark's own files.

    Raises:
        ValueError: the name is unknown, a file is absent or malformed, or ids are missing, doubled or misaligned.
    """
    return _entry(SCORERS, name, "scored")(predictions, data)


def write_upload(name: str, predictions: Path, data: Path, out: Path) -> None:
    """Write to `out` the file (for `mme`, the folder) that a benchmark's server or official tool takes.

    Raises:
        ValueError: as `score`, or the benchmark takes no upload.
    """
    _entry(WRITERS, name, "uploaded")(predictions, data, out)


def _entry(registry: Mapping[str, Entry], name: str, done: str) -> Entry:
    if name not in registry:
        raise ValueError(f"{name!r} is not a benchmark that can be {done}; choose from {', '.join(registry)}")
    return registry[name]
