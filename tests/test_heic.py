"""HEIC, which iPhones write: read where pillow-heif is installed, else refused in a sentence that names it."""

import io
import random
import struct
import time

import numpy as np
import pytest
from PIL import Image

from jminigpt4 import image_processing_jminigpt4
from jminigpt4.image_processing_jminigpt4 import JMiniGPT4ImageProcessor, open_picture


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


@pytest.mark.parametrize(
    "brands",
    [
        b"heic\0\0\0\0mif1heic",
        b"heix\0\0\0\0mif1",
        b"mif1\0\0\0\0mif1miafMiHBheic",
        b"msf1\0\0\0\0msf1hevc",
    ],
)
def test_without_pillow_heif_it_is_named(brands, monkeypatch):
    monkeypatch.setattr(image_processing_jminigpt4, "reads_heic", lambda: False)
    with pytest.raises(ValueError) as raised:
        open_picture(box(b"ftyp", brands) + bytes(100), "IMG_0001.HEIC")
    assert str(raised.value) == ("IMG_0001.HEIC is an HEIC picture: pip install pillow-heif, or save it as JPEG.")


@pytest.mark.parametrize("brands", [b"avif\0\0\0\0avifmif1miaf", b"mp42\0\0\0\0isommp42", b"M4A \0\0\0\0"])
def test_other_media_files_are_not_taken_for_it(brands, monkeypatch):
    monkeypatch.setattr(image_processing_jminigpt4, "reads_heic", lambda: False)
    with pytest.raises(ValueError, match="is not a picture of a known format"):
        open_picture(box(b"ftyp", brands) + bytes(100), "a")


@pytest.fixture(scope="module")
def pillow_heif():
    return pytest.importorskip("pillow_heif", reason="needs pillow-heif, the extra `heic`")


@pytest.fixture(scope="module")
def drawing() -> Image.Image:
    """Four colours, none of them where another would be after a turn."""
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:48, :64], pixels[:48, 64:], pixels[48:, :64], pixels[48:, 64:] = (220, 30, 30), (30, 200, 30), 255, 60
    return Image.fromarray(pixels)


def encoded(picture: Image.Image, pillow_heif, **options) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file, format="HEIF", quality=90, **options)
    return file.getvalue()


def assert_close(found: Image.Image, expected: Image.Image):
    assert found.mode == "RGB" and found.size == expected.size
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 4


@pytest.mark.parametrize("options", [{}, {"tile_size": 64}])
def test_it_is_read(drawing, pillow_heif, options):
    processor = JMiniGPT4ImageProcessor()
    content = encoded(drawing, pillow_heif, **options)
    assert_close(processor.to_rgb(content), drawing)
    pixel_values = processor(content, return_tensors="pt")["pixel_values"]
    expected = processor(drawing, return_tensors="pt")["pixel_values"]
    assert (pixel_values - expected).abs().mean() < 0.05


def test_it_is_upright(drawing, pillow_heif):
    """As the camera was held: the turn that the file states is made once."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise
    file = io.BytesIO()
    pillow_heif.register_heif_opener()
    drawing.save(file, "HEIF", quality=90, exif=exif.tobytes())
    assert_close(JMiniGPT4ImageProcessor().to_rgb(file.getvalue()), drawing.transpose(Image.Transpose.ROTATE_270))


def test_transparency_lies_on_white(pillow_heif):
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert np.asarray(JMiniGPT4ImageProcessor().to_rgb(encoded(clear, pillow_heif))).min() > 250


def test_of_several_pictures_the_primary_one_is_shown(drawing, pillow_heif):
    file, other = io.BytesIO(), Image.new("RGB", drawing.size, "blue")
    heif = pillow_heif.from_pillow(other)
    heif.add_from_pillow(drawing)
    heif.save(file, quality=90, primary_index=1)
    assert_close(JMiniGPT4ImageProcessor().to_rgb(file.getvalue()), drawing)


def test_large_ones_are_refused_before_a_pixel_is_decoded(drawing, pillow_heif):
    """libheif holds the picture several times: half of `max_pixels` is decoded."""
    processor, content = JMiniGPT4ImageProcessor(), encoded(drawing, pillow_heif)
    pixels = drawing.width * drawing.height
    assert processor.to_rgb(content, max_pixels=2 * pixels)
    with pytest.raises(ValueError, match=f"128 x 96 = {pixels:,} pixels; at most {pixels - 1:,} are decoded"):
        processor.to_rgb(content, "a", max_pixels=2 * pixels - 1)


def test_a_size_that_lies_is_refused(drawing, pillow_heif):
    content = encoded(drawing, pillow_heif)
    stated = struct.pack(">II", *drawing.size)
    assert content.count(stated) == 1
    with pytest.raises(ValueError, match="^a is "):
        JMiniGPT4ImageProcessor().to_rgb(content.replace(stated, struct.pack(">II", 8, 8)), "a")


def test_mutated_files_give_a_picture_or_a_sentence(drawing, pillow_heif):
    generator, processor = random.Random(0), JMiniGPT4ImageProcessor()
    whole, pictures = encoded(drawing, pillow_heif, tile_size=64), 0
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            content[generator.randrange(12, len(content))] = generator.randrange(256)
        begun = time.process_time()
        try:
            picture = processor.to_rgb(bytes(content[: generator.choice((len(content), len(content) - 50))]), "a")
            assert picture.mode == "RGB"
            pictures += 1
        except ValueError as error:
            assert str(error).startswith("a ") and "0x" not in str(error)
        assert time.process_time() - begun < 5
    assert 0 < pictures < 200
