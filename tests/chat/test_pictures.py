"""Pictures that strangers send: a table of hostile ones; and pictures fetched from an address."""

import io
import os
import random
import struct
import threading
import time
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from jminigpt4.chat.pictures import PictureLimits, ShownPicture, open_bytes, open_file, open_url
from jminigpt4.chat.settings import Settings

LIMITS = PictureLimits(max_pixels=1_000_000, max_bytes=1_000_000)


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width=8, height=8, before=b"", pixels=None, depth=8, colour=2, header_crc=None) -> bytes:
    rows = (b"\0" + bytes(3 * width)) * height if pixels is None else pixels
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header, header_crc)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def saved(form: str, size=(40, 30), mode="RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return file.getvalue()


def patched(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


def tiff(entries: list[tuple[int, int, int, int]], next_ifd: int = 0, rest: bytes = b"") -> bytes:
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + fields + struct.pack("<I", next_ifd) + rest
    )


def jpeg_sized(width: int, height: int) -> bytes:
    data = saved("JPEG")
    start = data.index(b"\xff\xc0")
    return patched(data, start + 5, struct.pack(">HH", height, width))


def gif_frames(count: int) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0" + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HH", 1, 1) + b"\x80\0\0" + bytes(6) + frame * count + b";"


def tiff_pages(count: int) -> bytes:
    size = 2 + 12 * len(BASE_TIFF) + 4
    pages = [tiff(BASE_TIFF, next_ifd=8 + size * (page + 1) if page < count - 1 else 0)[8:] for page in range(count)]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(pages) + bytes(300)


def webp_frames(count: int) -> bytes:
    file = io.BytesIO()
    others = [Image.new("RGB", (2, 2), "blue")]
    Image.new("RGB", (2, 2), "red").save(file, "WEBP", lossless=True, save_all=True, append_images=others)
    data = file.getvalue()
    start = data.index(b"ANMF")
    size = 8 + struct.unpack("<I", data[start + 4 : start + 8])[0]
    body = data[12:start] + data[start : start + size] * count
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


BASE_TIFF = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200)]
BASE_TIFF += [(277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64)]
EXIF_LIES = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(40)

