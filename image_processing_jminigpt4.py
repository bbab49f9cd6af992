# Copyright 2026 The jminigpt4 authors.
#
# Licensed under the MIT License; you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     https://opensource.org/license/mit
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Pictures of any kind on their way into Japanese MiniGPT-4: what is opened, what is refused, what the model sees."""

import base64
import binascii
import functools
import io
import itertools
import re
import warnings
from collections.abc import Iterator
from http.client import HTTPException
from os.path import isfile
from typing import Any, BinaryIO, Literal, cast
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension, PILImageResampling
from transformers.processing_utils import ImagesKwargs
from transformers.utils import auto_docstring

# Raster formats with a decoder inside Pillow and its bundled libraries. Not among them: EPS, which Pillow hands to
# Ghostscript, and the many formats that nobody has tested against malice.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_BYTES = 200_000_000
# What a small file can multiply without breaking `max_pixels`: each of these would take more than 5 seconds or
# 400 MiB somewhere above its limit, and real files stay far below it.
MAX_SIDE = 1_000_000  # Pillow keeps a pointer for every row
MAX_PIECES = 5_000  # of a JPEG's header, or chunks of a PNG that are not pixels
MAX_SCANS = 100  # of a JPEG; cameras and optimisers write 1 to 20
MAX_TILE = 1 << 24  # pixels of a TIFF's tile, where its picture is smaller
MAX_STRIPS = 100_000  # of a TIFF
# Decoders that hold several copies of a picture: of these formats, half of `max_pixels` is decoded.
COPYING_FORMATS = ("WEBP", "AVIF", "HEIF")
# Beginning of what iPhones write: an ISO media file with a brand of HEIF that stands for HEVC (ISO/IEC 23008-12, annex
# B). Decoded where pillow-heif is installed.
_HEIC = re.compile(rb".{4}ftyp(.{4}){0,15}?(hei[cxms]|hev[cxms])", re.DOTALL)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a JPEG, but for a restart or the guard of a byte 0xFF
_BAND = 1 << 20  # pixels converted at a time

PictureSource = Image.Image | np.ndarray | torch.Tensor | bytes | BinaryIO


class JMiniGPT4ImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    background (`list[int]`, *optional*, defaults to `[255, 255, 255]`):
        Red, green and blue (0-255) of what shows through transparent parts of a picture.
    plain_rgb (`bool`, *optional*, defaults to `False`):
        Whether to do what the original code did and nothing else, `Image.convert("RGB")`: transparent parts show
        whatever colour is stored under them, EXIF orientation is ignored, 16 bits are clipped to 8.
    max_pixels (`int`, *optional*, defaults to 50000000):
        Largest picture, width times height, that is decoded.
    """

    background: list[int]
    plain_rgb: bool
    max_pixels: int


