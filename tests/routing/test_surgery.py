"""Experts removed, merged, added and re-based: what stays the same, and what is lost."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_llava.checkpoint.deltas import compress, expand, low_rank, sparse
from moe_llava.model.router import TopKRouter, choose_experts
from moe_llava.routing.importance import Usage, most_important, usage
from moe_llava.routing.intervene import Rule, only, rerouted, sparse_layers
from moe_llava.routing.score import Scorer
from moe_llava.routing.surgery import add_copies, clone, merge, most_similar_groups, num_experts, prune
from tests.routing.planted import planted_engine, planted_samples
from tests.routing.test_intervene import logits
from tests.tiny import tiny_dense, tiny_sparse


def minus_infinity(keep: list[int]) -> Rule:
    """The textbook's mask: the logits of all others are minus infinity."""

    def rule(router: TopKRouter, _: Tensor, logits: Tensor, __: Tensor, ___: Tensor) -> tuple[Tensor, Tensor]:
        masked = torch.full_like(logits, -torch.inf)
        masked[:, keep] = logits[:, keep]
        return choose_experts(masked, min(router.top_k, len(keep)), router.normalize)

    return rule


@pytest.mark.parametrize("family", ["llama", "phi"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("keep", [[1, 2, 3], [0, 2], [3]])
def test_pruning_equals_masking_bit_by_bit(family: str, implementation: str, normalize: bool, keep: list[int]) -> None:
    model = tiny_sparse(family, normalize_gates=normalize)
    layers = sparse_layers(model)
    pruned = prune(model, dict.fromkeys(layers, keep))
    for one in (model, pruned):
        one.model.language_model.set_experts_implementation(implementation)
    with rerouted(model, dict.fromkeys(layers, only(keep))):
        masked = logits(model)
    assert torch.equal(logits(pruned), masked)
    assert not torch.allclose(masked, logits(model), atol=1e-4)
    with rerouted(model, dict.fromkeys(layers, minus_infinity(keep))):
        assert torch.allclose(logits(model), masked, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_pruning_nothing_is_the_identity(family: str) -> None:
    model = tiny_sparse(family)
    same = prune(model, dict.fromkeys(sparse_layers(model), range(4)))
    assert same.config.to_dict() == model.config.to_dict()
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in same.state_dict().items())
    assert torch.equal(logits(same), logits(model))


def test_merging_nothing_is_the_identity_and_same_experts_merge_without_loss() -> None:
    model = tiny_sparse()
    even = {layer: torch.ones(4) for layer in sparse_layers(model)}
    alone = merge(model, {layer: [[0], [1], [2], [3]] for layer in even}, even)
    assert torch.equal(logits(alone), logits(model))
    copies = tiny_sparse(noise=0.0)
    merged = merge(copies, {layer: [[0, 3], [1, 2]] for layer in even}, even)
    assert num_experts(merged) == 2
    assert torch.allclose(logits(merged), logits(copies), atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_clones_compute_the_same(normalize: bool) -> None:
    model = tiny_sparse(normalize_gates=normalize)
    double = clone(model, 2)
    assert (num_experts(double), double.config.text_config.num_experts_per_tok) == (8, 4)
    assert torch.allclose(logits(double), logits(model), atol=1e-5)
    more = add_copies(model, {layer: [2] for layer in sparse_layers(model)})
    assert num_experts(more) == 5
    assert not torch.allclose(logits(more), logits(model), atol=1e-5)


def test_most_similar_groups() -> None:
    similarity = torch.tensor([[1.0, 0.1, 0.9, 0.2], [0.1, 1, 0.3, 0.8], [0.9, 0.3, 1, 0.1], [0.2, 0.8, 0.1, 1]])
    assert most_similar_groups(similarity, 3) == [[0, 2], [1], [3]]
    assert most_similar_groups(similarity, 2) == [[0, 2], [1, 3]]
    assert most_similar_groups(similarity, 1) == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="impossible"):
        most_similar_groups(similarity, 5)


def test_usage_of_planted_specialists(tmp_path: Path) -> None:
    samples = planted_samples(tmp_path)
    engine = planted_engine(top_k=1)
    found = usage(Scorer(engine, samples, generate=False))[0]
    # 24 left and 24 right questions go to their specialists; all image tokens are counted apart.
    assert found.image.sum() == 48 * engine.model.config.image_seq_length
    assert found.text[1] == 24
    assert found.contribution[2] == found.contribution[3] == 0.0
    assert set(most_important({0: found}, "reap", 2)[0]) == {0, 1}
    pruned = prune(engine.model, most_important({0: found}, "reap", 2))
    engine.model = pruned
    scores = Scorer(engine, samples).score()
    assert scores.right is not None and scores.right.all()


def test_load_counts_modalities_alike() -> None:
    one = Usage(text=torch.tensor([8.0, 1, 1]), image=torch.tensor([0.0, 900, 100]), contribution=torch.ones(3))
    expected = torch.tensor([0.4, 0.5, 0.1])
    assert torch.allclose(one.importance("load", torch.Generator()), expected)
    assert most_important({0: one}, "text-load", 1) == {0: [0]}
    assert most_important({0: one}, "image-load", 1) == {0: [1]}
    assert most_important({0: one}, "reap", 1) == {0: [0]}
    with pytest.raises(ValueError, match="unknown"):
        most_important({0: one}, "fame", 1)  # type: ignore[arg-type]
    silent = Usage(text=torch.ones(3), image=torch.zeros(3), contribution=torch.ones(3))
    with pytest.raises(ValueError, match="no such tokens"):
        most_important({0: silent}, "image-load", 1)


def test_differences_kept_whole_lose_nothing() -> None:
    model = tiny_sparse()
    for tensors in (compress(model, rank=32), compress(model, share=1.0)):
        state = expand(tensors)
        for name, tensor in model.state_dict().items():
            assert torch.allclose(state[name], tensor, atol=1e-6), name


def test_differences_cut_keep_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(12, 8, generator=generator)
    rank_two = torch.randn(3, 12, 2, generator=generator) @ torch.randn(3, 2, 8, generator=generator)
    rank_two -= rank_two.mean(dim=0)
    few = torch.zeros(3, 12, 8)
    few[0, 1, 2], few[1, 5, 5], few[2, 0, 7] = 3.0, -2.0, 1.0
    few -= few.mean(dim=0)
    six = low_rank(base + rank_two, 6)
    assert torch.allclose(expand({f"a{key}": one for key, one in six.items()})["a"], base + rank_two, atol=1e-5)
    three = sparse(base + few, 3 / 96)
    assert three[".values"].shape == (3, 3)
    assert torch.allclose(expand({f"a{key}": one for key, one in three.items()})["a"], base + few, atol=1e-6)
    with pytest.raises(ValueError, match="rank 9"):
        low_rank(base.expand(3, 12, 8), 9)
    with pytest.raises(ValueError, match="share"):
        sparse(base.expand(3, 12, 8), 0.0)


def test_impossible_choices_are_refused() -> None:
    model = tiny_sparse()
    with pytest.raises(ValueError, match="dense"):
        prune(tiny_dense(), {0: [0]})
    with pytest.raises(ValueError, match="each of them"):
        prune(model, {0: [0]})
    with pytest.raises(ValueError, match="do not exist"):
        prune(model, {0: [0], 2: [4]})
    with pytest.raises(ValueError, match="as many"):
        prune(model, {0: [0], 2: [0, 1]})
    with pytest.raises(ValueError, match="one group"):
        merge(model, {0: [[0, 1], [2]], 2: [[0, 1], [2, 3]]}, {})
    with pytest.raises(ValueError, match="at least 1"):
        clone(model, 0)