# What is sent, and the words of the refusal; `None` where a picture is to come out.
HOSTILE = {
    "nothing": (b"", "is empty"),
    "one byte": (b"\x89", "known format"),
    "random bytes": (random.Random(0).randbytes(5000), "known format"),
    "text": ("絵ではありません".encode(), "known format"),
    "html": (b"<!DOCTYPE html><img src=x onerror=alert(1)>", "known format"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "known format"),
    "pdf": (b"%PDF-1.7\n1 0 obj", "known format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file", "known format"),
    "zip": (b"PK\x03\x04" + bytes(60), "known format"),
    "executable": (b"\x7fELF" + bytes(60), "known format"),
    "icon": (saved("ICO"), "known format"),
    "pcx": (saved("PCX"), "known format"),
    "png: signature only": (png()[:8], "known format"),
    "png: header cut off": (png()[:20], "known format"),
    "png: wrong checksum in the header": (png(header_crc=1), "known format"),
    "png: cut off in the pixels": (png(300, 300)[:-120], "damaged"),
    "png: pixels are no zlib": (png().replace(zlib.compress((b"\0" + bytes(24)) * 8), bytes(12)), "damaged"),
    "png: fewer pixels than stated": (png(50, 50, pixels=b"\0" + bytes(150)), None),
    "png: no width": (png(0, 8), "known format|is empty"),
    "png: no height": (png(8, 0), "known format|is empty"),
    "png: two thousand million pixels wide": (png(2**31 - 1, 1, pixels=b"\0"), "pixels"),
    "png: bomb of 88 million pixels": (png(9400, 9400, pixels=bytes(1000)), "9400 x 9400 = 88,360,000 pixels"),
    "png: bomb of 177 million pixels": (png(13300, 13300, pixels=bytes(1000)), "13300 x 13300 = 176,890,000"),
    "png: bomb of 10^18 pixels": (png(10**9, 10**9, pixels=bytes(1000)), "more pixels than Pillow opens"),
    "png: one pixel too many": (png(1000, 1001, pixels=bytes(10)), "1,001,000 pixels; at most 1,000,000"),
    "png: long and thin": (png(1, 1_000_000, pixels=bytes(4_000_000)), None),
    "png: text bomb": (png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90_000_000)))), "known format"),
    "png: profile bomb": (png(before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(90_000_000)))), "known format"),
    "png: profile that is none": (png(before=chunk(b"iCCP", b"a\0\0" + zlib.compress(b"evil"))), None),
    "png: a million frames": (png(before=chunk(b"acTL", struct.pack(">II", 10**6, 0))), None),
    "png: unknown depth": (png(depth=7), "known format"),
    "png: 16 bits grey": (saved("PNG", mode="I;16"), None),
    "png: palette without a palette": (png(colour=3, pixels=(b"\0" + bytes(8)) * 8), "known format|damaged|^$"),
    "png: transparency outside the palette": (
        png(
            colour=3,
            pixels=(b"\0" + bytes(8)) * 8,
            before=chunk(b"PLTE", b"\1\2\3") + chunk(b"tRNS", bytes(range(250))),
        ),
        None,
    ),
    "png: with a zip behind it": (png() + b"PK\x03\x04" + bytes(60), None),
    "jpeg: start only": (saved("JPEG")[:4], "known format"),
    "jpeg: cut off": (saved("JPEG", (200, 200))[:-200], "damaged"),
    "jpeg: 65500 x 65500": (jpeg_sized(65500, 65500), "pixels"),
    "jpeg: no height": (jpeg_sized(40, 0), "known format|is empty|damaged"),
    "jpeg: CMYK": (saved("JPEG", mode="CMYK"), None),
    "jpeg: EXIF that lies about its length": (saved("JPEG", exif=EXIF_LIES), None),
    "gif: cut off": (saved("GIF", mode="P")[:24], "known format|damaged"),
    "gif: 65535 x 65535": (patched(saved("GIF", mode="P"), 6, b"\xff\xff\xff\xff"), "pixels"),
    "gif: sixty thousand frames": (gif_frames(60_000), None),
    "tiff: no entries": (tiff([]), "known format"),
    "tiff: directory that follows itself": (tiff(BASE_TIFF, next_ifd=8, rest=bytes(300)), None),
    "tiff: two thousand pages": (tiff_pages(2_000), None),
    "tiff: strip of four gigabytes": (tiff([*BASE_TIFF[:-1], (279, 4, 1, 2**32 - 1)], rest=bytes(300)), "damaged|^$"),
    "tiff: strips beyond the file": (tiff([*BASE_TIFF[:5], (273, 4, 1, 2**31), *BASE_TIFF[6:]]), "damaged"),
    "tiff: entry of four thousand million values": (tiff([(256, 4, 2**32 - 1, 8), *BASE_TIFF[1:]]), "damaged"),
    "tiff: 60000 x 60000": (tiff([(256, 3, 1, 60000), (257, 3, 1, 60000), *BASE_TIFF[2:]], rest=bytes(99)), "pixels"),
    "bmp: 2^31 - 1 wide": (patched(saved("BMP"), 18, struct.pack("<i", 2**31 - 1)), "pixels|known format"),
    "bmp: height below zero": (patched(saved("BMP"), 22, struct.pack("<i", -30)), None),
    "bmp: pixels cut off": (saved("BMP")[:100], "damaged"),
    "webp: cut off": (saved("WEBP", (200, 200), quality=90)[:-60], "known format|damaged"),
    "webp: start only": (b"RIFF\xff\xff\xff\xffWEBPVP8 ", "known format"),
    "ppm: 10^5 x 10^5": (b"P6 100000 100000 255\n", "pixels"),
    "ppm: size that is no number": (b"P6 9e9 9 255\n", "known format"),
    "ppm: pixels missing": (b"P6 90 90 255\n" + bytes(9), "damaged"),
    "too many bytes": (saved("BMP", (600, 600)), "1,080,054 bytes; at most 1,000,000"),
}


def test_the_table_is_long():
    assert len(HOSTILE) >= 40


def take(data: bytes, processor, limits=LIMITS) -> Image.Image:
    """What the front ends do: open within the limits, then decode."""
    return processor.image_processor.to_rgb(open_bytes(data, "picture 1", limits), "picture 1")


@pytest.mark.parametrize("data, refusal", HOSTILE.values(), ids=HOSTILE)
def test_hostile_picture(data, refusal, processor):
    try:
        picture = take(data, processor)
    except ValueError as error:
        message = str(error)
        assert refusal is not None, message
        assert any(words and words in message for words in refusal.split("|")), message
        # Nothing of the library's own words: no addresses, no paths, no class names.
        assert message.startswith("picture 1 ") and "0x" not in message and "PIL" not in message
        assert error.__suppress_context__ or error.__context__ is None
    else:
        assert refusal is None or "^$" in refusal.split("|"), "was taken"
        assert picture.mode == "RGB" and picture.width * picture.height <= LIMITS.max_pixels


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to measure memory in a process of its own")
def test_bombs_cost_neither_memory_nor_time():
    """All bombs of the table, in a process whose memory is measured, with every decoding forbidden."""
    import resource

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Image.Image.load = None
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            refused = 0
            for name, (data, refusal) in HOSTILE.items():
                if refusal and "pixels" in refusal:
                    try:
                        open_bytes(data, name, LIMITS)
                    except ValueError:
                        refused += 1
            growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(writing, struct.pack("<iid", refused, growth, time.process_time() - start))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    refused, kilobytes, seconds = struct.unpack("<iid", os.read(reading, 16))
    assert refused == sum("pixels" in refusal for _, refusal in HOSTILE.values() if refusal)
    assert kilobytes < 20_000 and seconds < 2


