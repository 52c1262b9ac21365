"""Image files -> RGB, the same way for training, chat and evaluation."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

_DECODE_ERRORS = (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError)


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB copy: EXIF rotation applied, transparency on white, 16-bit grey scaled to 8 bits.

    Raises:
        ValueError: for floating-point or 32-bit pixels, whose range only the user knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey16_to_grey8(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Decode an image file completely, or take a PIL image; see `to_rgb` for the conversion.

    Raises:
        ValueError: if the file is missing, broken or of an unsupported kind. The message names the file.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if not Path(source).is_file():
        raise ValueError(f"{source}: no such image file; correct the path or set the image folder")
    try:
        with Image.open(source) as image:
            return to_rgb(image)
    except _DECODE_ERRORS as error:
        raise ValueError(f"{source}: cannot decode this image ({error}); replace it or remove its sample") from error


def _grey16_to_grey8(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError("32-bit pixels have no fixed range; save the image with 8 or 16 bits")
    return Image.fromarray(np.rint(pixels / 257).astype(np.uint8))