@auto_docstring
class JMiniGPT4ImageProcessor(PilBackend):
    r"""Pictures of any kind to `pixel_values`.

    A picture may be a PIL image of any mode, a numpy array or torch tensor (`(height, width)`, `(height, width,
    channels)` or `(channels, height, width)`; integers, or floats in [0, 1]), the bytes of a picture file, or an open
    binary file. It is turned as its EXIF orientation says, laid on a white background where it is transparent, reduced
    to 8 bits, squeezed to `size` with PIL's bicubic filter and normalised with CLIP's mean and standard deviation.
    Apart from the first three steps this is `Blip2ImageEvalProcessor` of LAVIS, bit for bit.
    """

    valid_kwargs = JMiniGPT4ImageProcessorKwargs
    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    background = [255, 255, 255]
    plain_rgb = False
    max_pixels = 50_000_000

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens what is not yet a picture: bytes, open files, and the strings that transformers' own `load_image`
        takes, paths, http and https addresses and base64, with or without `data:image/…`. Nothing is decoded here. The
        nesting stays as it is.

        Raises:
            ValueError: Something is no picture; the message names its position.
        """
        return self._fetch(image_url_or_urls, itertools.count(1))

    def _fetch(self, source: Any, positions: Iterator[int]) -> Any:
        if isinstance(source, list | tuple):
            return [self._fetch(each, positions) for each in source]
        name = f"picture {next(positions)}"
        if isinstance(source, str):
            return self._fetch_string(source, name)
        if isinstance(source, bytes) or hasattr(source, "read"):
            return open_picture(source, name)
        if not isinstance(source, Image.Image | np.ndarray | torch.Tensor):
            raise ValueError(
                f"{name} is a {type(source).__name__}: give a PIL image, an array, bytes or an open file."
            )
        return source

    def _fetch_string(self, source: str, name: str) -> Image.Image:
        # Not transformers' `load_image`: it opens every format, before any limit is checked, and drops transparency.
        if isfile(source):
            with open(source, "rb") as file:
                return open_picture(file, source)
        if source.startswith(("http://", "https://")):
            try:
                with urlopen(Request(source, headers={"User-Agent": "jminigpt4"}), timeout=60) as response:
                    return open_picture(response, source)
            except (OSError, HTTPException):
                raise ValueError(f"{source} could not be fetched.") from None
        encoded = source.partition(",")[2] if source.startswith("data:image/") else "".join(source.split())
        try:
            return open_picture(base64.b64decode(encoded, validate=True), name)
        except binascii.Error:
            raise ValueError(f"{name}, {source!r:.60}, is no file, no address and no valid base64.") from None

    def _prepare_image_like_inputs(
        self, images: Any, *args: Any, expected_ndims: int = 3, **kwargs: Any
    ) -> list[np.ndarray]:
        pictures = flat_list(self.fetch_images(images))
        if not pictures:
            raise ValueError("The list of pictures is empty.")
        return [self.process_image(picture, name=f"picture {i}", **kwargs) for i, picture in enumerate(pictures, 1)]

    def process_image(
        self,
        image: PictureSource,
        name: str = "picture",
        do_convert_rgb: bool | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """One picture to an array of `uint8`, `(3, height, width)`.

        Everything passes [`to_rgb`], but for a PIL image of mode RGB with `do_convert_rgb=False`: the caller has
        converted it. Its size is checked all the same.
        """
        if do_convert_rgb is False and isinstance(image, Image.Image) and image.mode == "RGB":
            max_pixels = kwargs.get("max_pixels") or self.max_pixels
            _check_size(image.width, image.height, max_pixels, name)
            rgb = _decode(image, name, max_pixels)
        else:
            rgb = self.to_rgb(image, name, input_data_format=input_data_format, **kwargs)
        return np.moveaxis(np.asarray(rgb), -1, 0)

    def to_rgb(
        self,
        image: PictureSource,
        name: str = "picture",
        background: list[int] | None = None,
        plain_rgb: bool | None = None,
        max_pixels: int | None = None,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> Image.Image:
        """One picture to a PIL image of mode RGB, before resizing.

        Args:
            image: A PIL image, array, tensor, the bytes of a picture file or an open binary file.
            name: What error messages call the picture.
            background, plain_rgb, max_pixels: As in [`JMiniGPT4ImageProcessorKwargs`]; the processor's own by default.
            input_data_format: `"channels_first"` or `"channels_last"`, for arrays whose shape does not tell.

        Raises:
            ValueError: The picture is empty, damaged, larger than `max_pixels` or of a shape no picture has. Sizes are
                read from the header, before anything is decoded.
        """
        background = self.background if background is None else background
        plain_rgb = self.plain_rgb if plain_rgb is None else plain_rgb
        max_pixels = self.max_pixels if max_pixels is None else max_pixels
        if isinstance(image, bytes) or hasattr(image, "read"):
            image = open_picture(cast("bytes | BinaryIO", image), name)
        if not isinstance(image, Image.Image):
            image = _from_array(image, name, max_pixels, input_data_format)
        _check_size(image.width, image.height, max_pixels, name)
        image = _decode(image, name, max_pixels)
        if plain_rgb:
            return image.convert("RGB")
        image = _upright(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = _eight_bits(np.asarray(image), name)
        if image.mode == "RGB" and not image.has_transparency_data:
            return image.copy()
        # Band by band: a picture with transparency takes several times its size on its way.
        rgb, rows = Image.new("RGB", image.size), max(1, _BAND // image.width)
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            if band.mode == "La":
                band = band.convert("LA")  # the only way out of this mode that Pillow knows
            if band.has_transparency_data:
                backdrop = Image.new("RGBA", band.size, (*background, 255))
                band = Image.alpha_composite(backdrop, band.convert("RGBA"))
            rgb.paste(band.convert("RGB"), (0, top))
        return rgb


def flat_list(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return [picture for each in images for picture in flat_list(each)]
    return [images]


def open_picture(source: bytes | BinaryIO, name: str = "picture") -> Image.Image:
    """The bytes of a picture file, or an open binary file, to a PIL image that is not decoded yet; its mode and size
    are as in the file.

    Raises:
        ValueError: It is empty, larger than 200 MB (1e6 bytes) or of none of `FORMATS`, or built to take long. The
            message names the picture; it does not repeat a library's message, which may hold addresses in memory.
    """
    content = source if isinstance(source, bytes) else source.read(MAX_BYTES + 1)
    if not 0 < len(content) <= MAX_BYTES:
        raise ValueError(
            f"{name} is empty (0 bytes)." if not content else f"{name} has more than {MAX_BYTES:,} bytes."
        )
    _check_pieces(content, name)
    formats = ("HEIF",) if _HEIC.match(content) else FORMATS
    if formats != FORMATS and not reads_heic():
        raise ValueError(f"{name} is an HEIC picture: pip install pillow-heif, or save it as JPEG.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `max_pixels` decides about large pictures, and damage is told below
            return Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has more pixels than Pillow opens: shrink it.") from None
    except Exception:
        # Pillow's own words name memory addresses and differ by plug-in; they are for its developers.
        raise ValueError(f"{name} is not a picture of a known format ({', '.join(FORMATS)}).") from None


@functools.cache
def reads_heic() -> bool:
    """Whether HEIC pictures can be decoded, for which pillow-heif is needed; it is then known to Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    # The picture alone, not the small, depth and other pictures beside it.
    register_heif_opener(thumbnails=False, aux_images=False, depth_images=False)
    return True