@pytest.mark.parametrize(
    "make, count", [(gif_frames, 1_000_000), (tiff_pages, 60_000), (webp_frames, 200_000)], ids=["gif", "tiff", "webp"]
)
def test_many_frames_cost_nothing(make, count, processor):
    """Pillow decodes the first frame and does not look for the others unless it is asked how many there are."""
    data = make(count)
    start = time.process_time()
    assert take(data, processor, PictureLimits()).width <= 8
    assert time.process_time() - start < 0.5


def test_modes(processor):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        assert take(saved("PNG", mode=mode), processor).mode == "RGB"
    for mode in ("CMYK", "LAB", "F", "I"):
        assert take(saved("TIFF", mode=mode), processor).mode == "RGB"


def test_pictures_are_known_by_their_pixels():
    one, other = Image.new("RGB", (2, 3), "red"), Image.new("RGB", (3, 2), "red")
    assert ShownPicture(one).sha256 == ShownPicture(one.copy()).sha256 != ShownPicture(other).sha256


@pytest.mark.parametrize(
    "kind, message", [("missing", "No picture at"), ("folder", "not a file"), ("fifo", "not a file")]
)
def test_paths_that_are_no_file(tmp_path, kind, message):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises((ValueError, OSError), match=message):
        open_file(path, LIMITS)


def test_a_large_file_is_not_read(tmp_path):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes"):
        open_file(tmp_path / "large.png", LIMITS)


class Site(BaseHTTPRequestHandler):
    """A site that is good at `/a.png` and bad elsewhere."""

    seen: list[str] = []
    over = threading.Event()  # what is slow waits for it

    def do_GET(self):
        self.seen.append(self.path)
        redirects = {"/loop": "/loop", "/file": "file:///etc/passwd", "/once": "/a.png?size=1", "/silent": ""}
        path = self.path.partition("?")[0]
        if path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[path])
            self.end_headers()
            return
        self.send_response(404 if path == "/missing" else 200)
        if path == "/zipped":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        try:
            if path == "/endless":
                while True:
                    self.wfile.write(bytes(65536))
            elif path == "/slow":
                while True:
                    self.wfile.write(b"\x89")
                    self.wfile.flush()
                    if self.over.wait(0.05):
                        return
            elif path == "/html":
                self.wfile.write(b"<html>0xdeadbeef")
            elif path == "/zipped":
                self.wfile.write(zlib.compress(bytes(10_000_000), wbits=31))
            elif path != "/missing":
                self.wfile.write(saved("PNG"))
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    """The address of a server on the loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Site.seen = []
    Site.over.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    Site.over.set()
    server.shutdown()
    server.server_close()


FETCH = PictureLimits(max_bytes=200_000, timeout=60)


def test_a_picture_is_fetched_when_addresses_are_allowed(site):
    allowed = Settings(allow_addresses=True)
    assert allowed.open_picture(f"{site}/a.png", 1000).size == (40, 30)
    assert allowed.open_picture(f"{site}/once", 1000).size == (40, 30)
    assert Site.seen == ["/a.png", "/once", "/a.png?size=1"]


def test_no_address_is_opened_by_default(site, picture_files):
    for address in (f"{site}/a.png", "ftp://127.0.0.1/a.png", "HTTP://127.0.0.1/a.png"):
        with pytest.raises(ValueError, match="is an address: pictures are fetched with --allow-addresses only"):
            Settings().open_picture(address, 1000)
    assert Site.seen == []
    assert Settings().open_picture(picture_files[0].as_uri(), 1200).size == (40, 30)  # a path, as terminals type it


@pytest.mark.parametrize(
    "path, message",
    [
        ("/loop", "more than 3 redirections"),
        ("/silent", "more than 3 redirections"),
        ("/file", "no http or https"),
        ("/missing", "status 404"),
        ("/endless", "more than 200,000 bytes"),
        ("/slow", "longer than 0.5 seconds"),
        ("/html", "known format"),
        ("/zipped", "known format"),
    ],
)
def test_a_bad_site(site, path, message):
    with pytest.raises(ValueError, match=message) as raised:
        open_url(site + path, replace(FETCH, timeout=0.5) if path == "/slow" else FETCH)
    assert "deadbeef" not in str(raised.value)


@pytest.mark.parametrize(
    "url, message",
    [
        ("http://127.0.0.1:1/a.png", "could not be fetched"),
        ("ftp://127.0.0.1/a.png", "no http or https"),
        ("file:///etc/hostname", "no http or https"),
        ("http://127.0.0.1:99999/a.png", "could not be fetched"),
        ("http://a..b/a.png", "no http or https"),
        ("http:///a.png", "no http or https"),
        ("http://[::1/a.png", "no http or https"),
    ],
)
def test_addresses_that_lead_nowhere(url, message, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(ValueError, match=message):
        open_url(url, FETCH)
