"""`arms.toml` over `study.toml` over `recipes/tiny.toml` -> a recipe for each arm and seed; the comparisons."""

import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_llava.recipe import Recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DEMO_RECIPE = HERE.parent / "recipes" / "tiny.toml"
SHARED = ("align", "instruct")
REFERENCE = "sparse"
_STAGE_III = "sparsify"
_FIRST_SEEDS = 3


@dataclass(frozen=True)
class Arm:
    """One way of training stage III.

    Attributes:
        seeds: how many, from 0; decided beforehand.
        stage: fields of the reference's stage III that it changes, `without` those that it removes (dotted).
        variant: `name` and arguments of something in `variants.py`.
        flops_of: train for as many FLOPs as this arm, instead of as many steps.
        headline: runs before the others, with all its seeds.
        trains: whether there is a stage III at all.
        share: of the conversations, for as many steps as all of them take once.
    """

    name: str
    label: str
    seeds: int
    stage: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    variant: dict[str, Any] = field(default_factory=dict)
    flops_of: str = ""
    headline: bool = False
    trains: bool = True
    share: float = 1.0

    def recipe(self, seed: int, steps: int | None = None) -> Recipe:
        """The shared stages and this arm's, named after it."""
        table = _study()
        table |= {"name": "study", "seed": seed, "output": str(Path(table["output"]) / f"seed-{seed}")}
        stage = _merged(table["stages"].pop(_STAGE_III), self.stage)
        for key in self.without:
            *parents, last = key.split(".")
            owner = stage
            for parent in parents:
                owner = owner[parent]
            del owner[last]
        if self.share < 1:
            stage["data"] = [{**data, "weight": self.share} for data in stage["data"]]
        if steps is not None:
            stage["steps"] = steps
        table["stages"][self.name] = {"starts_from": SHARED[-1], **stage}
        return Recipe.model_validate(table)

    def overrides(self) -> dict[str, Any]:
        """What it changes, as its results say it."""
        facts = {
            "stage": self.stage,
            "without": list(self.without),
            "variant": self.variant,
            "flops_of": self.flops_of,
            "share": self.share if self.share < 1 else None,
            "no_training": not self.trains,
        }
        return {key: value for key, value in facts.items() if value}

    def fingerprint(self) -> str:
        """Changes when what the arm trains does: its results are then no longer its own."""
        facts = [_study(), self.overrides()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def result(self, seed: int) -> Path:
        return RESULTS / f"{self.name}-{seed}.json"

    def read(self, seed: int) -> dict[str, Any] | None:
        """The result of a finished run of this arm as it is now; `None` if there is none."""
        path = self.result(seed)
        result = json.loads(path.read_text()) if path.exists() else {}
        return result if result.get("fingerprint") == self.fingerprint() else None


@dataclass(frozen=True)
class Comparison:
    """Arm minus another; `paper` is the paper's own difference in points, from `source`."""

    arm: str
    against: str
    paper: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Part:
    """One question of the study."""

    letter: str
    title: str
    comparisons: tuple[Comparison, ...]

    def arms(self) -> list[str]:
        return list(dict.fromkeys(name for one in self.comparisons for name in (one.against, one.arm)))


def read_arms() -> tuple[dict[str, Arm], list[Part]]:
    """All arms by name, and the parts."""
    table = tomllib.loads((HERE / "arms.toml").read_text())
    arms = {
        name: Arm(name=name, **{**one, "without": tuple(one.get("without", ()))}) for name, one in table["arms"].items()
    }
    parts = [
        Part(one["letter"], one["title"], tuple(Comparison(**each) for each in one["comparisons"]))
        for one in table["parts"]
    ]
    return arms, parts


def _study() -> dict[str, Any]:
    study = tomllib.loads((HERE / "study.toml").read_text())
    return {"model": tomllib.loads(DEMO_RECIPE.read_text())["model"], **study}


def runs(arms: dict[str, Arm]) -> list[tuple[Arm, int]]:
    """Every run, in an order in which what is finished early can be compared: all seeds of the headline's arms, three
    of the others that get five, three of the rest, the remaining seeds.
    """

    def turn(run: tuple[Arm, int]) -> tuple[int, int]:
        arm, seed = run
        if arm.headline:
            return 0, seed
        return (3 if seed >= _FIRST_SEEDS else 1 + int(arm.seeds == _FIRST_SEEDS)), seed

    return sorted(((arm, seed) for arm in arms.values() for seed in range(arm.seeds)), key=turn)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = (
            _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        )
    return merged
