"""The front of the image decoder: what a file is, told from its first and last bytes, before any pixel is asked for. No TensorFlow.

Nearly all files pass through as they are, at ten microseconds each. What tf.io would show wrongly (CMYK, palettes in BMP, TIFF and
other strangers) Pillow decodes instead; what nobody should decode (empty, cut short, a header that asks for gigabytes) gets a reason.
"""

import functools
import io
import warnings

MAX_PIXELS = 64 * 2**20  # a 3 MB JPEG can ask for gigabytes; more pixels than this are broken
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")  # not EPS and the like, which start programs


class Broken(Exception):
    """Why an image cannot be shown; `inspect` turns it into its reason."""


def inspect(data):
    """bytes of a file -> (bytes that tf.io decodes to the right RGB, None), or (data, why it cannot be shown). Never raises."""
    try:
        kind = _kind(data)
        height, width, plain, whole = _HEADERS[kind](data) if kind else (1, 1, False, False)
        _check_size(height, width)
        if not plain:
            return as_bmp(data), None
        if not whole:
            _pillow(data).load()  # raises where data is missing; what merely has no proper end is shown as it is
        return data, None
    except Broken as error:
        return data, str(error)
    except Exception as error:  # a decoder's own complaint: of any type, on hostile bytes
        return data, f"{type(error).__name__}: {error}"[:200]


def why(data):
    """The reason for an image that passed `inspect` and still did not decode."""
    reason = inspect(data)[1]
    if reason:
        return reason
    try:
        _pillow(data).load()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "its pixels do not decode"


def as_bmp(data):
    """Any image that Pillow reads -> the bytes of a BMP of its RGB values; of an animation the first frame. Raises what Pillow raises."""
    from PIL import Image

    image = _pillow(data)
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips at 255
        import numpy as np

        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "bmp")
    return buffer.getvalue()


@functools.cache
def _quiet():
    warnings.filterwarnings("ignore", module="PIL")  # its remarks on odd files: a run has its own list of these


def _pillow(data):
    """The opened image, its size checked, its pixels not decoded yet."""
    from PIL import Image

    _quiet()
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise Broken("not an image") from None
    except Image.DecompressionBombError as error:
        raise Broken(str(error)) from None
    _check_size(image.height, image.width)
    return image


def _check_size(height, width):
    if height < 1 or width < 1:
        raise Broken(f"its header says {width} x {height} pixels")
    if height * width > MAX_PIXELS:
        raise Broken(f"its header says {width} x {height} pixels, more than {MAX_PIXELS // 2**20} Mi")


# -------------------------------------------------- headers: (height, width, tf.io shows it rightly, its end is where it should be)


def _kind(data):
    if not data:
        raise Broken("empty file")
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if data[:2] == b"BM" else None


def _number(data, at, size, order="big"):
    part = data[at : at + size]
    if len(part) < size:
        raise Broken("cut short within its header")
    return int.from_bytes(part, order)


def _jpeg(data):
    at = 2
    while True:
        if _number(data, at, 1) != 0xFF:
            raise Broken("damaged JPEG header")
        marker = _number(data, at + 1, 1)
        if marker == 0xFF:  # filling
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            break
        elif marker in (0xD9, 0xDA):
            raise Broken("JPEG without a frame header")
        else:
            at += 2 if marker == 0x01 or 0xD0 <= marker <= 0xD8 else 2 + max(2, _number(data, at + 2, 2))
    precision, components = _number(data, at + 4, 1), _number(data, at + 9, 1)
    plain = marker in (0xC0, 0xC1, 0xC2) and precision == 8 and components in (1, 3)  # not CMYK, 12 bits, lossless, arithmetic
    return _number(data, at + 5, 2), _number(data, at + 7, 2), plain, b"\xff\xd9" in data[-64:]


def _png(data):
    if data[12:16] != b"IHDR":
        raise Broken("damaged PNG header")
    return _number(data, 20, 4), _number(data, 16, 4), True, b"IEND" in data[-64:]


def _webp(data):
    chunk, whole = data[12:16], _number(data, 4, 4, "little") + 8 <= len(data)
    if chunk == b"VP8X":
        animated = bool(_number(data, 20, 1) & 2)
        return _number(data, 27, 3, "little") + 1, _number(data, 24, 3, "little") + 1, not animated, whole
    if chunk == b"VP8L":
        bits = _number(data, 21, 4, "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, True, whole
    if chunk == b"VP8 ":
        return _number(data, 28, 2, "little") & 0x3FFF, _number(data, 26, 2, "little") & 0x3FFF, True, whole
    raise Broken("damaged WebP header")


def _bmp(data):
    height, width = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (22, 18))
    return abs(height), width, False, True  # palettes, run lengths, 16 bits: Pillow knows them all


_HEADERS = {"jpeg": _jpeg, "png": _png, "webp": _webp, "bmp": _bmp}