def _check_pieces(content: bytes, name: str):
    """Refuses pictures of very many pieces: Pillow and libjpeg take time for each, however small."""
    count = 0
    if content.startswith(b"\xff\xd8"):
        count, scans, _ = _count_segments(content)
        if scans > MAX_SCANS:
            raise ValueError(f"{name} is a JPEG of more than {MAX_SCANS} scans.")
    elif content.startswith(b"\x89PNG"):
        count = _count_chunks(content)
    elif content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tags(content, name)
    if count > MAX_PIECES:
        raise ValueError(f"{name} has more than {MAX_PIECES:,} pieces beside its pixels: save it anew.")


def _count_segments(content: bytes) -> tuple[int, int, int]:
    """Segments of a JPEG before its first scan (bytes of padding count as well), scans, and where the first begins;
    nothing is counted beyond its limit, and scans only where there may be too many."""
    may_be_many = content.count(b"\xff\xda") > MAX_SCANS  # thumbnails and what is behind the picture have some, too
    at, count, scans, first = 2, 0, 0, len(content)
    while count <= MAX_PIECES and scans <= MAX_SCANS and (found := _MARKER.search(content, at)):
        if not scans:
            count += 1 + found.start() - at
        if found[0] == b"\xff\xda":
            first, scans = min(first, found.start()), scans + 1
        if found[0] == b"\xff\xd9" or (scans and not may_be_many):
            break
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    return count, scans, first


def _count_chunks(content: bytes) -> int:
    """Chunks of a PNG that hold no pixels; a profile, which unpacks to a megabyte, counts for a thousand."""
    at, count = 8, 0
    while count <= MAX_PIECES and (kind := content[at + 4 : at + 8]) not in (b"", b"IEND"):
        count += {b"IDAT": 0, b"fdAT": 0, b"fcTL": 0, b"iCCP": 1000}.get(kind, 1)
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    return count


