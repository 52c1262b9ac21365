"""What was decided before the study, on easy-VQA's training pictures that no run sees: how far stage II gets, and the
rate of stage III.

python studies/choose.py
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from studies.arms import REFERENCE, read_arms
from studies.data import DATA, write_data
from studies.run import run, share_stages

RATES = (5e-4, 1.5e-3)


def main() -> None:
    torch.set_num_threads(1)
    write_data()
    arms, _ = read_arms()
    share_stages(arms[REFERENCE].recipe(seed=0))
    tried = {"after stage II": arms["stage_two"]}
    for rate in RATES:
        train = dict.fromkeys(("projector", "ffn", "experts", "router"), rate)
        tried[f"stage III at {rate:g}"] = replace(arms[REFERENCE], stage={"train": train})
    for name, arm in tried.items():
        scores = run(arm, 0, arms, DATA / "choose.jsonl")["scores"]["all"]
        print(f"{name}: accuracy {100 * scores['accuracy']:.1f} %, loss {scores['loss']:.3f}, {scores['n']} questions")


if __name__ == "__main__":
    main()
