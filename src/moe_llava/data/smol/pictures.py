"""Drawings, and for training the same in other hands: a frozen tower sees only what it is shown.

Every copy is moved and turned, and half are mirrored. Of each two the first is tinted, the second redrawn: its outlines
drawn over it, lit from above like a relief, or out of focus.
"""

import math
import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

_TURN = 12.0  # degrees
_SCALE = (0.78, 1.0)
_PAPER = 250  # from this brightness on it is background


def varied(picture: Image.Image, count: int, rng: random.Random) -> Iterator[Image.Image]:
    """`count` pictures of the same size that show the same thing."""
    for number in range(count):
        moved = _move(picture, rng)
        pair, redrawn = divmod(number, 2)
        yield _REDRAWN[pair % len(_REDRAWN)](moved, rng) if redrawn else _tint(moved, rng)


def _move(picture: Image.Image, rng: random.Random) -> Image.Image:
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = picture.rotate(rng.uniform(-_TURN, _TURN), Image.Resampling.BICUBIC, fillcolor="white")
    side = round(picture.width * rng.uniform(*_SCALE))
    small = turned.resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(small, (rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)))
    return canvas


def _tint(picture: Image.Image, rng: random.Random) -> Image.Image:
    for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        picture = enhance(picture).enhance(rng.uniform(0.7, 1.3))
    return picture


def _outline(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Paler, with its edges drawn over it."""
    framed = ImageOps.expand(
        picture.convert("L"), 1, fill="white"
    )  # the filter leaves the outermost pixels as they are
    edges = ImageOps.invert(ImageOps.crop(framed.filter(ImageFilter.FIND_EDGES), 1)).convert("RGB")
    return Image.blend(picture, edges, rng.uniform(0.3, 0.8))


def _relief(picture: Image.Image, rng: random.Random) -> Image.Image:
    """As if it stood out from the paper: its blurred silhouette is a height, whose slope catches a light from above."""
    drawn = picture.convert("L").point(lambda value: 255 if value < _PAPER else 0)
    height = np.asarray(drawn.filter(ImageFilter.GaussianBlur(rng.uniform(0.04, 0.08) * picture.width)), float) / 255
    down, right = np.gradient(height)
    light = rng.uniform(0.15, 0.85) * math.pi
    slope = np.expand_dims(right * math.cos(light) + down * math.sin(light), axis=2)
    slope /= np.abs(slope).max() + 1e-6
    colours = np.asarray(picture.filter(ImageFilter.GaussianBlur(1)), float)
    lit = np.clip(colours * (1 + 0.45 * slope) + 25 * np.clip(slope, 0, 1), 0, 255)
    return Image.composite(Image.fromarray(lit.astype(np.uint8)), picture, drawn)


def _blur(picture: Image.Image, rng: random.Random) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.006, 0.017) * picture.width))


_REDRAWN = (_outline, _relief, _blur)