def _check_tags(content: bytes, name: str):
    """Refuses TIFFs whose tags hold more than the file, and those of very many strips or tiles."""
    order: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"
    number = functools.partial(int.from_bytes, byteorder=order)
    is_big = 43 in content[2:4]
    word, entry, at = (8, 20, number(content[8:16])) if is_big else (2, 12, number(content[4:8]))
    many, size = min(number(content[at : at + word]), len(content) // entry), 0
    for start in range(at + word, at + word + entry * many, entry):
        tag, kind = number(content[start : start + 2]), number(content[start + 2 : start + 4])
        values = number(content[start + 4 : start + (12 if is_big else 8)])
        size += values * {3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8, 16: 8}.get(kind, 1)
        if tag in (273, 324) and values > MAX_STRIPS:
            raise ValueError(f"{name} is a TIFF of {values:,} strips or tiles; at most {MAX_STRIPS:,} are decoded.")
    if size > len(content):
        raise ValueError(f"{name} is damaged: its TIFF tags are larger than the file.")


def _check_size(width: int, height: int, max_pixels: int, name: str):
    if width < 1 or height < 1:
        raise ValueError(f"{name} is empty ({width} x {height} pixels).")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} = {width * height:,} pixels; at most {max_pixels:,} are decoded. "
            "Shrink it, or raise the image processor's `max_pixels`."
        )
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{name} has {width} x {height} pixels; a side has at most {MAX_SIDE:,}.")


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Decodes what is not decoded yet, whoever has opened it."""
    content = _undecoded(image, name, max_pixels) if isinstance(image, ImageFile.ImageFile) else b""
    try:
        if getattr(image, "is_animated", False) and image.format != "HEIF":  # which names the one that is meant
            image.seek(0)
        image.load()
    except Exception:
        raise ValueError(f"{name} is damaged or cut off: it cannot be decoded to its end.") from None
    if content.startswith(b"\xff\xd8") and _lacks_pixels(content, image):
        raise ValueError(f"{name} is damaged: it holds fewer pixels than its header states.")
    return image


def _undecoded(image: Any, name: str, max_pixels: int) -> bytes:
    """Checks a picture file before a pixel is decoded; the content of a JPEG, which is checked again thereafter."""
    file = getattr(image, "fp", None)
    if file is None:
        return b""  # decoded before
    if image.format not in (*FORMATS, "HEIF", "MPO"):  # the last is a JPEG with others behind it
        raise ValueError(f"{name} is of the format {image.format}; decoded are {', '.join(FORMATS)}: convert it.")
    if image.format in COPYING_FORMATS:
        _check_size(image.width, image.height, max_pixels // 2, name)
    if image.format == "TIFF":
        width, height = (each if isinstance(each := image.tag_v2.get(tag), int) else 0 for tag in (322, 323))
        if width * height > max(MAX_TILE, (image.width + 16) * (image.height + 16)):
            raise ValueError(f"{name} is a TIFF with tiles of {width} x {height} pixels, larger than it is itself.")
    if image.format not in ("JPEG", "MPO", "PNG", "TIFF"):
        return b""
    try:
        place = file.tell()
        file.seek(0)
        content = file.read(MAX_BYTES)
        file.seek(place)
    except (OSError, ValueError):  # the second of files that have been closed
        raise ValueError(f"{name} is damaged or cut off: it cannot be decoded to its end.") from None
    _check_pieces(content, name)
    return content


def _lacks_pixels(content: bytes, image: Image.Image) -> bool:
    """Whether a JPEG holds fewer pixels than its header states. Only where its last pixel is as grey as libjpeg leaves
    those that are missing, in one picture of a hundred, it is decoded again, small: with more data behind its own.
    Where pixels are missing, that becomes pixels; else libjpeg passes over it."""
    last = image.crop((image.width - 1, image.height - 1, image.width, image.height))
    if image.mode != "CMYK" and abs(np.asarray(last.convert("L")).item() - 128) > 2:
        return False
    some = bytes(range(37, 37 + 64))
    more = some + b"".join(b"\xff" + bytes([0xD0 + number % 8]) + some for number in range(16))  # behind restarts, too
    start = _count_segments(content)[2]
    # Behind the data of every scan, that is before the next marker; not in a thumbnail before the first.
    scan = re.compile(rb"(\xff\xda.*?)(?=" + _MARKER.pattern + rb")", re.DOTALL)
    longer = content[:start] + scan.sub(lambda found: found[0] + more, content[start:])
    small = []
    for each in (content, longer):
        picture = Image.open(io.BytesIO(each), formats=("JPEG",))
        picture.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        try:
            small.append(picture.convert("RGB").tobytes())
        except OSError:
            return True
    return small[0] != small[1]


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the orientation; the pixels are fine
        return image


def _from_array(array: Any, name: str, max_pixels: int, layout: str | None) -> Image.Image:
    is_tensor = isinstance(array, torch.Tensor)
    array = array.detach().cpu().numpy() if is_tensor else np.asarray(array)
    channels = (1, 2, 3, 4)
    if array.ndim == 3:
        last = array.shape[-1] in channels
        first = array.shape[0] in channels
        if layout is None:
            # Where both ends could be the channels, a tensor has them first and an array last.
            channels_first = first and (is_tensor or not last)
        else:
            channels_first = ChannelDimension(layout) == ChannelDimension.FIRST
        array = np.moveaxis(array, 0, -1) if channels_first else array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in channels):
        raise ValueError(
            f"{name} has shape {array.shape}: give (height, width), or 1, 2, 3 or 4 channels first or last."
        )
    _check_size(array.shape[1], array.shape[0], max_pixels, name)
    return _eight_bits(array, name)


def _eight_bits(array: np.ndarray, name: str) -> Image.Image:
    """Grey levels or channels of any type to 8 bits each: scaled, not clipped.

    The type says how bright white is: 255 for `uint8`, 65535 for `uint16`, 1 for floats and `bool`. Where the type is
    wider than any picture (`int32`, or floats above 1), the values say it: 255 as long as none is larger, else 65535.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite.")
        brightest = array.max()
        if array.dtype == np.uint16:
            white = 65535
        elif array.dtype == bool or (np.issubdtype(array.dtype, np.floating) and brightest <= 1):
            white = 1
        else:
            white = 255 if brightest <= 255 else 65535
        scaled, rows = np.empty(array.shape, np.uint8), max(1, _BAND // array.shape[1])
        for top in range(0, len(array), rows):
            band = array[top : top + rows].astype(np.float64)
            scaled[top : top + rows] = np.rint(np.clip(band / white, 0, 1) * 255)
        array = scaled
    return Image.fromarray(np.ascontiguousarray(array))


__all__ = ["JMiniGPT4ImageProcessor"]
