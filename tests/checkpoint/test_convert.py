"""Every published layout becomes the same model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from moe_llava.checkpoint.original import convert
from moe_llava.cli import main
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.config import moe_layers
from tests.checkpoint.published import (
    before_4_52,
    original_config,
    original_names,
    without_experts,
    write_original,
)
from tests.tiny import DECODER, SIZE, tiny_dense, tiny_inputs

FAMILIES = ("stablelm", "phi", "llama", "mistral")
EXPERT = "model.layers.0.mlp.deepspeed_moe.experts.deepspeed_experts.{}.up_proj.weight"


def load(folder: Path) -> MoeLlavaForConditionalGeneration:
    return MoeLlavaForConditionalGeneration.from_pretrained(folder).eval()


def weights(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def logits(model: Any) -> Tensor:
    inputs = tiny_inputs()
    with torch.no_grad():
        return model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}).logits


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sparse_checkpoint_comes_over_bit_by_bit(family: str, stage3: Callable[..., Any], tmp_path: Path) -> None:
    folder, model = stage3(family)
    done = convert(folder, tmp_path / "out")
    assert same(weights(tmp_path / "out"), dict(model.state_dict()))
    converted = load(tmp_path / "out")
    converted.config.image_token_id = model.config.image_token_id
    assert torch.equal(logits(converted), logits(model))
    assert len(done.warnings) == 1
    assert "no tokenizer" in done.warnings[0]
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tmp_path / "out"), MoeLlavaForConditionalGeneration)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_of_either_kind_give_the_same(
    kind: str, shards: int, stage3: Callable[..., Any], tower: Path, tmp_path: Path
) -> None:
    _, model = stage3()
    source = tmp_path / "shards"
    write_original(source, original_names(model), original_config(model, str(tower)), shards=shards, kind=kind)
    convert(source, tmp_path / "out")
    assert same(weights(tmp_path / "out"), dict(model.state_dict()))


def test_safetensors_win_over_bin_in_one_folder(stage3: Callable[..., Any], tmp_path: Path) -> None:
    folder, model = stage3()
    torch.save({"model.norm.weight": torch.zeros(3)}, folder / "pytorch_model.bin")
    convert(folder, tmp_path / "out")
    assert same(weights(tmp_path / "out"), dict(model.state_dict()))


def test_an_index_of_bin_files_that_were_not_fetched_does_not_matter(
    stage3: Callable[..., Any], tmp_path: Path
) -> None:
    folder, model = stage3()
    index = {"weight_map": {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(folder, tmp_path / "out")
    assert same(weights(tmp_path / "out"), dict(model.state_dict()))


def test_a_stack_of_experts_takes_the_widest_of_their_types(stage3: Callable[..., Any], tmp_path: Path) -> None:
    """Not that of the first expert, which would round the others."""
    first = EXPERT.format(0)
    folder, model = stage3(edit=lambda tensors: tensors.update({first: tensors[first].half()}))
    convert(folder, tmp_path / "out")
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert torch.equal(weights(tmp_path / "out")[name][1:], model.state_dict()[name][1:])


def test_stored_precision_is_kept(stage3: Callable[..., Any], tmp_path: Path) -> None:
    def to_bf16(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if "gate.wg" not in name:
                tensors[name] = tensors[name].bfloat16()

    folder, _ = stage3(edit=to_bf16)
    convert(folder, tmp_path / "out")
    kinds = {name: tensor.dtype for name, tensor in weights(tmp_path / "out").items()}
    assert {kinds.pop(name) for name in list(kinds) if name.endswith("mlp.gate.weight")} == {torch.float32}
    assert set(kinds.values()) == {torch.bfloat16}
    assert load(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["stablelm", "phi"])
def test_stage_two_and_stage_one_are_the_dense_model(
    family: str, stage3: Callable[..., Any], tower: Path, tmp_path: Path
) -> None:
    """Stage I is stage II in three places: the projector, a base decoder, the tower."""
    _, model = stage3(family)
    tensors = without_experts(original_names(model, tower=False))
    config = original_config(model, str(tower), model_type=f"llava_{family}")
    del config["moe"]
    second = write_original(tmp_path / "stage2", tensors, config)
    convert(second, tmp_path / "two")
    dense = load(tmp_path / "two")
    assert moe_layers(dense.config.text_config) == ()

    first = tmp_path / "stage1"
    first.mkdir()
    (first / "config.json").write_text(json.dumps(config))
    projector = {name: tensor for name, tensor in tensors.items() if "mm_projector" in name}
    torch.save(projector, first / "mm_projector.bin")
    base = {name: tensor for name, tensor in tensors.items() if "mm_projector" not in name}
    if family == "phi":
        base["lm_head.bias"] = torch.ones(model.config.text_config.vocab_size)  # which the original loses
    write_original(tmp_path / "base", base, {}, shards=2)
    with pytest.raises(ValueError, match="--language-model"):
        convert(first, tmp_path / "one")
    convert(first, tmp_path / "one", language_model=tmp_path / "base")
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_whole_clip_only_the_image_side_is_read(kind: str, stage3: Callable[..., Any], tmp_path: Path) -> None:
    """As the hub's openai/clip-vit-large-patch14-336 and google/siglip-so400m-patch14-384 are."""
    sides = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = sides | {"image_size": SIZE, "patch_size": 14}
    text = sides | {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1}
    whole = AutoModel.from_config(AutoConfig.for_model(kind, vision_config=vision, text_config=text))
    whole.save_pretrained(tmp_path / "whole")
    _, model = stage3()
    config = original_config(model, "somewhere/else")
    source = write_original(tmp_path / "source", original_names(model, tower=False), config)
    convert(source, tmp_path / "out", vision_tower=tmp_path / "whole")
    made = weights(tmp_path / "out")
    for name, tensor in whole.vision_model.state_dict().items():
        assert torch.equal(made[f"model.vision_tower.{name}"], tensor)


