"""Pictures as text: data addresses (RFC 2397) for pages and for servers."""

import base64
import io

from ..processing_jminigpt4 import JMiniGPT4ImageProcessor


def data_address(kind: str, content: bytes) -> str:
    """`data:image/KIND;base64,…`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


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
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=80)
    return data_address("jpeg", encoded.getvalue())
