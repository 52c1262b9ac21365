"""Routing and experts: gates, determinism, and all kernels against the plain loop."""

import pytest
import torch

from moe_llava.model.experts import layout_of
from moe_llava.model.router import choose_experts
from moe_llava.model.upcycle import upcycle
from tests.tiny import tiny_dense, tiny_inputs, tiny_sparse


def test_gates_sum_to_one_and_order_by_probability() -> None:
    router_logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    weights, experts = choose_experts(router_logits, 3, normalize=True)
    assert torch.allclose(weights.sum(-1), torch.ones(50))
    assert torch.equal(experts[:, 0], router_logits.argmax(-1))
    assert (weights.diff(dim=-1) <= 0).all()
    plain, same = choose_experts(router_logits, 3, normalize=False)
    assert torch.equal(same, experts)
    assert torch.allclose(plain, router_logits.softmax(-1).gather(1, experts))


@pytest.mark.parametrize("family", ["llama", "phi", "phi3"])
def test_every_kernel_computes_the_same(family: str) -> None:
    model, inputs = tiny_sparse(family), tiny_inputs()
    results = {}
    for kernel in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation({"text_config": kernel})
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if "language_model" in name}
        results[kernel] = (output.logits.detach(), gradients)
    logits, gradients = results["eager"]
    for other_logits, other_gradients in (results["grouped_mm"], results["batched_mm"]):
        assert torch.allclose(other_logits, logits, atol=1e-5)
        for name, gradient in gradients.items():
            assert torch.allclose(other_gradients[name], gradient, atol=1e-5), name


def test_routing_is_deterministic_and_does_not_depend_on_the_batch() -> None:
    """The original draws the second expert at random, and its layer corrupts batches of three."""
    model = tiny_sparse().eval()
    inputs = {name: value for name, value in tiny_inputs().items() if name != "labels"}
    together = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, together)
    images = [inputs["pixel_values"][:2], inputs["pixel_values"][2:], None]
    for row, pixels in enumerate(images):
        length = int(inputs["attention_mask"][row].sum())
        alone = model(input_ids=inputs["input_ids"][row : row + 1, :length], pixel_values=pixels).logits
        assert torch.allclose(alone[0], together[row, :length], atol=1e-5)


def test_widths_that_no_grouped_kernel_takes_fall_back_to_the_loop() -> None:
    assert tiny_sparse().model.language_model.config._experts_implementation == "grouped_mm"
    odd = upcycle(tiny_dense("llama", intermediate_size=60))
    assert odd.model.language_model.config._experts_implementation == "eager"
    assert torch.isfinite(odd(**tiny_inputs()).loss)


def test_an_unknown_feed_forward_network_is_refused_by_its_projections() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="known layouts"):
        layout_of(network)
