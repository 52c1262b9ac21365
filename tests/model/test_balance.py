"""The balance loss against its definition, and its pieces against the whole."""

import torch

from moe_llava.model.balance import first_choices, load_balancing_loss, router_z_loss, stack_real_tokens


def logits(tokens: int = 12, experts: int = 4) -> torch.Tensor:
    return torch.randn(2, tokens, experts, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_the_definition() -> None:
    given = logits()
    expected = []
    for layer in given:
        probability = layer.softmax(-1)
        share = torch.stack([(layer.argmax(-1) == expert).double().mean() for expert in range(4)])
        expected.append(4 * (share * probability.mean(0)).sum())
    assert torch.allclose(load_balancing_loss(given), torch.stack(expected))


def test_one_is_even_and_the_number_of_experts_is_collapse() -> None:
    even = 1e-3 * torch.eye(4).repeat(3, 1)[None]
    assert torch.allclose(load_balancing_loss(even), torch.ones(1), atol=1e-5)
    collapsed = torch.tensor([50.0, 0, 0, 0]).repeat(12, 1)[None]
    assert torch.allclose(load_balancing_loss(collapsed), torch.full((1,), 4.0))


def test_pieces_add_up_to_the_whole_with_the_same_gradient() -> None:
    whole = logits().requires_grad_()
    load_balancing_loss(whole).sum().backward()
    pieces = logits().requires_grad_()
    counts = first_choices(pieces)
    parts = [pieces[:, :5], pieces[:, 5:9], pieces[:, 9:]]
    total = sum(load_balancing_loss(part, counts).sum() for part in parts)
    total.backward()
    assert torch.allclose(total, load_balancing_loss(whole).sum())
    assert torch.allclose(pieces.grad, whole.grad)
    # Without the counts of the whole, pieces do not add up: this is what the counts are for.
    assert not torch.allclose(sum(load_balancing_loss(part).sum() for part in parts) / 3, total)


def test_padding_neither_routes_nor_counts() -> None:
    given = logits()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    kept = stack_real_tokens(tuple(given), mask)
    assert kept.shape == (2, 8, 4)
    assert torch.equal(kept, given[:, mask.reshape(-1).bool()])


def test_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    given = logits()
    assert torch.allclose(router_z_loss(given), given.logsumexp(-1).square().mean(-1))


def test_no_tokens_give_zero() -> None:
    empty = torch.zeros(2, 0, 4)
    assert torch.equal(load_balancing_loss(empty), torch.zeros(2))
    assert torch.equal(router_z_loss(empty), torch.zeros(2))
