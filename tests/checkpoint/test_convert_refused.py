"""What does not fit is named in a sentence, and nothing half-written stays."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe_llava.checkpoint.original import convert
from moe_llava.checkpoint.stream import write_model
from moe_llava.cli import main


def _without(name: str) -> Callable[[dict], Any]:
    return lambda tensors: tensors.pop(name)


def _with(name: str) -> Callable[[dict], Any]:
    return lambda tensors: tensors.update({name: torch.zeros(2)})


def _as(dtype: torch.dtype) -> Callable[[dict], Any]:
    return lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(dtype)})


EXPERT = "model.layers.0.mlp.deepspeed_moe.experts.deepspeed_experts.{}.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            _without(EXPERT.format(3)),
            r"1 missing and 0 unexpected.*missing: model\.language_model\.layers\.0\.mlp\..*gate_up_proj \(experts 3\)",
        ),
        (_without("model.norm.weight"), r"missing: model\.language_model\.norm\.weight"),
        (_with("model.layers.0.lora_A.weight"), r"0 missing and 1 unexpected.*unexpected: model\.layers\.0\.lora_A"),
        (_with(EXPERT.format(4)), r"0 missing and 1 unexpected.*deepspeed_experts\.4\.up_proj"),
        (
            _with(EXPERT.format(3).replace("layers.0", "layers.9")),
            r"0 missing and 1 unexpected.*unexpected: model\.layers\.9",
        ),
        (_with("model.norm.weight"), r"model\.norm\.weight has the shape \(2,\), which does not fit"),
        (_as(torch.int8), r"model\.norm\.weight holds torch\.int8: quantised weights are not supported"),
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
        ({"mm_vision_select_layer": -99}, "feature_layer = -99: the tower has the hidden states 0 to 2"),
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
