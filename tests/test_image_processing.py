"""Pictures: bit-exact with the originals on RGB, right for everything an illustrator may send, firm with the rest."""

import io
import random
import resource
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from jminigpt4 import JMiniGPT4ImageProcessor

NAMES = ["a_97x131_rgb", "b_64x64_gray", "c_113x40_rgba", "d_30x30_palette"]


@pytest.fixture(scope="module")
def image_processor():
    return JMiniGPT4ImageProcessor()


def noise(*shape, dtype=np.uint8, high=256):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_bit_exact_with_the_originals(reference, expected):
    """`Blip2ImageEvalProcessor` at 56 pixels and, three rows of it, at 224."""
    pictures = [Image.open(reference / "images" / f"{name}.png") for name in NAMES]
    small = JMiniGPT4ImageProcessor(size={"height": 56, "width": 56}, plain_rgb=True)
    pixel_values = small(pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values, expected["forward"]["pixel_values"])
    rows = JMiniGPT4ImageProcessor()(pictures[0], return_tensors="pt")["pixel_values"][0, :, [0, 100, 223]]
    assert torch.equal(rows, expected["forward"]["preproc224.a.rows_0_100_223"])


@pytest.mark.parametrize("name", NAMES)
def test_picture_array_and_file_give_the_same(image_processor, reference, name):
    path = reference / "images" / f"{name}.png"
    picture = Image.open(path)
    results = [image_processor(source)["pixel_values"][0] for source in (picture, path.read_bytes(), str(path))]
    with open(path, "rb") as file:
        results.append(image_processor(file)["pixel_values"][0])
    if picture.mode != "P":  # the array of a palette picture holds indices, not colours
        results.append(image_processor(np.asarray(picture))["pixel_values"][0])
        results.append(image_processor(torch.from_numpy(np.array(picture)))["pixel_values"][0])
    assert all(np.array_equal(results[0], other) for other in results[1:])


RGB = (200, 40, 90)
MODES = [
    "RGB",
    "RGBA",
    "RGBX",
    "L",
    "LA",
    "La",
    "RGBa",
    "P",
    "PA",
    "1",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I;16",
    "I",
    "F",
]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow(image_processor, mode):
    base = Image.new("RGB", (6, 4), RGB)
    if mode in ("LAB", "I;16"):
        picture = Image.new(mode, (6, 4), (120, 128, 128) if mode == "LAB" else 32896)
    elif mode in ("La", "RGBa"):
        picture = base.convert("LA" if mode == "La" else "RGBA").convert(mode)
    elif mode in ("P", "PA"):
        picture = base.quantize().convert(mode)
    else:
        picture = base.convert(mode)
    rgb = np.asarray(image_processor.to_rgb(picture))
    assert rgb.shape == (4, 6, 3)
    grey = round(0.299 * RGB[0] + 0.587 * RGB[1] + 0.114 * RGB[2])
    close = {
        "RGB": RGB,
        "RGBA": RGB,
        "RGBX": RGB,
        "CMYK": RGB,
        "YCbCr": RGB,
        "HSV": RGB,
        "RGBa": RGB,
        "P": RGB,
        "PA": RGB,
    }
    close |= {"L": (grey,) * 3, "LA": (grey,) * 3, "La": (grey,) * 3, "I": (grey,) * 3, "F": (grey,) * 3}
    close |= {"I;16": (128,) * 3}
    if mode in close:
        assert np.abs(rgb.astype(int) - close[mode]).max() <= 3


def test_transparency_shows_the_background(image_processor):
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    assert np.asarray(image_processor.to_rgb(picture)).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    grey = image_processor.to_rgb(picture, background=[10, 20, 30])
    assert np.asarray(grey).tolist() == [[[10, 20, 30], [255, 0, 0]]]
    hidden = image_processor.to_rgb(picture, plain_rgb=True)
    assert np.asarray(hidden).tolist() == [[[255, 0, 0], [255, 0, 0]]]


