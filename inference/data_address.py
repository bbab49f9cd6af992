"""Pictures as text: data addresses (RFC 2397) for pages and for servers."""

import base64
import io
from typing import Any

from PIL import Image

from ..image_processing_jminigpt4 import JMiniGPT4ImageProcessor


def data_address(kind: str, content: bytes) -> str:
    """`data:image/KIND;base64,…`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def image_address(image: Image.Image, kind: str, **options: Any) -> str:
    """A picture, encoded as `kind` (`JPEG`, `PNG`) with Pillow's options, as a data address."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return data_address(kind.lower(), content.getvalue())


def thumbnail(content: bytes, name: str, size: int) -> str:
    """A picture as a JPEG of at most `size` pixels a side, as a data address.

    Args:
        content: The picture's file.
        name: What it is called, for the error.

    Raises:
        ValueError: It cannot be decoded.
    """
    image = JMiniGPT4ImageProcessor().to_rgb(content, name)
    image.thumbnail((size, size))
    return image_address(image, "JPEG", quality=80)
