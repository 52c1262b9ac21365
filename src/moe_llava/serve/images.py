"""Pictures from strangers -> RGB, or a sentence why not."""

import base64
import binascii
import io
import warnings

from PIL import Image

from moe_llava.data.images import load_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000  # 150 MB when decoded
MAX_RATIO = 50
KEPT_PIXELS = 2048
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten


class ImageRefusedError(ValueError):
    """A picture that is not taken, and why, in a sentence for its sender."""


def decode_image(content: bytes) -> Image.Image:
    """A picture as the model takes it: upright, 8-bit RGB, at most 2,048 pixels a side (larger ones are shrunk).

    Its size is read before its pixels are, so that a few bytes cannot become gigabytes.

    Raises:
        ImageRefusedError: broken, animated, too large, too narrow, or no image of a known kind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and odd metadata; both are judged here
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check(image, content)
                image.load()
                small = _shrunk(image)
                return load_image(small)
        except ImageRefusedError:
            raise
        except Image.UnidentifiedImageError:
            raise ImageRefusedError(
                f"This is no image ({len(content)} bytes): send one of {', '.join(FORMATS)}."
            ) from None
        except Image.DecompressionBombError:
            raise ImageRefusedError(f"The image has too many pixels; at most {MAX_PIXELS:,} are taken.") from None
        except Exception as error:  # noqa: BLE001 - decoders raise all sorts of things at what is broken
            raise ImageRefusedError(f"The image cannot be decoded: {error}.") from None


def decode_data_url(url: str) -> bytes:
    """The bytes in a `data:` URL.

    Raises:
        ImageRefusedError: it is not base64 of an image.
    """
    head, comma, content = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise ImageRefusedError("A data: URL of an image reads data:image/png;base64,... with its base64 behind.")
    kind = head.removeprefix("data:").partition(";")[0]
    if not kind.startswith("image/"):
        raise ImageRefusedError(f"The data: URL holds {kind[:100] or 'text'!r}; only image/... is taken.")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise ImageRefusedError("The data: URL is not valid base64.") from None


def _check(image: Image.Image, content: bytes) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageRefusedError(f"The image has {width} x {height} pixels; at most {MAX_PIXELS:,} are taken.")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageRefusedError(f"The image is {width} x {height}; at most {MAX_RATIO} times as long as wide is taken.")
    # Phones put a second view into a JPEG (MPO); the first is the photograph. How many frames there are is not counted:
    # that reads through all of them.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageRefusedError("The image is animated, or has several pages; send one of them.")
    # A scan passes over all pixels and may take as few as a hundred bytes. Its mark stands nowhere else in the data.
    if image.format in ("JPEG", "MPO") and (scans := content.count(b"\xff\xda")) > MAX_SCANS:
        raise ImageRefusedError(f"The JPEG has {scans:,} scans; at most {MAX_SCANS} are taken.")


def _shrunk(image: Image.Image) -> Image.Image:
    if max(image.size) <= KEPT_PIXELS:
        return image
    # Palettes and 16-bit grey do not resize well; the conversion must come first.
    image = load_image(image)
    image.thumbnail((KEPT_PIXELS, KEPT_PIXELS))
    return image