def test_transparent_colour_of_a_palette_and_of_rgb(image_processor):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    picture = Image.open(io.BytesIO(encoded(palette, transparency=0)))
    assert np.asarray(image_processor.to_rgb(picture)).tolist() == [[[255, 255, 255], [0, 0, 255]]]
    chroma = Image.new("RGB", (2, 1), (0, 255, 0))
    chroma.putpixel((1, 0), (1, 2, 3))
    picture = Image.open(io.BytesIO(encoded(chroma, transparency=(0, 255, 0))))
    assert np.asarray(image_processor.to_rgb(picture)).tolist() == [[[255, 255, 255], [1, 2, 3]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(image_processor, orientation):
    upright = Image.fromarray(noise(4, 6, 3))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the tag asks a viewer to undo
    turned = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(turned, exif=exif)
    assert np.array_equal(np.asarray(image_processor.to_rgb(data)), np.asarray(upright))
    assert np.array_equal(np.asarray(image_processor.to_rgb(data, plain_rgb=True)), np.asarray(turned))


def test_first_frame_of_an_animation(image_processor):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        picture = Image.open(io.BytesIO(data))
        picture.seek(1)
        assert np.asarray(image_processor.to_rgb(picture))[0, 0].tolist() == [255, 0, 0], file_format


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.int64), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 127.6, 255.0]], np.float64), [0, 128, 255]),
        (np.array([[False, True, True]]), [0, 255, 255]),
    ],
)
def test_wide_types_are_scaled_not_clipped(image_processor, array, expected):
    assert np.asarray(image_processor.to_rgb(array))[0, :, 0].tolist() == expected


def test_sixteen_bit_file(image_processor):
    data = encoded(Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)))
    assert np.asarray(image_processor.to_rgb(data))[0, :, 0].tolist() == [0, 128, 255]


def test_arrays_of_every_layout(image_processor):
    rgb = noise(5, 7, 3)
    same = [rgb, np.moveaxis(rgb, -1, 0), torch.from_numpy(rgb).permute(2, 0, 1), rgb.astype(np.float32) / 255]
    for array in same:
        assert np.array_equal(np.asarray(image_processor.to_rgb(array)), rgb)
    thin = noise(3, 7, 3)  # both ends could be channels: the last is, unless it is said
    assert np.array_equal(np.asarray(image_processor.to_rgb(thin)), thin)
    turned = image_processor.to_rgb(thin, input_data_format="channels_first")
    assert np.array_equal(np.asarray(turned), np.moveaxis(thin, 0, -1))
    assert image_processor.to_rgb(noise(5, 7)).size == (7, 5)
    assert image_processor.to_rgb(noise(5, 7, 2)).size == (7, 5)


def test_thin_pictures_and_nesting(image_processor):
    pictures = [[Image.new("RGB", (1, 2000))], [Image.new("L", (2000, 1)), Image.new("1", (1, 1))]]
    assert image_processor(pictures, return_tensors="pt")["pixel_values"].shape == (3, 3, 224, 224)


