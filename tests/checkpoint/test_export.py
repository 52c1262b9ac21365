"""Stock layouts compute what ours computes, load without this package, and refuse what they cannot say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

from moe_llava.checkpoint.export import export, stock_model
from moe_llava.checkpoint.folder import load_model, save_model
from moe_llava.cli import main
from moe_llava.data.pixels import llava_pixels
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.compose import compose
from moe_llava.model.upcycle import upcycle
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import IMAGE_ID, SIZE, Tiny, tiny_causal, tiny_dense, tiny_inputs, tiny_sparse, tiny_tower

QWEN = {f"model.language.config.{k}": v for k, v in (("model_type", "qwen3"), ("num_key_value_heads", "2"))}
WITHOUT_US = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
assert "moe_llava" not in sys.modules
model, processor = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModelForImageTextToText, AutoProcessor))
text = "USER: <image> What colour is it? ASSISTANT:"
inputs = processor(images=Image.open(sys.argv[2]), text=text, return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1]:].tolist())
"""


@pytest.mark.parametrize(
    "model, decoder",
    [
        (tiny_sparse("qwen3"), "qwen3_moe"),
        (tiny_sparse("qwen3", layers=[1], top_k=1, normalize_gates=False), "qwen3_moe"),
        (tiny_sparse("llama", layers="all"), "mixtral"),
        (tiny_sparse("mistral", layers="all", num_experts=3), "mixtral"),
        (tiny_dense("stablelm"), "stablelm"),
    ],
    ids=["qwen3", "qwen3, top-1 as it is", "llama", "mistral", "dense"],
)
def test_stock_logits_are_ours(model: MoeLlavaForConditionalGeneration, decoder: str) -> None:
    stock = stock_model(model)
    assert isinstance(stock, LlavaForConditionalGeneration)
    assert stock.config.text_config.model_type == decoder
    inputs = {name: tensor for name, tensor in tiny_inputs().items() if name != "labels"}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert torch.allclose(stock(**inputs).logits[real], model(**inputs).logits[real], atol=1e-5)


def test_several_layers_of_the_tower_are_read_alike() -> None:
    tower = tiny_tower()
    model = compose(tiny_causal(), tower, image_token_id=IMAGE_ID, image_size=(SIZE, SIZE), feature_layer=[-2, -1])
    assert model.config.vision_hidden_size == 2 * tower.config.hidden_size
    inputs = {name: tensor for name, tensor in tiny_inputs().items() if name != "labels"}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert torch.allclose(stock_model(model)(**inputs).logits[real], model(**inputs).logits[real], atol=1e-5)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"family": "stablelm"}, "no mixture of experts of the stablelm family"),
        ({"family": "phi"}, "plain linear map"),
        ({"family": "llama"}, "in Mixtral every layer is sparse, here 2 of 3"),
        ({"family": "llama", "layers": "all", "normalize_gates": False}, "sum to one"),
    ],
)
def test_what_cannot_be_expressed_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        stock_model(tiny_sparse(**changes))


def test_a_gemma_head_and_a_long_projector_are_refused() -> None:
    with pytest.raises(ValueError, match="plain linear map"):
        stock_model(tiny_dense("gemma2", head_dim=8))
    model = tiny_dense("qwen3")
    model.config.projector_type = "mlp3x_gelu"
    with pytest.raises(ValueError, match="mlp3x_gelu"):
        stock_model(model)
    model.config.projector_type, model.config.image_token_id = "mlp2x_gelu", 4000
    with pytest.raises(ValueError, match="outside the vocabulary"):
        stock_model(model)


@pytest.fixture(scope="module")
def qwen(tiny: Tiny) -> Path:
    """A complete sparse checkpoint on Qwen3."""
    model, processor = build_stage(load_recipe(tiny.recipe, QWEN), "align")
    processor.image_processor = llava_pixels(processor.image_processor, pad=True)
    folder = tiny.folder / "qwen"
    folder.mkdir()
    save_model(folder, upcycle(model, noise=0.5), processor)
    return folder


def test_it_answers_the_same_without_this_package(qwen: Path, tiny: Tiny, tmp_path: Path) -> None:
    assert main(["export", str(qwen), str(tmp_path / "stock"), "--to", "hf-llava", "--json"]) == 0
    picture = tiny.folder / "images" / "red.png"
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_US, str(tmp_path / "stock"), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    model, processor = load_model(qwen)
    text = "USER: <image> What colour is it? ASSISTANT:"
    inputs = processor(images=Image.open(picture), text=text, return_tensors="pt")
    ours = model.eval().generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert json.loads(done.stdout) == ours.tolist()
    stock = AutoProcessor.from_pretrained(tmp_path / "stock")
    assert stock.chat_template == processor.chat_template
    assert stock(images=Image.open(picture), text=text, return_tensors="pt")["input_ids"].tolist() == (
        inputs["input_ids"].tolist()
    )


def test_a_folder_in_use_is_refused(qwen: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(qwen.iterdir())
    assert main(["export", str(qwen), str(qwen), "--to", "hf-llava"]) == 1
    assert "not empty" in capfd.readouterr().err
    assert sorted(qwen.iterdir()) == before


def test_a_text_only_model_is_a_causal_model(tiny: Tiny, tmp_path: Path) -> None:
    recipe = load_recipe(tiny.recipe, QWEN)
    assert recipe.model is not None
    text_only = recipe.model_copy(update={"model": recipe.model.model_copy(update={"vision": None})})
    model, processor = build_stage(text_only, "align")
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", upcycle(model, noise=0.5), processor)
    done = export(tmp_path / "ours", tmp_path / "stock")
    assert (done.architecture, done.text_model_type) == ("Qwen3MoeForCausalLM", "qwen3_moe")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "stock").config.num_experts == 4


def test_tied_words_stay_tied() -> None:
    model = upcycle(tiny_causal("qwen3", tie_word_embeddings=True), noise=0.5)
    stock = stock_model(model)
    assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
