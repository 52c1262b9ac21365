"""Any tower gives patches in reading order; what is no patch is dropped."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from moe_llava.model.compose import compose
from moe_llava.model.projector import Projector, projector_depth
from moe_llava.model.vision import grid_size, patch_features, tower_shape
from tests.tiny import tiny_causal

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TOWERS: dict[str, tuple[dict[str, Any], int, int | None, tuple[int, int, int]]] = {
    # configuration, pixels, feature layer -> patches, width, prefix tokens
    "clip_vision_model": ({**VIT, "image_size": 28, "patch_size": 14}, 28, -2, (4, 32, 1)),
    "siglip_vision_model": ({**VIT, "image_size": 42, "patch_size": 14}, 42, -2, (9, 32, 0)),
    "dinov2": ({**VIT, "image_size": 28, "patch_size": 14}, 28, -1, (4, 32, 1)),
    "dinov3_vit": ({**VIT, "image_size": 32, "patch_size": 16, "num_register_tokens": 4}, 32, -1, (4, 32, 5)),
    "timm_wrapper": ({"architecture": "resnet18"}, 64, None, (4, 512, 0)),
}


def config_of(name: str) -> PreTrainedConfig:
    if name == "timm_wrapper":
        pytest.importorskip("timm", reason="needs moe-llava[timm]")
    return AutoConfig.for_model(name, **TOWERS[name][0])


@pytest.mark.parametrize("name", TOWERS)
def test_shape_is_measured_without_weights(name: str) -> None:
    _, pixels, layer, expected = TOWERS[name]
    shape = tower_shape(config_of(name), pixels, pixels, layer)
    assert (shape.tokens, shape.width, shape.prefix_tokens) == expected


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_a_model_sees_through_any_tower(name: str) -> None:
    _, pixels, layer, (patches, width, prefix) = TOWERS[name]
    tower = AutoModel.from_config(config_of(name)).eval()
    model = compose(tiny_causal(), tower, image_token_id=95, image_size=(pixels, pixels), feature_layer=layer)
    assert model.config.image_seq_length == patches
    image = torch.randn(1, 3, pixels, pixels)
    assert patch_features(model.model.vision_tower, image, layer, prefix).shape == (1, patches, width)
    ids = torch.tensor([[1, *[95] * patches, 5]])
    blank = model(input_ids=ids, pixel_values=torch.zeros_like(image)).logits
    assert not torch.allclose(model(input_ids=ids, pixel_values=image).logits, blank)


@pytest.mark.parametrize("layers", [99, -99, [0, 99], []])
def test_a_layer_that_a_tower_lacks_is_refused(layers: int | list[int]) -> None:
    with pytest.raises(ValueError, match="the tower has the hidden states 0 to"):
        tower_shape(config_of("clip_vision_model"), 28, 28, layers)


@torch.no_grad()
def test_a_grid_is_read_row_by_row() -> None:
    pytest.importorskip("timm", reason="needs moe-llava[timm]")
    tower = AutoModel.from_config(config_of("timm_wrapper")).eval()
    pixels = torch.randn(1, 3, 64, 64)
    grid = tower(pixels).last_hidden_state
    patches = patch_features(tower, pixels, None, 0)
    assert torch.equal(patches[0, 1], grid[0, :, 0, 1])
    assert torch.equal(patches[0, 2], grid[0, :, 1, 0])


@torch.no_grad()
def test_maps_of_several_layers_lie_side_by_side_on_the_coarsest_grid() -> None:
    pytest.importorskip("timm", reason="needs moe-llava[timm]")
    tower = AutoModel.from_config(config_of("timm_wrapper")).eval()
    pixels = torch.randn(1, 3, 64, 64)
    fine, coarse = tower(pixels, output_hidden_states=True).hidden_states[-2:]
    assert fine.shape[-1] == 2 * coarse.shape[-1]
    patches = patch_features(tower, pixels, [-1, -2], 0)
    assert patches.shape[1] == coarse[0, 0].numel()
    torch.testing.assert_close(patches[0, 1, : coarse.shape[1]], coarse[0, :, 0, 1])
    torch.testing.assert_close(patches[0, 1, coarse.shape[1] :], fine[0, :, :2, 2:4].mean(dim=(1, 2)))
    assert tower_shape(tower.config, 64, 64, [-1, -2]).width == coarse.shape[1] + fine.shape[1]


def test_the_published_384_px_models_drop_one_patch() -> None:
    config = AutoConfig.for_model("siglip_vision_model", **{**VIT, "image_size": 42, "patch_size": 14})
    tower = AutoModel.from_config(config)
    model = compose(tiny_causal(), tower, image_token_id=95, image_size=(42, 42), feature_layer=-2, prefix_tokens=1)
    assert model.config.image_seq_length == 8


def test_projectors() -> None:
    assert [type(layer).__name__ for layer in Projector("mlp2x_gelu", 8, 4)] == ["Linear", "GELU", "Linear"]
    assert projector_depth("linear") == 1
    assert projector_depth("mlp3x_gelu") == 3
    with pytest.raises(ValueError, match="'qformer2_64' is not supported"):
        projector_depth("qformer2_64")


def test_grids_are_square() -> None:
    assert grid_size(576) == (24, 24)
    with pytest.raises(ValueError, match="728"):
        grid_size(728)
