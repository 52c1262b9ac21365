"""The end of a recipe: the same questions to each of its models, side by side in one table."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from moe_llava.evaluate.processes import Processes
from moe_llava.evaluate.questions import Question, accuracy, read_questions
from moe_llava.evaluate.runner import Model, answer_task, task_of_questions
from moe_llava.recipe import Recipe

CHANCE = "chance.json"


def write_report(recipe: Recipe, console: Console) -> dict[str, Any]:
    """Answer the recipe's questions with its models; write answers under `report/` and figures to `report.json`.

    Answers that are there already are not asked for again. A dot in a set's name nests it:
    `emoji.unseen_style` is `report["emoji"]["unseen_style"]`. Each set has one accuracy per model and `n`, the same by
    `kinds`, and the `chance` of each kind where a `chance.json` lies beside the questions.
    """
    if recipe.report is None:
        return {}
    report: dict[str, Any] = {}
    for name, entry in recipe.report.questions.items():
        questions = read_questions(entry.path, entry.images)
        results = {}
        for label in recipe.report.models:
            answers = _answers(recipe, label, name, questions)
            results[label] = accuracy(questions, answers)
        _nest(report, name, _side_by_side(results, _chance(Path(entry.path))))
    path = Path(recipe.output) / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    console.print(report_table(report, list(recipe.report.models)))
    return report


def _answers(recipe: Recipe, label: str, name: str, questions: list[Question]) -> list[str]:
    assert recipe.report is not None
    model = Model(recipe.folder(recipe.report.models[label]), Processes())
    task = task_of_questions(questions, Path(name), max_new_tokens=recipe.report.max_new_tokens)
    return answer_task(
        task,
        model,
        Path(recipe.output) / "report" / f"{label}.{name}.jsonl",
        Processes(),
        title=f"{recipe.name} {label} {name}",
        restart=True,
    )[0]


def _chance(questions: Path) -> dict[str, float]:
    path = questions.parent / CHANCE
    return json.loads(path.read_text()).get(questions.stem, {}) if path.is_file() else {}


def _side_by_side(results: dict[str, dict[str, Any]], chance: dict[str, float]) -> dict[str, Any]:
    first = next(iter(results.values()))
    merged: dict[str, Any] = {label: result["accuracy"] for label, result in results.items()} | {"n": first["n"]}
    if "kinds" in first:
        merged["kinds"] = {
            kind: {label: result["kinds"][kind]["accuracy"] for label, result in results.items()}
            | {"n": first["kinds"][kind]["n"]}
            | ({"chance": chance[kind]} if kind in chance else {})
            for kind in first["kinds"]
        }
    return merged


def _nest(report: dict[str, Any], name: str, value: dict[str, Any]) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        report = report.setdefault(parent, {})
    report[last] = value


def report_table(report: dict[str, Any], models: list[str]) -> Table:
    """One row a set of questions and kind; accuracies in percent."""
    table = Table(title="accuracy, %", title_justify="left")
    for column in ("questions", *models, "chance", "n"):
        table.add_column(column, justify="left" if column == "questions" else "right")

    def add(name: str, entry: dict[str, Any]) -> None:
        if "n" not in entry:
            for child, value in entry.items():
                add(f"{name} {child}".strip(), value)
            return
        chance = f"{100 * entry['chance']:.1f}" if "chance" in entry else ""
        table.add_row(name, *(f"{100 * entry[model]:.1f}" for model in models), chance, f"{entry['n']:,}")
        for kind, value in entry.get("kinds", {}).items():
            add(f"  {kind}", value)

    add("", report)
    return table
