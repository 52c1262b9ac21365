"""Part (b) once more, on SmolLM2-135M: sparse against its dense twin, question by question.

A run's answers -> `studies/smol/seed-N.json`. The runs come in the order of their seeds, each with its dense twin and
its report; the recipe's head has the commands:

python studies/smol.py runs/smol runs/smol-1
python studies/report.py
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_llava.evaluate.paired import paired_bootstrap
from moe_llava.evaluate.questions import Question, is_right, read_questions
from moe_llava.evaluate.scores.files import read_answers
from moe_llava.recipe import load_recipe
from moe_llava.train.folder import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "studies" / "smol"
ALL = "all"
RECIPE = ROOT / "recipes" / "smollm2-135m.toml"


def read_results() -> list[dict[str, Any]]:
    """What is known, by seed."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("seed-*.json"))]


def measure(run: Path, seed: int) -> dict[str, Any]:
    """Accuracies of both models, and the paired difference, for each kind of question of each set.

    Raises:
        FileNotFoundError: the run has no report.
    """
    report = load_recipe(RECIPE).report
    assert report is not None
    sets = {}
    for name, entry in report.questions.items():
        questions = read_questions(entry.path, entry.images)
        texts = {
            label: [row["text"] for row in read_answers(run / "report" / f"{label}.{name}.jsonl")]
            for label in report.models
        }
        sets[name] = {
            kind: compare(questions, texts["dense"], texts["sparse"], kind)
            for kind in (ALL, *dict.fromkeys(one.kind for one in questions))
        }
    stages = {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("*/stage.json"))}
    known = {stage: {key: of[key] for key in ("steps", "samples", "seconds")} for stage, of in stages.items()}
    return {"seed": seed, "sets": sets, "stages": known}


def compare(questions: Sequence[Question], dense: Sequence[str], sparse: Sequence[str], kind: str) -> dict[str, Any]:
    """Of a kind of question, or all: n, accuracies, and sparse minus dense with a bootstrap over the things shown."""
    asked = [
        (one.image.stem if one.image else "", is_right(left, one.accepted), is_right(right, one.accepted))
        for one, left, right in zip(questions, dense, sparse, strict=True)
        if kind in (ALL, one.kind)
    ]
    interval = paired_bootstrap([right - left for _, left, right in asked], groups=[thing for thing, _, _ in asked])
    return {
        "n": len(asked),
        "dense": sum(left for _, left, _ in asked) / len(asked),
        "sparse": sum(right for _, _, right in asked) / len(asked),
        "difference": {"mean": interval.mean, "low": interval.low, "high": interval.high},
    }


def main(runs: Sequence[str]) -> None:
    if not runs:
        sys.exit("Name the runs' folders, by seed: python studies/smol.py runs/smol runs/smol-1")
    RESULTS.mkdir(exist_ok=True)
    for seed, run in enumerate(runs):
        path = RESULTS / f"seed-{seed}.json"
        write_json(path, measure(Path(run), seed))
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
