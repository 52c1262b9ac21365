"""PIL images -> pixel values, as LLaVA-1.5 prepares them."""

from typing import Any

from transformers import AutoImageProcessor, LlavaImageProcessorPil

from moe_llava.model.config import MoeLlavaConfig

_KEPT = (
    "size",
    "crop_size",
    "do_resize",
    "resample",
    "do_center_crop",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


class MoeLlavaImageProcessor(LlavaImageProcessorPil):
    """Pad to a square in the mean colour (`do_pad`), resize, crop, normalise: in Pillow, as the original does.

    A class of its own so that a saved one is read back as it is: transformers would read its own LLaVA processor back
    on torchvision, whose resizing differs by up to two grey levels.
    """


AutoImageProcessor.register(
    MoeLlavaConfig, image_processor_classes={"pil": MoeLlavaImageProcessor, "torchvision": MoeLlavaImageProcessor}
)


def llava_pixels(image_processor: Any, *, pad: bool) -> MoeLlavaImageProcessor:
    """The same preparation of pixels, with or without padding to a square in the mean colour, as LLaVA-1.5 does it."""
    fields = {name: getattr(image_processor, name, None) for name in _KEPT}
    fields = {name: value for name, value in fields.items() if value is not None}
    fields.setdefault("do_center_crop", False)
    return MoeLlavaImageProcessor(**fields, do_pad=pad)
