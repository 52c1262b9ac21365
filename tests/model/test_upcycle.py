"""Step 0 of the sparse model is the dense model, for every family, top-k and layout of the feed-forward network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.opt import OPTConfig, OPTForCausalLM

from moe_llava.model.config import choose_layers
from moe_llava.model.upcycle import noise_jump, upcycle
from tests.tiny import tiny_causal, tiny_dense, tiny_inputs

FAMILIES: dict[str, dict[str, Any]] = {
    "stablelm": {},
    "phi": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {"mlp_bias": True},
    "mistral": {},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "olmo2": {},
    "granite": {"logits_scaling": 3.0},
    "smollm3": {},
    "phi3": {},
    "glm4": {"head_dim": 8},
    "cohere2": {},
    "starcoder2": {},
}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_step_zero_equals_dense(family: str, dtype: torch.dtype, tolerance: float) -> None:
    dense = tiny_dense(family, dtype, **FAMILIES[family])
    inputs = tiny_inputs(dtype)
    real = inputs["attention_mask"].bool()
    expected = dense(**inputs).logits[real]
    for top_k in (1, 2, 4):
        sparse = upcycle(dense, top_k=top_k)
        assert sparse.config.text_config.moe_layers == [0, 2]
        assert (sparse(**inputs).logits[real] - expected).abs().max() <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_family_keeps_its_own_head(family: str) -> None:
    causal = tiny_causal(family, **FAMILIES[family])
    ids = torch.tensor([[1, 5, 6, 7]])
    sparse = upcycle(causal)
    assert sparse.config.vision_config is None
    assert (sparse(input_ids=ids).logits - causal(input_ids=ids).logits).abs().max() <= 1e-5


def test_unnormalised_gates_scale_the_network() -> None:
    dense, inputs = tiny_dense(), tiny_inputs()
    sparse = upcycle(dense, normalize_gates=False)
    assert (sparse(**inputs).logits - dense(**inputs).logits).abs().max() > 1e-3


def test_a_folder_is_upcycled_as_it_is_read(tmp_path: Path) -> None:
    dense = tiny_dense()
    dense.save_pretrained(tmp_path)
    from_folder, from_memory = upcycle(tmp_path, seed=3), upcycle(dense, seed=3)
    for (name, left), right in zip(from_folder.state_dict().items(), from_memory.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_noise_breaks_the_equality_and_is_measured() -> None:
    dense = tiny_dense()
    assert noise_jump(dense, upcycle(dense)) <= 1e-5
    assert noise_jump(dense, upcycle(dense, noise=0.1)) > 1e-3


def test_the_dense_model_stays_as_it_was() -> None:
    dense, inputs = tiny_dense(), tiny_inputs()
    before = dense(**inputs).logits.detach()
    sparse = upcycle(dense)
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.add_(1.0)
    assert torch.equal(dense(**inputs).logits, before)


def test_impossible_requests_are_refused() -> None:
    dense = tiny_dense()
    with pytest.raises(ValueError, match="top_k = 5"):
        upcycle(dense, top_k=5)
    with pytest.raises(ValueError, match="layers = 'odd'"):
        choose_layers("odd", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 0 to 2"):
        upcycle(dense, layers=[3])
    with pytest.raises(ValueError, match="sparse already"):
        upcycle(upcycle(dense))


def test_a_decoder_without_mlp_modules_is_refused() -> None:
    config = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=96, word_embed_proj_dim=32
    )
    with pytest.raises(ValueError, match="OPT"):
        upcycle(OPTForCausalLM(config))
