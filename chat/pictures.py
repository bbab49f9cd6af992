"""Pictures of a conversation, and the only code that opens what a stranger gave: bytes, files, addresses."""

import hashlib
import io
import ipaddress
import socket
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import torch
from PIL import Image

# Raster formats with a decoder inside Pillow and its bundled libraries. Not among them: EPS, which Pillow hands to
# Ghostscript, and the many formats that nobody has tested against malice.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


@dataclass(frozen=True)
class PictureLimits:
    """What is refused before a pixel is decoded.

    Args:
        max_bytes: Size of a picture file.
        max_pixels: Width times height, as the header states them.
        max_frames: Frames of an animation, as the header states them; only the first is ever decoded.
        max_pictures: Pictures of one message.
        hosts: Hosts from which the conversation may fetch pictures; none by default.
        timeout: Seconds that a fetch may take.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    max_frames: int = 1_000
    max_pictures: int = 8
    hosts: frozenset[str] = frozenset()
    timeout: float = 10.0


@dataclass(eq=False)
class ShownPicture:
    """One picture of a conversation.

    Args:
        image: PIL image of mode RGB, as the image processor's `to_rgb` gives it.
        query_features: Output of the Q-Former, `(num_query_tokens, qformer_hidden_size)`; `None` until first needed.
    """

    image: Image.Image
    query_features: torch.Tensor | None = None
    sha256: str = field(init=False)

    def __post_init__(self):
        size = f"{self.image.width}x{self.image.height}:".encode()
        self.sha256 = hashlib.sha256(size + self.image.tobytes()).hexdigest()


def open_bytes(data: bytes, name: str, limits: PictureLimits) -> Image.Image:
    """The bytes of a picture file to a PIL image that is not decoded yet; its mode and size are as in the file.

    Raises:
        ValueError: It is larger than `limits` allow, or of none of `FORMATS`. The message names the picture and never
            what a library said, which may hold addresses in memory.
    """
    if not data:
        raise ValueError(f"{name} is empty (0 bytes).")
    if len(data) > limits.max_bytes:
        raise ValueError(f"{name} has {len(data):,} bytes; at most {limits.max_bytes:,} are taken.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits decide, not a warning
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            frames = _frames(image, data, limits.max_frames)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has more than {limits.max_pixels:,} pixels.") from None
    except Exception:
        raise ValueError(f"{name} is not a picture of a known format ({', '.join(FORMATS)}).") from None
    if image.width * image.height > limits.max_pixels:
        raise ValueError(
            f"{name} has {image.width} x {image.height} = {image.width * image.height:,} pixels; "
            f"at most {limits.max_pixels:,} are decoded."
        )
    if frames > limits.max_frames:
        raise ValueError(f"{name} has more than {limits.max_frames:,} frames.")
    return image


def _frames(image: Image.Image, data: bytes, enough: int) -> int:
    """Number of frames of an opened picture, or some number above `enough`; none of them is decoded."""
    if image.format == "GIF":
        # Pillow would seek through all of them.
        return _gif_frames(data, enough)
    if image.format == "TIFF":
        try:
            image.seek(enough)
        except EOFError:
            return 1
        return enough + 1
    return getattr(image, "n_frames", 1)


def _gif_frames(data: bytes, enough: int) -> int:
    """Walks through the blocks of a GIF (GIF89a, sections 17 to 27) until the end or `enough` and one frames."""
    position = 13 + _gif_palette(data[10])
    frames = 0
    while position < len(data) and frames <= enough:
        if data[position] == 0x2C:  # image descriptor, palette, code size
            frames += 1
            position += 11 + _gif_palette(data[position + 9])
        elif data[position] == 0x21:  # extension, label
            position += 2
        else:
            break
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return frames


def _gif_palette(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


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
    """Fetches a picture from one of `limits.hosts`; see [`open_bytes`].

    Every hop of a redirection is held to the same rules: `http` or `https`, the host on the list, and none of its
    addresses private, loopback, link-local or otherwise not of the public Internet. The connection goes to the very
    address that was checked, so that a second answer of the name server changes nothing.

    Raises:
        ValueError: A rule is broken, the server does not answer with a picture, or the picture breaks `limits`.
    """
    for _ in range(4):
        data, location = _fetch(url, limits)
        if location is None:
            return open_bytes(data, url, limits)
        url = urljoin(url, location)
    raise ValueError(f"{url} is behind more than 3 redirections.")


def public_address(url: str, hosts: Sequence[str] | frozenset[str]) -> str:
    """The IP address of `url`'s host, once host and address are known to be allowed.

    Raises:
        ValueError: Another scheme than http and https, a host that is not among `hosts`, a name without an address,
            or with any address that is not of the public Internet.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{url} is no http or https address.")
    if host not in hosts:
        listed = ", ".join(sorted(hosts)) or "none"
        raise ValueError(f"Pictures are not fetched from {host or 'there'} (allowed hosts: {listed}).")
    try:
        entries = socket.getaddrinfo(host, _port(parts), type=socket.SOCK_STREAM)
    except OSError:
        raise ValueError(f"The host {host} is not known.") from None
    addresses = [str(entry[4][0]).split("%")[0] for entry in entries]
    for address in addresses:
        if not _is_public(address):
            raise ValueError(f"The host {host} leads to {address}, which is not an address of the public Internet.")
    return addresses[0]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        # An IPv4 address may hide in an IPv6 one (mapped, 6to4, Teredo, NAT64).
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(part is not None and not _is_public(str(part)) for part in inner):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast


def _port(parts) -> int:
    try:
        return parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ValueError("The address has a port that no port can be.") from None


def _fetch(url: str, limits: PictureLimits) -> tuple[bytes, str | None]:
    """One request, to the address that was checked: the body, or where the server sends on to."""
    import httpx

    address = public_address(url, limits.hosts)
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    pinned = f"{parts.scheme}://[{address}]" if ":" in address else f"{parts.scheme}://{address}"
    target = f"{pinned}:{_port(parts)}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")
    headers = {"Host": host if parts.port is None else f"{host}:{parts.port}", "Accept-Encoding": "identity"}
    deadline = time.monotonic() + limits.timeout
    try:
        # `trust_env` off: a proxy of the environment would resolve the name again.
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=limits.timeout) as client,
            client.stream("GET", target, headers=headers, extensions={"sni_hostname": host}) as response,
        ):
            if response.is_redirect:
                return b"", response.headers.get("location", "")
            if response.status_code != 200:
                raise ValueError(f"{url} answered with status {response.status_code}.")
            data = bytearray()
            for chunk in response.iter_raw():  # undecoded: nothing is unpacked to more than was sent
                data += chunk
                if len(data) > limits.max_bytes:
                    raise ValueError(f"{url} has more than {limits.max_bytes:,} bytes.")
                if time.monotonic() > deadline:
                    raise ValueError(f"{url} took longer than {limits.timeout:g} seconds.")
            return bytes(data), None
    except httpx.HTTPError:
        raise ValueError(f"{url} could not be fetched.") from None
