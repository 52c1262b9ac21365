"""What each benchmark is: its files, how it is asked, and which of its figures the papers print."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_llava.evaluate import readers
from moe_llava.evaluate.readers import Asked

Preprocessing = Literal["model", "crop"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        title: the head of its column in the papers' tables.
        folders: names that its folder has in LLaVA's layout, the first being the official one.
        read: folder -> questions, with the prompts of the official scripts.
        max_new_tokens: the longest answer that the official scripts allow.
        preprocessing: "model": images are prepared as the checkpoint says. "crop": short side scaled, centre cut out,
            which is what MoE-LLaVA's scripts do for three benchmarks whatever the checkpoint says.
        scorer: which variant of the official rules gives the figure.
        figure: the scorer's figures -> the one of the table.
        judged: whether a judge model must grade the answers first.
        upload: name of the file for the benchmark's server or official tool, if there is one.
        uploads_public: whether that file is written of a split whose truth is public, too.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    read: Callable[[Path], Asked]
    scorer: str
    figure: Callable[[Mapping[str, Any]], float]
    max_new_tokens: int = 128
    preprocessing: Preprocessing = "model"
    judged: bool = False
    upload: str | None = None
    uploads_public: bool = True

    def folder(self, data: Path) -> Path:
        """The benchmark's folder: one of `folders` inside `data`, or `data` itself.

        Raises:
            ValueError: there is no such folder.
        """
        if not data.is_dir():
            raise ValueError(f"{data} is not a folder; give --data the folder with the benchmarks' own files")
        return next((data / name for name in self.folders if (data / name).is_dir()), data)

    def uploads(self, asked: Asked) -> bool:
        """Whether answers to these questions are handed in as a file."""
        return self.upload is not None and (self.uploads_public or not asked.scored)


def _accuracy(figures: Mapping[str, Any]) -> float:
    return figures["accuracy"]


_ALL = (
    Benchmark(
        "vqav2",
        "VQAv2",
        ("vqav2",),
        readers.vqav2,
        "vqaEval.py, answers normalised for upload first",
        _accuracy,
        upload="upload.json",
        uploads_public=False,
    ),
    Benchmark("gqa", "GQA", ("gqa",), readers.gqa, "eval.py, string equality", _accuracy, upload="upload.json"),
    Benchmark(
        "vizwiz",
        "VizWiz",
        ("vizwiz",),
        readers.vizwiz,
        "VizWiz VQA accuracy, answers normalised for upload first",
        _accuracy,
        upload="upload.json",
        uploads_public=False,
    ),
    Benchmark(
        "scienceqa",
        "SQA-IMG",
        ("scienceqa",),
        readers.scienceqa,
        "eval_science_qa.py, questions with an image",
        lambda figures: figures["image_accuracy"],
        max_new_tokens=1024,
        preprocessing="crop",
    ),
    Benchmark(
        "textvqa",
        "T-VQA",
        ("textvqa",),
        readers.textvqa,
        "m4c TextVQAAccuracyEvaluator, prompts with OCR tokens",
        _accuracy,
    ),
    Benchmark(
        "pope",
        "POPE",
        ("pope",),
        readers.pope,
        "eval_pope.py, mean F1 of the three sets",
        lambda figures: figures["f1"],
    ),
    Benchmark(
        "mme",
        "MME",
        ("MME", "mme"),
        readers.mme,
        "calculation.py, perception",
        lambda figures: figures["perception"],
        upload="upload",
    ),
    Benchmark(
        "mmbench",
        "MM-Bench",
        ("mmbench",),
        readers.mmbench,
        "VLMEvalKit circular, exact matching",
        lambda figures: figures["circular"],
        max_new_tokens=1024,
        upload="upload.xlsx",
    ),
    Benchmark(
        "mmbench_cn",
        "MM-Bench-CN",
        ("mmbench_cn", "mmbench"),
        readers.mmbench_cn,
        "VLMEvalKit circular, exact matching",
        lambda figures: figures["circular"],
        max_new_tokens=1024,
        upload="upload.xlsx",
    ),
    Benchmark(
        "mmvet",
        "MM-Vet",
        ("mm-vet", "mmvet"),
        readers.mmvet,
        "mm-vet_evaluator",
        lambda figures: figures["total"],
        max_new_tokens=1024,
        preprocessing="crop",
        judged=True,
        upload="upload.json",
    ),
    Benchmark(
        "seed",
        "SEED",
        ("seed_bench", "seed"),
        readers.seed,
        "convert_seed_for_submission.py",
        _accuracy,
        upload="upload.jsonl",
    ),
    Benchmark(
        "llava_bench",
        "LLaVA-W",
        ("llava-bench-in-the-wild", "llava_bench"),
        readers.llava_bench,
        "summarize_gpt_review.py",
        lambda figures: figures["relative"],
        max_new_tokens=1024,
        preprocessing="crop",
        judged=True,
    ),
    Benchmark(
        "easy_vqa",
        "easy-VQA",
        ("easy_vqa",),
        readers.easy_vqa,
        "exact match",
        _accuracy,
        max_new_tokens=16,
    ),
    Benchmark(
        "emoji_pope",
        "emoji-POPE",
        ("emoji_pope",),
        readers.pope,
        "eval_pope.py, mean F1 of the three sets",
        lambda figures: figures["f1"],
        max_new_tokens=16,
    ),
)

BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def find(names: str) -> list[Benchmark]:
    """Benchmarks by a comma-separated list of names.

    Raises:
        ValueError: a name is unknown.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown or not wanted:
        raise ValueError(
            f"no benchmark {', '.join(map(repr, unknown or [names]))}; choose from {', '.join(BENCHMARKS)}"
        )
    return [BENCHMARKS[name] for name in dict.fromkeys(wanted)]
