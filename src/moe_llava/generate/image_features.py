"""Images -> patch features, each distinct image encoded once while it is remembered."""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from moe_llava.data.images import load_image
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.generate.plan import ImageSource
from moe_llava.model import MoeLlavaForConditionalGeneration

CHUNK = 16  # images in the tower at once


class ImageFeatures:
    """What the tower makes of images, by their bytes; `limit_bytes` bounds what is kept of earlier ones."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @torch.inference_mode()
    def encode(
        self, model: MoeLlavaForConditionalGeneration, processor: MoeLlavaProcessor, sources: Sequence[ImageSource]
    ) -> list[Float[Tensor, "patch channel"]]:
        """One tensor an image, in order.

        Raises:
            ValueError: an image cannot be read.
        """
        keys = [_image_key(source) for source in sources]
        needed = {key: self._known[key] for key in keys if key in self._known}
        new = {key: source for key, source in zip(keys, sources, strict=True) if key not in needed}
        for start in range(0, len(new), CHUNK):
            some = list(new)[start : start + CHUNK]
            images = [open_image(new[key]) for key in some]
            pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
            features = model.model.get_patch_features(pixels.to(model.device, model.dtype))
            needed |= dict(zip(some, features, strict=True))
        self._remember(needed)
        return [needed[key] for key in keys]

    def _remember(self, used: dict[str, Tensor]) -> None:
        for key, features in used.items():
            # A copy: a slice would keep all the images alive that were encoded with it.
            self._known[key] = features if key in self._known else features.clone()
            self._known.move_to_end(key)
        while self._known and sum(features.nbytes for features in self._known.values()) > self.limit_bytes:
            self._known.popitem(last=False)


def open_image(source: ImageSource) -> Image.Image:
    """A picture in RGB.

    Raises:
        ValueError: it cannot be read.
    """
    if not isinstance(source, bytes):
        return load_image(source)
    try:
        return load_image(Image.open(io.BytesIO(source)))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot decode an image of {len(source)} bytes ({error}); send a PNG or JPEG file") from error


def _image_key(source: ImageSource) -> str:
    """What identifies an image: its bytes."""
    if isinstance(source, Image.Image):
        return hashlib.sha256(f"{source.mode}{source.size}".encode() + source.tobytes()).hexdigest()
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"Cannot read the image {source}: {error.strerror}.") from error
