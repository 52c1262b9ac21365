"""Weights in 8 and 4 bits: near the original, small, and the same whether quantised on the way in or kept so."""

from pathlib import Path

import pytest
import torch

from moe_llava.checkpoint.folder import read_config
from moe_llava.checkpoint.quantized import load_quantized, quantize_folder
from moe_llava.checkpoint.weights import load_weights
from moe_llava.cli import main
from moe_llava.model.decoder import SparseFeedForward
from moe_llava.model.encoding import block, decode, encode, multiply, pack
from moe_llava.model.quantized import QuantizedExperts
from moe_llava.model.upcycle import upcycle
from tests.tiny import tiny_dense, tiny_inputs, tiny_sparse

CPU = torch.device("cpu")


def saved(folder: Path, family: str = "llama") -> Path:
    tiny_sparse(family).save_pretrained(folder)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(**{name: value for name, value in tiny_inputs().items() if name != "labels"}).logits


@pytest.mark.parametrize("scheme, error", [("int8", 0.005), ("int4", 0.09)])
def test_a_matrix_comes_back_nearly_and_products_are_with_what_comes_back(scheme: str, error: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(64, 128, generator=generator), torch.randn(5, 128, generator=generator)
    numbers, scales = encode(weight, scheme)
    back = decode(numbers, scales, torch.float32)
    assert (back - weight).norm() < error * 2 * weight.norm()
    product = multiply(rows, pack(numbers), scales, None)
    assert (product - rows @ back.t()).norm() < 0.01 * product.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_has_the_product_that_it_has_among_others(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(64, 128, generator=generator), torch.randn(3, 128, generator=generator).to(dtype)
    rows[2] = 0
    numbers, scales = encode(weight, "int8")
    laid_out, bias = block(numbers), torch.randn(64, generator=generator).to(dtype)
    together = multiply(rows, laid_out, scales, bias)
    for row, expected in zip(rows, together, strict=True):
        alone = multiply(row[None], laid_out, scales, bias)[0]
        assert alone.dtype == dtype
        assert (alone - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("family", ["stablelm", "phi", "gemma2"])
@pytest.mark.parametrize("scheme, error", [("int8", 0.05), ("int4", 0.35)])
def test_quantised_models_answer_nearly_alike_and_load_as_they_were_saved(
    family: str, scheme: str, error: float, tmp_path: Path
) -> None:
    source = saved(tmp_path / "plain", family)
    exact = logits(load_weights(source, read_config(source)))
    model = load_quantized(source, read_config(source), scheme, CPU)
    assert (logits(model) - exact).norm() < error * exact.norm()
    mixtures = [module for module in model.modules() if isinstance(module, SparseFeedForward)]
    assert all(isinstance(one.experts, QuantizedExperts) and one.gate.weight.is_floating_point() for one in mixtures)
    quantize_folder(source, tmp_path / "small", read_config(source), scheme)
    kept = load_quantized(tmp_path / "small", read_config(tmp_path / "small"), scheme, CPU)
    assert torch.equal(logits(kept), logits(model))


def test_a_tied_head_is_quantised_on_its_own(tmp_path: Path) -> None:
    source = tmp_path / "plain"
    upcycle(tiny_dense("llama", tie_word_embeddings=True), noise=0.5).save_pretrained(source)
    exact = logits(load_weights(source, read_config(source)))
    quantize_folder(source, tmp_path / "small", read_config(source), "int8")
    kept = load_quantized(tmp_path / "small", read_config(source), "int8", CPU)
    assert (logits(kept) - exact).norm() < 0.03 * exact.norm()


def test_mistakes_name_their_remedy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "plain")
    small = tmp_path / "small"
    assert main(["quantize", str(source), str(small), "--to", "int4"]) == 0
    with pytest.raises(ValueError, match="quantise its original to int8"):
        load_quantized(small, read_config(small), "int8", CPU)
    assert main(["quantize", str(small), str(tmp_path / "again"), "--to", "int8"]) == 1
    assert main(["quantize", str(source), str(small), "--to", "int8"]) == 1
    said = capfd.readouterr().err
    assert "is quantised already" in said and "not empty" in said
    with pytest.raises(ValueError, match="use int8 or int4"):
        quantize_folder(source, tmp_path / "other", read_config(source), "int3")


def test_a_file_cut_short_is_told(tmp_path: Path) -> None:
    source = saved(tmp_path / "plain")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="shorter than it says"):
        load_weights(source, read_config(source))
