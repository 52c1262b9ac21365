"""What `moe-llava eval` does: all benchmarks, or one's own questions, one after the other, and what it shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from moe_llava.checkpoint.folder import read_config
from moe_llava.checkpoint.published import local_checkpoint
from moe_llava.evaluate import table
from moe_llava.evaluate.benchmarks import Preprocessing, find
from moe_llava.evaluate.judge import Judge
from moe_llava.evaluate.processes import Processes
from moe_llava.evaluate.questions import read_questions
from moe_llava.evaluate.runner import Model, Outcome, Task, run, task_of_benchmark, task_of_questions
from moe_llava.evaluate.scores.report import columns
from moe_llava.model.accounting import account


@dataclass(frozen=True)
class Settings:
    """How to ask; None stands for what the benchmark's official scripts do."""

    limit: int | None = None
    max_new_tokens: int | None = None
    batch_size: int = 256
    preprocessing: Preprocessing | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_runs: int = 1
    quantize: str | None = None

    def judge(self) -> Judge | None:
        """The judge, if one is named.

        Raises:
            ValueError: it is named by half, or its client is not installed.
        """
        if not (self.judge_url or self.judge_model):
            return None
        if not (self.judge_url and self.judge_model):
            raise ValueError("a judge needs both --judge-url and --judge-model")
        return Judge(self.judge_url, self.judge_model, self.judge_runs)


def evaluate(
    model: str | Path,
    out: Path,
    settings: Settings,
    *,
    benchmarks: str | None = None,
    data: Path | None = None,
    questions: str | Path | None = None,
    images: str | Path | None = None,
) -> list[Outcome]:
    """Answer and score; each benchmark into a folder of its own in `out`, one's own questions into `out` itself.

    All files are read before the first question is asked, so that a missing one is told at once. Beside several
    benchmarks lies `table.md`, in the published layout. Of several processes, only the first has outcomes.

    Raises:
        ValueError: a file is missing or wrong, or `out` holds answers of another run.
    """
    processes = Processes()
    opened = Model(model, processes, settings.quantize)
    tasks: list[tuple[Task, Path]] = []
    if questions is not None:
        items = read_questions(questions, images)[: settings.limit]
        tasks.append((task_of_questions(items, Path(questions), max_new_tokens=settings.max_new_tokens), out))
    if benchmarks is not None:
        assert data is not None
        judge = settings.judge()
        for benchmark in find(benchmarks):
            task = task_of_benchmark(
                benchmark,
                data,
                limit=settings.limit,
                max_new_tokens=settings.max_new_tokens,
                preprocessing=settings.preprocessing,
                judge=judge,
            )
            tasks.append((task, out / benchmark.name))
    results = [run(task, opened, folder, processes, batch_size=settings.batch_size) for task, folder in tasks]
    outcomes = [result for result in results if result]
    if benchmarks is not None and outcomes:
        (out / "table.md").write_text(table.markdown([line_of(outcomes, model)]), encoding="utf-8")
    return outcomes


def line_of(outcomes: Sequence[Outcome], model: str | Path) -> table.Line:
    """Our row of the published table."""
    activated = account(read_config(local_checkpoint(model))).activated
    size = f"{activated / 1e9:.1f}B" if activated >= 5e7 else f"{activated / 1e6:.1f}M"
    figures = {
        outcome.scores["benchmark"]: outcome.scores["figure"]
        for outcome in outcomes
        if outcome.scores["figure"] is not None
    }
    return table.Line(str(model), size, figures)


def show(outcomes: Sequence[Outcome], model: str | Path, console: Console) -> None:
    """Each scorer's own table, where every figure comes from, and the published table if a column of it was run."""
    for outcome in outcomes:
        if outcome.report:
            console.print(f"\n{outcome.title}", style="bold", markup=False, highlight=False)
            console.print(outcome.report.text(), markup=False, highlight=False)
    say = partial(console.print, markup=False, highlight=False)
    say()
    say(columns([["benchmark", "figure", "n", "seconds"], *map(_row, outcomes)]))
    say()
    for outcome in outcomes:
        say(f"{outcome.title}: {provenance(outcome.scores)}")
    if any(outcome.scores["benchmark"] in table.COLUMNS for outcome in outcomes):
        say()
        say(columns(table.rows([line_of(outcomes, model)])))


def _row(outcome: Outcome) -> list[str]:
    scores = outcome.scores
    figure = table.ABSENT if scores["figure"] is None else f"{scores['figure']:.2f}"
    return [outcome.title, figure, f"{scores['n']:,}", f"{scores['seconds']:.1f}"]


def provenance(scores: dict[str, Any]) -> str:
    """How a figure came about."""
    facts = [scores["split"], scores["scorer"], f"images as {scores['preprocessing']}"]
    facts += [f"template {scores['template']}", f"at most {scores['max_new_tokens']} tokens"]
    return "; ".join([*facts, scores["note"]] if "note" in scores else facts)
