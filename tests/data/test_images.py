"""Any picture file becomes the RGB picture a person sees, or an error that names it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moe_llava.data import load_image, to_rgb


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.jpg", image, exif=exif)
    assert load_image(path).size == (2, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (3, 3), (0, 0, 0, 0)).convert(mode)
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    loaded = load_image(save(tmp_path / "clear.png", image))
    assert loaded.mode == "RGB"
    assert loaded.getpixel((1, 1)) == (255, 255, 255)


def test_palette_colours_are_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 3), (200, 10, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert load_image(save(tmp_path / "palette.gif", image)).getpixel((0, 0)) == (200, 10, 30)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 257 * 128, 65535]], dtype=np.uint16))
    loaded = load_image(save(tmp_path / "deep.png", image))
    assert [loaded.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0.0, 3.5]], dtype=np.float32))
    with pytest.raises(ValueError, match=r"float\.tiff.*no fixed range"):
        load_image(save(tmp_path / "float.tiff", image))


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.png: no such image"):
        load_image(tmp_path / "gone.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=r"broken\.png: cannot decode"):
        load_image(broken)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = save(
        tmp_path / "noise.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    )
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"noise\.png"):
        load_image(path)


def test_an_open_image_is_converted_too() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert load_image(image).getpixel((0, 0)) == to_rgb(image).getpixel((0, 0)) == (255, 255, 255)
