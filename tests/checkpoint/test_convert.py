"""Every published layout becomes the same model; what does not fit is named, and nothing half-written stays."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
from moe_llava.checkpoint.stream import write_model
from moe_llava.cli import main
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.config import moe_layers
from tests.checkpoint.published import (
    before_4_52,
    original_config,
    original_names,
    without_experts,
    write_original,
    write_tower,
)
from tests.tiny import DECODER, SIZE, tiny_dense, tiny_inputs, tiny_sparse

FAMILIES = ("stablelm", "phi", "llama", "mistral")


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    write_tower(folder)
    return folder


@pytest.fixture
def stage3(tmp_path: Path, tower: Path) -> Callable[..., tuple[Path, MoeLlavaForConditionalGeneration]]:
    """`stage3("phi")` -> a folder in the original's layout, and the model whose weights it holds."""

    def make(family: str = "llama", edit: Callable[[dict], Any] | None = None, **config: Any) -> tuple[Path, Any]:
        model = tiny_sparse(family)
        if model.lm_head.bias is not None:
            torch.nn.init.zeros_(model.lm_head.bias)
        tensors = original_names(model)
        if edit:
            edit(tensors)
        folder = tmp_path / f"stage3-{family}"
        return write_original(folder, tensors, original_config(model, str(tower), **config)), model

    return make


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
    first = EXPERT.replace("experts.3", "experts.0")
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


@pytest.mark.parametrize("since", ["before 4.52", "since"])
def test_llava_as_transformers_writes_it(since: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    tower.image_size, tower.patch_size = SIZE, 14
    stock = LlavaForConditionalGeneration(
        LlavaConfig(text_config=LlamaConfig(**DECODER), vision_config=tower, image_token_index=95, image_seq_length=4)
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


def _without(name: str) -> Callable[[dict], Any]:
    return lambda tensors: tensors.pop(name)


def _with(name: str) -> Callable[[dict], Any]:
    return lambda tensors: tensors.update({name: torch.zeros(2)})


def _as(dtype: torch.dtype) -> Callable[[dict], Any]:
    return lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(dtype)})


EXPERT = "model.layers.0.mlp.deepspeed_moe.experts.deepspeed_experts.3.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            _without(EXPERT),
            r"1 missing and 0 unexpected.*missing: model\.language_model\.layers\.0\.mlp\..*gate_up_proj \(experts 3\)",
        ),
        (_without("model.norm.weight"), r"missing: model\.language_model\.norm\.weight"),
        (_with("model.layers.0.lora_A.weight"), r"0 missing and 1 unexpected.*unexpected: model\.layers\.0\.lora_A"),
        (_with(EXPERT.replace("experts.3", "experts.4")), r"0 missing and 1 unexpected.*deepspeed_experts\.4\.up_proj"),
        (_with(EXPERT.replace("layers.0", "layers.9")), r"0 missing and 1 unexpected.*unexpected: model\.layers\.9"),
        (_with("model.norm.weight"), r"model\.norm\.weight has the shape \(2,\), which does not fit"),
        (_as(torch.int8), r"holds model\.norm\.weight as I8: quantised weights are not supported"),
        (_as(torch.int32), r"model\.norm\.weight holds torch\.int32: quantised weights are not supported"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    edit: Any, sentence: str, stage3: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = stage3(edit=edit)
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    assert "Traceback" not in capfd.readouterr().err


MOE = {"moe_enable": True, "moe_layers_idx": [0], "num_experts": [4], "top_k_experts": 2}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "llava_mpt"}, "'llava_mpt' is not supported"),
        ({"model_type": "bert"}, "'bert' is no LLaVA"),
        ({"model_type": "moe_llava"}, "of this library already"),
        ({"mm_video_tower": "LanguageBind_Video_merge"}, "video tower"),
        ({"image_aspect_ratio": "anyres"}, "'anyres' is not supported"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_projector_type": "simple_in2_out0"}, "'simple_in2_out0' is not supported"),
        ({"image_projector_type": "qformer2_64"}, "'qformer2_64' is not supported"),
        ({"image_projector_type": "pool_mlp2x_gelu"}, "'pool_mlp2x_gelu' is not supported"),
        ({"moe": {**MOE, "use_residual": True}}, "use_residual"),
        ({"moe": {**MOE, "ep_size": 2}}, "ep_size"),
        ({"moe": {**MOE, "num_experts": [2, 4]}}, "same number of experts"),
        ({"moe": {**MOE, "moe_layers_idx": [0, 77]}}, r"table moe: layers = \[0, 77\] must name distinct layers"),
        ({"moe": {**MOE, "moe_layers_idx": None}}, "moe_layers_idx is None"),
        ({"moe": {**MOE, "top_k_experts": 9}}, "top_k = 9 of num_experts = 4 is impossible"),
        ({"moe": "yes"}, "moe is 'yes'"),
        ({"mm_vision_select_feature": "cls"}, "'cls' is not supported"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer is None"),
        ({"mm_vision_select_layer": -99}, "layer -99 are impossible: the tower has 2 layers"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "64"}, "hidden_size is '64': a whole number above zero is needed"),
        ({"rms_norm_eps": "small"}, "describes no decoder.*rms_norm_eps"),
        ({"mm_image_tower": None}, "names no vision tower"),
        ({"mm_image_tower": "openai/clip-of-nobody"}, r"hf download openai/clip-of-nobody.*--vision-tower"),
    ],
)
def test_what_is_not_supported_is_a_sentence(
    changes: dict[str, Any], sentence: str, stage3: Callable[..., Any], tmp_path: Path
) -> None:
    folder, _ = stage3(**changes)
    with pytest.raises(ValueError, match=sentence):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_a_bin_file_runs_no_code(stage3: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, _ = stage3()
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _Evil()}, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(ValueError, match="holds more than tensors"):
        convert(folder, tmp_path / "out")
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"{}", b"\x10\0\0\0\0\0\0\0{}", bytes(200)])
def test_broken_files_are_named(content: bytes, stage3: Callable[..., Any], tmp_path: Path) -> None:
    folder, _ = stage3()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        convert(folder, tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
        convert(folder, tmp_path / "out")


def test_folders_that_are_no_checkpoint(stage3: Callable[..., Any], tmp_path: Path) -> None:
    folder, _ = stage3()
    with pytest.raises(ValueError, match=r"neither a folder nor a hub id"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        convert(tmp_path / "empty", tmp_path / "out")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="LoRA adapters"):
        convert(folder, tmp_path / "out")
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is missing"):
        convert(folder, tmp_path / "out")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json has no weight_map"):
        convert(folder, tmp_path / "out")
    for content, sentence in ((b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[]", "holds no JSON object")):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            convert(folder, tmp_path / "out")


def test_a_second_run_is_refused_and_an_interrupted_one_leaves_nothing(
    stage3: Callable[..., Any], tmp_path: Path
) -> None:
    folder, _ = stage3()

    def stop(done: int, total: int) -> None:
        assert 0 < done <= total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out", progress=stop)
    assert list((tmp_path / "out").iterdir()) == []
    convert(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="not empty"):
        convert(folder, tmp_path / "out")


def test_a_full_disk_is_said_before_and_while_writing(
    stage3: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = stage3()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"out needs 0\.\d MB and its disk has 0\.0 MB left"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write_model(tmp_path, {"w": ((2,), torch.float32)}, [("w", torch.zeros(2))])


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
