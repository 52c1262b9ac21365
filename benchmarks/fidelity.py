"""The largest difference between recordings of the original's models and the same models converted.

    python benchmarks/fidelity.py RECORDINGS

RECORDINGS holds one folder a family, as `golden/` of the tests' fixtures. Prints a table in Markdown. Of the experts'
gradients norms were recorded, so theirs is a relative difference.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.checkpoint.recordings import FAMILIES, Recording, embedded_as_the_original, routed_as_the_original
from tests.checkpoint.test_agreement import CASES, language_loss

from moe_llava.model.balance import stack_real_tokens


def main() -> None:
    columns = (
        "family",
        "logits",
        "router logits",
        "greedy tokens",
        "loss",
        "balance loss",
        "router gradient",
        "expert gradient",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            recorded = Recording.open(Path(sys.argv[1]) / family / "a", Path(folder) / family)
            print(f"| {family} | {' | '.join((*forward(recorded), generated(recorded), *training(recorded)))} |")


@torch.no_grad()
def forward(recorded: Recording) -> tuple[str, str]:
    """Logits and router logits at every real token of the four evaluations."""
    logits, routers = [], []
    for case, name in CASES.items():
        batch, expected = recorded.batch(name, left=case == "eval_leftpad"), recorded.case(case)
        real = batch["attention_mask"].bool()
        output = recorded.model(**batch, output_router_logits=True)
        logits.append((output.logits - expected["logits"])[real].abs().max())
        for layer, ours in enumerate(stack_real_tokens(output.router_logits, batch["attention_mask"])):
            routers.append((ours - expected[f"moe{layer}.gate_logits"][real.reshape(-1)]).abs().max())
    return f"{max(logits):.1e}", f"{max(routers):.1e}"


@torch.no_grad()
def generated(recorded: Recording) -> str:
    """How many of the greedy tokens are equal, with and without cache."""
    batch, expected = recorded.batch("single"), recorded.case("generate")["output_ids_nocache"][0, -12:]
    images = recorded.model.get_image_features(batch["pixel_values"])
    equal = 0
    for use_cache in (True, False):
        answer = recorded.model.generate(
            input_ids=batch["input_ids"],
            mm_encoder_outputs={"image": images},
            attention_mask=batch["attention_mask"],
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            use_cache=use_cache,
        )
        equal += int((answer[0, -12:] == expected).sum())
    return f"{equal} of 24"


def training(recorded: Recording) -> tuple[str, ...]:
    """Loss, balance loss, and gradients of routers and experts of `train`, with the original's gating in our model."""
    model, batch, expected = recorded.model, recorded.batch("batch"), recorded.case("train")
    with routed_as_the_original(model, 1.5, None) as gatings:
        logits = model(**embedded_as_the_original(model, batch)).logits
    loss = language_loss(logits, batch["labels"]) + 0.01 * torch.stack([gating.aux_loss for gating in gatings]).sum()
    loss.backward()
    balance = [abs(gating.aux_loss - expected[f"moe{layer}.l_aux"].squeeze()) for layer, gating in enumerate(gatings)]
    ours = recorded.gradients()
    routers = [
        (ours[name.partition("/")[2]] - gradient).abs().max()
        for name, gradient in expected.items()
        if name.startswith("grad/") and "gate.wg" in name
    ]
    experts = [
        abs(float(ours[name.partition("/")[2]].norm() / norm) - 1)
        for name, norm in expected.items()
        if name.startswith("grad_norm/") and "deepspeed_experts" in name
    ]
    return (
        f"{abs(loss - expected['loss'].squeeze()):.1e}",
        *(f"{max(all_):.1e}" for all_ in (balance, routers, experts)),
    )


if __name__ == "__main__":
    main()
