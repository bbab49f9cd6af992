"""What the tests of the room share: pictures as files, and a free port."""

import socket

import pytest


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