def test_llava_in_its_own_layout(tower: Path, tmp_path: Path) -> None:
    model = tiny_dense()
    tensors = {
        name.replace("image_spatial_proj.", "").replace("image_tower.image_tower", "vision_tower.vision_tower"): tensor
        for name, tensor in original_names(model).items()
    }
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    config = original_config(model, "none", model_type="llava")
    for name in ("mm_image_tower", "image_projector_type"):
        del config[name]
    config |= {"mm_vision_tower": str(tower), "mm_projector_type": "mlp2x_gelu"}
    convert(write_original(tmp_path / "llava", tensors, config), tmp_path / "out")
    assert same(weights(tmp_path / "out"), dict(model.state_dict()))


@pytest.mark.parametrize("since, layer", [("before 4.52", -2), ("since", -2), ("since", [-3, -1])])
def test_llava_as_transformers_writes_it(since: str, layer: int | list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    tower.image_size, tower.patch_size = SIZE, 14
    stock = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=LlamaConfig(**DECODER),
            vision_config=tower,
            image_token_index=95,
            image_seq_length=4,
            vision_feature_layer=layer,
        )
    ).eval()
    tensors = {}
    for name, tensor in stock.state_dict().items():
        tensors[name if since == "since" else before_4_52(name)] = tensor.clone()
    config = json.loads(stock.config.to_json_string(use_diff=False))
    convert(write_original(tmp_path / "hf", tensors, config), tmp_path / "out")
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(stock), rtol=0, atol=1e-5)


def test_a_tied_head_is_not_asked_for(tower: Path, tmp_path: Path) -> None:
    model = tiny_dense("qwen2", tie_word_embeddings=True)
    tensors = original_names(model)
    config = original_config(model, str(tower), model_type="llava_qwen1_5", tie_word_embeddings=True)
    del tensors["lm_head.weight"]
    convert(write_original(tmp_path / "tied", tensors, config), tmp_path / "out")
    converted = load(tmp_path / "out")
    converted.config.image_token_id = model.config.image_token_id
    assert torch.equal(logits(converted), logits(model))


def test_the_folder_s_name_decides_nothing(stage3: Callable[..., Any], tmp_path: Path) -> None:
    folder, model = stage3("stablelm")
    misleading = folder.rename(tmp_path / "dolphin-qwen-lora")
    convert(misleading, tmp_path / "out")
    assert same(weights(tmp_path / "out"), dict(model.state_dict()))


def test_the_command_prints_one_object(
    stage3: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, model = stage3()
    assert main(["convert", str(folder), str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["tensors"] == len(model.state_dict())
    assert printed["bytes"] == sum(tensor.nbytes for tensor in model.state_dict().values())
