"""Models laid out for answers compute what they computed before."""

import weakref

import pytest
import torch

from moe_llava.generate.batch import Sequences
from moe_llava.model import onednn
from moe_llava.model.packed import PackedExperts, pack_modules, packs
from tests.tiny import tiny_inputs, tiny_sparse


@pytest.mark.parametrize("family", ["stablelm", "phi", "gemma2"])
def test_packed_models_give_the_same_logits(family: str) -> None:
    """In a prompt with images and padding, and token by token with a cache, one sequence alone too."""
    model = tiny_sparse(family).eval()
    inputs = {name: value for name, value in tiny_inputs().items() if name != "labels"}

    @torch.inference_mode()
    def logits() -> list[torch.Tensor]:
        read, alone = Sequences(model, 2), Sequences(model, 1)
        first = read.read([[1, 11, 12, 13], [1, 9]])
        return [
            model(**inputs).logits[inputs["attention_mask"].bool()],
            first,
            *(read.read([[5], [6]]) for _ in range(3)),
            *(alone.read(tokens) for tokens in ([[1, 9]], [[5]], [[6]])),
        ]

    before = logits()
    pack_modules(model)
    for packed, plain in zip(logits(), before, strict=True):
        assert torch.allclose(packed, plain, atol=1e-5)


def test_a_token_alone_mixes_as_among_others() -> None:
    experts = tiny_sparse().model.language_model.layers[0].mlp.experts
    hidden, choice = torch.randn(3, 32), torch.tensor([[0, 1], [3, 2], [1, 3]])
    weights = torch.rand(3, 2)
    expected = experts(hidden, choice, weights)
    packed = PackedExperts(experts)
    assert torch.allclose(packed(hidden, choice, weights), expected, atol=1e-6)
    for token in range(3):
        one = slice(token, token + 1)
        assert torch.allclose(packed(hidden[one], choice[one], weights[one])[0], expected[token], atol=1e-6)


def test_maps_are_let_go_as_they_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_sparse()
    maps = [weakref.ref(module) for module in model.modules() if isinstance(module, torch.nn.Linear)]
    alive: list[int] = []
    pack = onednn.pack

    def counted(weight: torch.Tensor) -> torch.Tensor:
        alive.append(sum(one() is not None for one in maps))
        return pack(weight)

    monkeypatch.setattr(onednn, "pack", counted)
    pack_modules(model)
    assert alive[0] == len(maps) > 10 and alive[-1] <= 2


def test_only_what_a_cpu_takes_is_packed() -> None:
    assert packs(tiny_sparse())
    assert not packs(tiny_sparse().double())
    assert not packs(tiny_sparse().half())


def test_a_cache_grows_in_place_and_follows_what_its_rows_become() -> None:
    model = tiny_sparse().eval()
    grown, fresh = Sequences(model, 2), Sequences(model, 1)
    grown.read([[1, 11, 12], [1, 9, 10]])
    memory = grown.cache.layers[0].keys.data_ptr()
    grown.read([[5], [5]])
    assert grown.cache.layers[0].keys.data_ptr() == memory
    one, both = grown.select([1]), grown.read([[7], [7]])
    assert torch.allclose(one.read([[7]]), both[1:], atol=1e-5)
    assert torch.allclose(fresh.read([[1, 9, 10, 5, 7]]), both[1:], atol=1e-5)
