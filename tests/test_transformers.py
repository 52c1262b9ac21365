"""A checkpoint of ours through transformers' own entry points: the same words as through ours."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import moe_llava
from moe_llava.checkpoint.folder import load_model, save_model
from moe_llava.generate.engine import Decoding
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import Tiny

QUESTION = "What colour is it?"


@pytest.fixture(scope="module")
def checkpoint(tiny: Tiny) -> Path:
    """A random sparse model whose experts differ."""
    dense, folder = tiny.folder / "transformers-dense", tiny.folder / "transformers-sparse"
    recipe = load_recipe(
        tiny.recipe,
        {
            "stages.sparsify.starts_from": str(dense),
            "stages.sparsify.sparsify.noise": "0.5",
            "model.language.config.initializer_range": "0.3",
        },
    )
    for path, stage in ((dense, "align"), (folder, "sparsify")):
        path.mkdir()
        save_model(path, *build_stage(recipe, stage))
    return folder


@pytest.fixture(scope="module")
def picture(tiny: Tiny) -> Path:
    return tiny.folder / "images" / "red.png"


@pytest.fixture(scope="module")
def answer(checkpoint: Path, picture: Path) -> str:
    said = moe_llava.load(checkpoint).chat(QUESTION, images=picture, decoding=Decoding(max_new_tokens=8))
    assert said
    return said


def test_auto_classes_and_generate(checkpoint: Path, picture: Path, answer: str) -> None:
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(checkpoint),
        AutoProcessor.from_pretrained(checkpoint),
    )
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    for use_cache in (True, False):
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=8,
                do_sample=False,
                use_cache=use_cache,
                suppress_tokens=[model.config.image_token_id],
            )
        text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text.strip() == answer


def test_pipeline(checkpoint: Path, picture: Path, answer: str) -> None:
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": QUESTION}]
    ask = pipeline("image-text-to-text", model=str(checkpoint))
    said = ask(
        text=[{"role": "user", "content": content}],
        return_full_text=False,
        generate_kwargs={
            "max_new_tokens": 8,
            "do_sample": False,
            "suppress_tokens": [ask.model.config.image_token_id],
        },
    )
    assert said[0]["generated_text"].strip() == answer


def test_weights_that_do_not_fit_the_config_are_named(checkpoint: Path, tmp_path: Path) -> None:
    changed, cut = tmp_path / "changed", tmp_path / "cut"
    shutil.copytree(checkpoint, changed)
    shutil.copytree(checkpoint, cut)
    config = json.loads((changed / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"other shapes than its config.json tells, .*\.mlp\."):
        load_model(changed)
    weights = load_file(cut / "model.safetensors")
    weights.pop("model.multi_modal_projector.0.weight")
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are absent .*multi_modal_projector\.0\.weight"):
        load_model(cut)
