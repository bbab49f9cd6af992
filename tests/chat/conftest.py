"""What the tests of the room share: pictures that differ, and a model that can hold a long conversation."""

import socket

import pytest
from PIL import Image


def make_picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A seeded picture of coloured stripes."""
    picture = Image.new("RGB", size)
    picture.putdata(
        [
            ((x * 37 + seed * 91) % 256, (x * x * seed) % 256, (x // 7 * 53 * seed) % 256)
            for x in range(size[0] * size[1])
        ]
    )
    return picture


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [make_picture(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="session")
def chat_model(make_model):
    """The tiny model with a window of 1024 positions, which speaks 12 tokens greedily and stops at EOS."""
    model = make_model(max_position_embeddings=1024)
    model.generation_config.eos_token_id = 3
    model.generation_config.max_new_tokens = 12
    model.generation_config.do_sample = False
    return model


@pytest.fixture(scope="session")
def checkpoint(chat_model, processor, tmp_path_factory):
    """The tiny model as a folder."""
    folder = tmp_path_factory.mktemp("chat") / "checkpoint"
    chat_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def picture_files(pictures, tmp_path_factory):
    """The pictures as PNG files."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [folder / f"絵 {number}.png" for number in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    return files


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
