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
    for kernel in ("eager", "grouped_mm", "batched_mm", "sorted_mm"):
        model.set_experts_implementation({"text_config": kernel})
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if "language_model" in name}
        results[kernel] = (output.logits.detach(), gradients)
    logits, gradients = results["eager"]
    for other_logits, other_gradients in list(results.values())[1:]:
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


@pytest.mark.parametrize("tokens", [0, 1, 2, 40])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_sorted_rows_give_the_loop_for_any_number_of_tokens(tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    """One token has a path of its own; experts without tokens get a gradient of zero."""
    experts = tiny_sparse("phi").model.language_model.layers[0].mlp.experts.to(dtype)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 32, generator=generator).to(dtype)
    choice = torch.tensor([[3, 1]] * tokens, dtype=torch.long).reshape(tokens, 2)
    weights = torch.rand(tokens, 2, generator=generator).to(torch.promote_types(dtype, torch.float32))
    results = {}
    for kernel in ("eager", "sorted_mm"):
        experts.config._experts_implementation = kernel
        inputs = [hidden.clone().requires_grad_(), weights.clone().requires_grad_()]
        output = experts(inputs[0], choice, inputs[1])
        with torch.no_grad():
            assert torch.allclose(experts(inputs[0], choice, inputs[1]), output, atol=tolerance)
        tensors = [*inputs, *experts.parameters()]
        gradients = torch.autograd.grad(output.square().sum(), tensors)
        results[kernel] = [output.detach(), *gradients]
    for mine, plain in zip(results["sorted_mm"], results["eager"], strict=True):
        assert mine.dtype == plain.dtype
        assert torch.allclose(mine, plain, atol=tolerance * 5, rtol=tolerance * 5)


def test_mixed_precision_reaches_the_experts() -> None:
    """transformers' grouped kernel computes in the weights' type under autocast, so in fp32."""
    experts = tiny_sparse().model.language_model.layers[0].mlp.experts
    hidden, choice, weights = torch.randn(5, 32), torch.tensor([[0, 1]] * 5), torch.full((5, 2), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = experts(hidden.requires_grad_(), choice, weights)
        assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert experts.down_proj.grad.dtype == torch.float32


def test_widths_that_no_grouped_kernel_takes() -> None:
    odd = upcycle(tiny_dense("llama", intermediate_size=60))
    loss = odd(**tiny_inputs()).loss
    odd.set_experts_implementation({"text_config": "eager"})
    assert torch.allclose(odd(**tiny_inputs()).loss, loss)


def test_an_unknown_feed_forward_network_is_refused_by_its_projections() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match="known layouts"):
        layout_of(network)
