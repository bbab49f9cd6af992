"""Pictures: bit-exact with the originals on RGB, right for everything an illustrator may send, firm with the rest."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

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
        (b"not a picture", "picture 2 is not a picture that Pillow can read"),
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
        ("data:image/png;base64,@@@", "picture 2 is not valid base64"),
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
