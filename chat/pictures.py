"""Pictures of a conversation, and the only code that opens what a stranger gave: bytes, files, addresses."""

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..image_processing_jminigpt4 import open_picture


@dataclass(frozen=True)
class PictureLimits:
    """What is refused before a pixel is decoded.

    Args:
        max_bytes: Size of a picture file.
        max_pixels: Width times height, as the header states them.
        max_pictures: Pictures of one message.
        timeout: Seconds that the body of a fetch may take, and every wait for the server before it.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    max_pictures: int = 8
    timeout: float = 10.0


@dataclass(eq=False)
class ShownPicture:
    """One picture of a conversation, known by the SHA-256 of its size and pixels.

    Args:
        image: PIL image of mode RGB, as the image processor's `to_rgb` gives it.
    """

    image: Image.Image
    sha256: str = field(init=False)

    def __post_init__(self):
        size = f"{self.image.width}x{self.image.height}:".encode()
        self.sha256 = hashlib.sha256(size + self.image.tobytes()).hexdigest()


def open_bytes(data: bytes, name: str, limits: PictureLimits) -> Image.Image:
    """The bytes of a picture file to a PIL image that is not decoded yet; its mode and size are as in the file.

    Raises:
        ValueError: It is larger than `limits` allow; or as [`open_picture`].
    """
    if len(data) > limits.max_bytes:
        raise ValueError(f"{name} has {len(data):,} bytes; at most {limits.max_bytes:,} are taken.")
    image = open_picture(data, name)
    if image.width * image.height > limits.max_pixels:
        raise ValueError(
            f"{name} has {image.width} x {image.height} = {image.width * image.height:,} pixels; "
            f"at most {limits.max_pixels:,} are decoded."
        )
    return image


def open_file(path: str | Path, limits: PictureLimits) -> Image.Image:
    """A local picture file to a PIL image that is not decoded yet; see [`open_bytes`].

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: As the system says, with the path.
        ValueError: As [`open_bytes`].
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No picture at {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file.")  # a folder, or a device that never ends
    if path.stat().st_size > limits.max_bytes:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {limits.max_bytes:,} are taken.")
    return open_bytes(path.read_bytes(), str(path), limits)


def open_url(url: str, limits: PictureLimits) -> Image.Image:
    """Fetches a picture, behind at most 3 redirections, within the bytes and seconds of `limits`; see [`open_bytes`].

    Any host is asked, inner ones too: only for addresses that the person at the machine has named.

    Raises:
        ValueError: The address is no http or https one, the server does not answer with a picture, or the picture
            breaks `limits`.
    """
    import httpx

    deadline = time.monotonic() + limits.timeout
    data = bytearray()
    try:
        with (
            httpx.Client(follow_redirects=True, max_redirects=3, timeout=limits.timeout) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.status_code != 200:
                raise ValueError(f"{url} answered with status {response.status_code}.")
            for chunk in response.iter_raw():  # undecoded: nothing is unpacked to more than was sent
                data += chunk
                if len(data) > limits.max_bytes:
                    raise ValueError(f"{url} has more than {limits.max_bytes:,} bytes.")
                if time.monotonic() > deadline:
                    raise ValueError(f"{url} took longer than {limits.timeout:g} seconds.")
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError):  # the last of host names that cannot be
        raise ValueError(f"{url} is no http or https address.") from None
    except httpx.TooManyRedirects:
        raise ValueError(f"{url} is behind more than 3 redirections.") from None
    except httpx.HTTPError:
        raise ValueError(f"{url} could not be fetched.") from None
    return open_bytes(bytes(data), url, limits)
