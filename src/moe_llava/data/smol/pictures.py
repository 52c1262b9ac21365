"""Drawings, and for training the same moved, mirrored, turned and tinted: a frozen tower sees only what it is shown."""

import random
from collections.abc import Iterator

from PIL import Image, ImageEnhance

_TURN = 12.0  # degrees
_SCALE = (0.78, 1.0)


def varied(picture: Image.Image, count: int, rng: random.Random) -> Iterator[Image.Image]:
    """`count` pictures of the same size that show the same thing, mirrored every other time."""
    for number in range(count):
        yield _vary(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 2 == 0 else picture, rng)


def _vary(picture: Image.Image, rng: random.Random) -> Image.Image:
    turned = picture.rotate(rng.uniform(-_TURN, _TURN), Image.Resampling.BICUBIC, fillcolor="white")
    side = round(picture.width * rng.uniform(*_SCALE))
    small = turned.resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(small, (rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)))
    for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        canvas = enhance(canvas).enhance(rng.uniform(0.7, 1.3))
    return canvas