def bomb(width: int, height: int) -> bytes:
    """A PNG of 80 bytes that claims to be as large as wanted."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


GOOD = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", r"picture 2 is empty \(0 bytes\)"),
        (b"not a picture", "picture 2 is not a picture of a known format"),
        (encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")[:900], "picture 2 is damaged or cut off"),
        (encoded(Image.fromarray(noise(64, 64, 3)))[:900], "picture 2 is damaged or cut off"),
        (bomb(9000, 9000), "picture 2 has 9000 x 9000 = 81,000,000 pixels; at most 50,000,000 are decoded"),
        (bomb(60000, 60000), "picture 2 has more pixels than Pillow opens"),
        (np.zeros((0, 4, 3), np.uint8), r"picture 2 is empty \(4 x 0 pixels\)"),
        (np.zeros((5, 7, 5), np.uint8), r"picture 2 has shape \(5, 7, 5\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"picture 2 has shape \(2, 4, 4, 3\)"),
        (np.full((4, 4), np.nan), "picture 2 holds values that are not finite"),
        (np.broadcast_to(np.uint8(0), (8000, 8000, 3)), "picture 2 has 8000 x 8000"),
        (None, "picture 2 is a NoneType"),
        (7, "picture 2 is a int"),
        (
            "data:image/png;base64,@@@",
            "picture 2, .data:image.png;base64,@@@., is no file, no address and no valid base64",
        ),
    ],
)
def test_refusals_name_the_item(image_processor, source, message):
    with pytest.raises(ValueError, match=message) as caught:
        image_processor([GOOD, source])
    assert "0x" not in str(caught.value)  # no memory address of a library's own words


def test_empty_list(image_processor):
    with pytest.raises(ValueError, match="The list of pictures is empty"):
        image_processor([])


def test_limit_is_a_setting(image_processor, tmp_path):
    with pytest.raises(ValueError, match="at most 63 are decoded"):
        image_processor(GOOD, max_pixels=63)
    JMiniGPT4ImageProcessor(max_pixels=64, plain_rgb=True).save_pretrained(tmp_path)
    again = JMiniGPT4ImageProcessor.from_pretrained(tmp_path)
    assert (again.max_pixels, again.plain_rgb, again.background) == (64, True, [255, 255, 255])


def test_damaged_exif_is_no_reason_to_refuse(image_processor):
    picture = Image.fromarray(noise(4, 6, 3))
    picture.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    assert np.array_equal(np.asarray(image_processor.to_rgb(picture)), noise(4, 6, 3))


def test_what_has_been_converted_is_not_converted_again(image_processor, monkeypatch):
    """`do_convert_rgb=False` holds for RGB images alone, and no size passes unchecked."""
    rgb = image_processor.to_rgb(Image.fromarray(noise(20, 30, 3)))
    expected = image_processor(rgb)["pixel_values"][0]
    converted = []
    to_rgb = type(image_processor).to_rgb
    monkeypatch.setattr(
        type(image_processor),
        "to_rgb",
        lambda self, *args, **kwargs: converted.append(1) or to_rgb(self, *args, **kwargs),
    )
    assert np.array_equal(image_processor(rgb, do_convert_rgb=False)["pixel_values"][0], expected)
    assert converted == []
    others = [rgb.convert("RGBA"), np.asarray(rgb), rgb.convert("P")]
    assert np.array_equal(image_processor(others, do_convert_rgb=False)["pixel_values"][1], expected)
    assert np.array_equal(image_processor(rgb)["pixel_values"][0], expected)
    assert len(converted) == 4
    with pytest.raises(ValueError, match=r"picture 1 has 30 x 20 = 600 pixels; at most 500"):
        image_processor(rgb, do_convert_rgb=False, max_pixels=500)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) (r) file\n"


@pytest.mark.parametrize("how", ["bytes", "file", "path", "base64", "opened"])
def test_no_format_outside_the_list_is_opened(image_processor, tmp_path, how, monkeypatch):
    """Above all not EPS, for which Pillow starts Ghostscript."""
    import base64

    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript"))
    (tmp_path / "a.png").write_bytes(EPS)
    sources = {"bytes": EPS, "file": io.BytesIO(EPS), "path": str(tmp_path / "a.png")}
    sources |= {"base64": "data:image/png;base64," + base64.b64encode(EPS).decode()}
    source = sources[how] if how in sources else Image.open(io.BytesIO(EPS))
    words = "is of the format EPS; decoded are" if how == "opened" else r"is not a picture of a known format \("
    with pytest.raises(ValueError, match=words + ".?PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM, AVIF"):
        image_processor(source)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + data[-2:]


def behind_header(data: bytes, more: bytes) -> bytes:
    """Pieces put behind the header of a PNG, or the start of a JPEG."""
    at = 33 if data.startswith(b"\x89PNG") else 2
    return data[:at] + more + data[at:]


def tiff(tags: dict[int, tuple[int, int, int]], rest: bytes = b"") -> bytes:
    base = {256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    fields = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted({**base, **tags}.items()))
    return b"II*\0" + struct.pack("<IH", 8, len({**base, **tags})) + fields + bytes(4) + rest


SMALL = Image.new("RGB", (8, 8))
MULTIPLIERS = {
    "jpeg: scans": (scans(101), "JPEG of more than 100 scans"),
    "jpeg: segments": (behind_header(encoded(SMALL, "JPEG"), b"\xff\xe5\0\2" * 6000), "more than 5,000 pieces"),
    "jpeg: padding": (behind_header(encoded(SMALL, "JPEG"), b"\xff" * 6000), "more than 5,000 pieces"),
    "png: chunks": (behind_header(encoded(SMALL), chunk(b"tEXt", b"a\0b") * 6000), "more than 5,000 pieces"),
    "png: profiles": (
        behind_header(encoded(SMALL), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**6))) * 6),
        "more than 5,000 pieces",
    ),
    "png: a side": (bomb(1, 1_000_001), "a side has at most 1,000,000"),
    "tiff: tiles": (
        tiff({322: (4, 1, 30_000), 323: (4, 1, 30_000), 324: (4, 1, 200), 325: (4, 1, 9)}, bytes(99)),
        "tiles of 30000 x 30000 pixels",
    ),
    "tiff: strips": (tiff({273: (4, 100_001, 200), 278: (4, 1, 1), 279: (4, 1, 9)}, bytes(400_400)), "100,001 strips"),
    "tiff: tags": (
        tiff({1000 + n: (4, 100_000, 8) for n in range(9)}, bytes(400_400)),
        "tags are larger than the file",
    ),
    "webp: copies": (encoded(Image.new("1", (5001, 5000)).convert("RGB"), "WEBP", quality=1, method=0), "25,000,000"),
}


@pytest.mark.parametrize(("data", "message"), MULTIPLIERS.values(), ids=MULTIPLIERS)
def test_what_a_small_file_multiplies_is_refused_before_a_pixel_is_decoded(
    image_processor, monkeypatch, data, message
):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=message):
        image_processor.to_rgb(data)


@pytest.mark.parametrize("name", ["jpeg: scans", "png: a side", "tiff: tiles", "webp: copies"])
def test_who_opened_a_picture_makes_no_difference(image_processor, name):
    data, message = MULTIPLIERS[name]
    with pytest.raises(ValueError, match=message):
        image_processor(Image.open(io.BytesIO(data)))


def test_many_scans_are_decoded_up_to_the_limit(image_processor):
    assert image_processor.to_rgb(scans(100)).size == (64, 64)


def resized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header states another size."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


OPTIONS = [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "progressive", "4:4:4", "restarts"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("what", ["noise", "grey", "half grey"])
def test_a_jpeg_that_lies_about_its_size(image_processor, mode, options, what):
    """libjpeg fills the rest with grey and says nothing; grey pictures that do not lie are taken."""
    pixels = noise(64, 80, 3)
    pixels[32 if what == "half grey" else 0 if what == "grey" else 64 :] = 128
    data = encoded(Image.fromarray(pixels).convert(mode), "JPEG", **options)
    assert image_processor.to_rgb(data).size == (80, 64)
    for width, height in ((80, 80), (80, 128), (96, 80), (4000, 3000)):
        with pytest.raises(ValueError, match="picture is damaged: it holds fewer pixels than its header states"):
            image_processor.to_rgb(resized(data, width, height))


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["plain", "progressive"])
def test_a_grey_corner_a_thumbnail_and_a_film_behind_it_are_no_lie(image_processor, options):
    """What a telephone writes: a second JPEG in the EXIF data, and data of any kind behind the picture."""
    pixels = noise(64, 80, 3)
    pixels[32:] = 128
    thumbnail = encoded(Image.fromarray(pixels[::4, ::4]), "JPEG", progressive=True)
    film = random.Random(0).randbytes(12_000_000)
    assert film.count(b"\xff\xda") > 100
    data = encoded(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0" + thumbnail, **options) + film
    expected = image_processor.to_rgb(encoded(Image.fromarray(pixels), "JPEG", **options))
    assert image_processor.to_rgb(data).tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="fewer pixels than its header states"):
        image_processor.to_rgb(resized(data[: -len(film)].replace(thumbnail, bytes(len(thumbnail))), 80, 128))


def test_large_pictures_are_converted_in_bands(image_processor, monkeypatch):
    """The same to the bit as in one piece."""
    pictures = [Image.fromarray(noise(40, 30, 4)), Image.fromarray(noise(40, 30, 4)).quantize()]
    pictures += [Image.fromarray(noise(40, 30, dtype=np.uint16, high=65536)), Image.fromarray(noise(40, 30, 2), "LA")]
    whole = [image_processor.to_rgb(picture) for picture in pictures]
    monkeypatch.setattr("jminigpt4.image_processing_jminigpt4._BAND", 100)
    for picture, expected in zip(pictures, whole, strict=True):
        assert image_processor.to_rgb(picture).tobytes() == expected.tobytes()


def mutated(data: bytes, generator: random.Random) -> bytes:
    """A file with some bytes changed, cut out, doubled, or cut off."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 8)):
        at = generator.randrange(min(len(changed), generator.choice((64, 700, len(changed)))) or 1)
        match generator.randrange(5):
            case 0:
                changed[at : at + 1] = generator.randbytes(1)
            case 1:
                changed[at : at + 4] = generator.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"))
            case 2:
                del changed[at : at + generator.randint(1, 40)]
            case 3:
                changed[at:at] = changed[at : at + generator.randint(1, 200)] * generator.randint(1, 20)
            case 4 if generator.random() < 0.3:
                del changed[max(at, 8) :]
    return bytes(changed)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "PPM"])
def test_mutated_files_give_a_picture_or_a_sentence(image_processor, file_format):
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    generator = random.Random(file_format)
    picture = Image.fromarray(noise(48, 64, 3))
    variants = [encoded(picture, file_format), encoded(picture.convert("L").resize((300, 20)), file_format)]
    if file_format == "JPEG":
        variants.append(encoded(picture, "JPEG", progressive=True))
    if file_format == "TIFF":
        variants += [encoded(picture, "TIFF", compression=each) for each in ("tiff_lzw", "tiff_deflate", "jpeg")]
    if file_format in ("PNG", "WEBP"):
        variants.append(encoded(picture.convert("RGBA"), file_format))
    before, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for number in range(100):
        data = mutated(variants[number % len(variants)], generator)
        start = time.process_time()
        try:
            taken += image_processor.to_rgb(data, "picture 7").mode == "RGB"
        except ValueError as error:
            assert str(error).startswith("picture 7 ") and "0x" not in str(error), error
        assert time.process_time() - start < 5
    assert 0 < taken < 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024
