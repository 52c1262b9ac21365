"""Run what is missing of the study, and write `docs/study.md`.

python studies/run.py --jobs 2                    all arms and seeds of arms.toml; a second call goes on
python studies/run.py --only sparse,dense         some arms

A run trains one arm from its seed's shared stages, answers the test's questions, and ends as one JSON file in
`studies/results`. Several processes share the runs through locks; one that is killed loses the run it was in.
"""

import argparse
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from studies.arms import DEMO_RECIPE, SHARED, Arm, read_arms, runs
from studies.data import DATA, write_data
from studies.measure import Questions, expert_similarity, mean_of_last, pass_flops
from studies.variants import VARIANTS

from moe_llava.data.dataset import Mixture
from moe_llava.evaluate.runner import commit
from moe_llava.model.accounting import account_model
from moe_llava.model.config import moe_layers
from moe_llava.recipe import Recipe, load_recipe
from moe_llava.train import folder as stage_folder
from moe_llava.train.run import build_dataset, build_trainer, image_features, train
from moe_llava.train.stages import prepare
from moe_llava.train.start import build_start

WORK = Path("runs/study")
TEST = DATA / "test.jsonl"
_LOGGED = ("language_loss", "balance", "max_violation", "dead_experts", "router_entropy")
console = Console(soft_wrap=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[TextIO | None]:
    """Hold a lock that the system lets go if this process dies; `None` if another holds it and `wait` is off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file


def share_stages(recipe: Recipe) -> None:
    """Train what all arms of a seed start from; features of images and the decoder are shared by all seeds."""
    with locked(WORK / "locks" / "decoder"):
        train(load_recipe(DEMO_RECIPE), ["language"], resume=True, console=console)
    output = Path(recipe.output)
    with locked(output / "shared.lock"):
        features = WORK / "features"
        features.mkdir(parents=True, exist_ok=True)
        if not (output / "features").exists():
            (output / "features").symlink_to(features.resolve())
        train(recipe, SHARED, resume=True, console=console)


def run(arm: Arm, seed: int, arms: dict[str, Arm], questions: Path = TEST) -> dict[str, Any]:
    """Train and measure one arm with one seed."""
    started = time.perf_counter()
    steps = _steps(arm, seed, arms)
    recipe = arm.recipe(seed, steps)
    folder = recipe.folder(arm.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = build_start(recipe, arm.name, console)
    model, processor = start.model, start.processor
    assert model is not None, "whole: one process trains it"
    facts = _apply_variant(arm, model)
    groups, _ = prepare(model, recipe.stages[arm.name].train)
    dataset, _ = build_dataset(recipe, recipe.stages[arm.name], start, console)
    assert isinstance(dataset, Mixture)
    trainer = build_trainer(recipe, arm.name, model, groups, dataset, processor.tokenizer.pad_token_id)
    training, cpu = time.perf_counter(), time.process_time()
    if arm.trains:
        trainer.train()
    training, cpu = time.perf_counter() - training, time.process_time() - cpu
    accounting = account_model(model)
    log = folder / stage_folder.METRICS
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    once = pass_flops(accounting, dataset)
    batch = recipe.stages[arm.name].batch_size
    result = {
        "arm": arm.name,
        "seed": seed,
        "overrides": arm.overrides(),
        "fingerprint": arm.fingerprint(),
        "scores": _scores(recipe, model, processor, questions),
        "steps": trainer.state.global_step,
        "train_flops": once * trainer.state.global_step * batch / len(dataset),
        "parameters": accounting.language_total,
        "activated_parameters": accounting.language_activated,
        "trained_parameters": sum(group.count for group in groups),
        "training": mean_of_last(lines, _LOGGED) | facts(),
        "seconds": {"training": round(training, 1), "training_cpu": round(cpu, 1)},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if moe_layers(model.config.text_config):
        result["experts"] = expert_similarity(model, processor, questions, DATA)
    result["seconds"]["all"] = round(time.perf_counter() - started, 1)
    shutil.rmtree(folder)
    return result | {"environment": stage_folder.environment(), "commit": commit()}


def _steps(arm: Arm, seed: int, arms: dict[str, Arm]) -> int | None:
    """Steps where they do not follow from one pass over the data: of a share of it, or of equal FLOPs."""
    if arm.flops_of:
        other = arms[arm.flops_of].read(seed)
        own = arms["dense"].read(seed)
        assert other and own, f"{arm.name} comes after {arm.flops_of} and its twin"
        return round(own["steps"] * other["train_flops"] / own["train_flops"])
    if arm.share < 1:
        reference = arms["sparse"].read(seed)
        assert reference, f"{arm.name} comes after sparse"
        return int(reference["steps"])
    return None


def _apply_variant(arm: Arm, model: Any) -> Any:
    if not arm.variant:
        return dict
    arguments = {key: value for key, value in arm.variant.items() if key != "name"}
    return VARIANTS[arm.variant["name"]](model, **arguments)


def _scores(recipe: Recipe, model: Any, processor: Any, questions: Path) -> dict[str, Any]:
    images = sorted({DATA / json.loads(line)["image"] for line in questions.read_text().splitlines()})
    store = image_features(model, processor, images, Path(recipe.output) / "features")
    return Questions(questions, DATA, processor, store).score(model)


def work(names: list[str] | None) -> bool:
    """Do every run that has no result and that no other process does; returns whether there was any."""
    arms, _ = read_arms()
    worked = False
    for arm, seed in runs(arms):
        if (names and arm.name not in names) or arm.read(seed):
            continue
        with locked(WORK / "locks" / f"{arm.name}-{seed}", wait=False) as lock:
            if lock is None or arm.read(seed) or not _can_start(arm, seed, arms):
                continue
            share_stages(arm.recipe(seed))
            stage_folder.write_json(arm.result(seed), run(arm, seed, arms))
            console.print(f"finished {arm.name}, seed {seed}")
            worked = True
    return worked


def _can_start(arm: Arm, seed: int, arms: dict[str, Arm]) -> bool:
    needed = [arm.flops_of, "dense"] if arm.flops_of else ["sparse"] if arm.share < 1 else []
    return all(arms[name].read(seed) for name in needed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--only", help="comma-separated arms")
    options = parser.parse_args()
    arms, _ = read_arms()
    names = options.only.split(",") if options.only else None
    if names and (unknown := set(names) - set(arms)):
        parser.error(f"unknown arms: {', '.join(sorted(unknown))}; there are {', '.join(arms)}")
    left = [arm for arm, seed in runs(arms) if (not names or arm.name in names) and not arm.read(seed)]
    console.print(f"{len(left)} runs are missing")
    if not left:
        return 0
    write_data()
    if options.jobs == 1:
        torch.set_num_threads(1)
        # Again, because another process may have finished what a run waits for (see `_can_start`).
        while work(names):
            pass
        return 0
    command = [sys.executable, __file__, "--jobs", "1", *(["--only", options.only] if options.only else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, env=environment) for _ in range(options.jobs)]
    return max(process.wait() for process in processes)


if __name__ == "__main__":
    sys.exit(main())
