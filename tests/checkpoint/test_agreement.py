"""Converted models compute what the original computes; where they differ by decision, by exactly that decision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moe_llava.model.balance import stack_real_tokens
from moe_llava.model.config import moe_layers
from moe_llava.model.router import choose_experts
from tests.checkpoint.recordings import Recording, embedded_as_the_original, routed_as_the_original
from tests.original_gating import gate

LOGITS = 1e-4
CASES = {"eval_single": "single", "eval_batch": "batch", "eval_multi": "multi", "eval_leftpad": "batch"}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_and_routing_at_every_real_token(recorded: Recording, case: str) -> None:
    batch = recorded.batch(CASES[case], left=case == "eval_leftpad")
    real = batch["attention_mask"].bool()
    output = recorded.model(**batch, output_router_logits=True)
    expected = recorded.case(case)
    torch.testing.assert_close(output.logits[real], expected["logits"][real], rtol=0, atol=LOGITS)
    for layer, logits in enumerate(stack_real_tokens(output.router_logits, batch["attention_mask"])):
        recorded_logits = expected[f"moe{layer}.gate_logits"][real.reshape(-1)]
        torch.testing.assert_close(logits, recorded_logits, rtol=0, atol=LOGITS)
        weights, experts = choose_experts(logits, top_k=2, normalize=True)
        ours = torch.zeros_like(logits).scatter(1, experts, weights)
        theirs = expected[f"moe{layer}.token_expert_weight"][real.reshape(-1)]
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_greedy_generation_token_by_token(recorded: Recording, use_cache: bool) -> None:
    expected = recorded.case("generate")["output_ids_nocache"]
    batch = recorded.batch("single")
    prompt = recorded.inputs["single/input_ids"].shape[1]
    answer = recorded.model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        mm_encoder_outputs={"image": recorded.model.get_image_features(batch["pixel_values"])},
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
        use_cache=use_cache,
    )
    assert answer[0, batch["input_ids"].shape[1] :].tolist() == expected[0, prompt:].tolist()
    if recorded.meta["backbone"] != "minicpm":  # whose cached and uncached answers differ in the original
        assert torch.equal(expected, recorded.case("generate")["output_ids"])


@pytest.mark.parametrize("case", ["eval_drop", "eval_noise", "train", "train_drop", "train_noise"])
def test_with_the_original_s_gating_our_model_is_the_original(recorded: Recording, case: str) -> None:
    """Dropped tokens, noise and padding that routes are all that separates the two."""
    model, expected, setting = recorded.model, recorded.case(case), recorded.meta["cases"][case]
    factor = setting.get("capacity_factor", setting.get("eval_capacity_factor", 2.0))
    noise = recorded.router_case(case, "gumbel") if case.endswith("noise") else None
    batch = recorded.batch("batch")
    real = batch["attention_mask"].bool()
    model.zero_grad()
    with routed_as_the_original(model, factor, noise) as gatings:
        logits = model(**embedded_as_the_original(model, batch)).logits
    aux_loss = torch.stack([gating.aux_loss for gating in gatings]).sum()
    loss = language_loss(logits, batch["labels"]) + 0.01 * aux_loss
    torch.testing.assert_close(logits[real], expected["logits"][real], rtol=0, atol=LOGITS)
    for layer, gating in enumerate(gatings):
        torch.testing.assert_close(gating.aux_loss, expected[f"moe{layer}.l_aux"].squeeze(), rtol=0, atol=1e-5)
        assert torch.equal(gating.weights > 0, expected[f"moe{layer}.token_expert_weight"] > 0)
    if "loss" in expected:
        torch.testing.assert_close(loss, expected["loss"].squeeze(), rtol=0, atol=1e-5)
    if case.startswith("train"):
        loss.backward()
        check_gradients(recorded, expected)
    model.zero_grad()


def language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def check_gradients(recorded: Recording, expected: dict[str, Tensor]) -> None:
    """Every tensor's gradient by its norm, each expert's among them; routers' and the projector's last bias whole."""
    ours = recorded.gradients()
    norms = {name.partition("/")[2]: norm for name, norm in expected.items() if name.startswith("grad_norm/")}
    assert ours.keys() == norms.keys()
    for name, norm in norms.items():
        assert float(ours[name].norm()) == pytest.approx(float(norm), rel=1e-4, abs=1e-6), name
    whole = {name.partition("/")[2]: tensor for name, tensor in expected.items() if name.startswith("grad/")}
    assert len(whole) == len(moe_layers(recorded.model.config.text_config)) + 1
    for name, gradient in whole.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-5)


def test_our_training_loss_is_the_original_s_without_padding_and_dropping(recorded: Recording) -> None:
    """Loss and every gradient of ours = the original's gating where nothing is dropped and pads do not count."""
    model, batch = recorded.model, recorded.batch("batch")
    real = batch["attention_mask"].reshape(-1).bool()
    coefficient = model.config.text_config.router_aux_loss_coef
    assert coefficient == 0.01
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    ours = {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}
    model.zero_grad()
    with routed_as_the_original(model, factor=4.0, noise=None):
        routed = model(**embedded_as_the_original(model, batch), output_router_logits=True)
    losses = [gate(logits[real], 2, 4.0, 0, None).aux_loss for logits in routed.router_logits]
    loss = language_loss(routed.logits, batch["labels"]) + coefficient * torch.stack(losses).sum()
    loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.aux_loss, torch.stack(losses).sum(), rtol=0, atol=1e-5)
    for name, tensor in model.named_parameters():
        if name in ours and tensor.grad is not None:
            torch.testing.assert_close(ours[name], tensor.grad, rtol=0, atol=1e-5)
    assert sum("mlp.gate" in name or "mlp.experts" in name for name in ours) >= 6
    model.zero_grad()


def test_balance_loss_per_layer_is_the_original_s_on_real_tokens(recorded: Recording) -> None:
    """Where the recorded batch has no padding, nothing separates the two."""
    with torch.no_grad():
        output = recorded.model(**recorded.batch("single"), output_router_logits=True)
    recorded_losses = recorded.router_case("eval_single", "l_aux")
    for logits, expected in zip(output.router_logits, recorded_losses, strict=True):
        ours, _ = recorded.model.router_losses(logits[None])
        torch.testing.assert_close(ours, expected.squeeze(), rtol=0, atol=1e-5)
