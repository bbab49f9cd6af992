"""A full disk, or a kill at any operation on files, while a folder or a file is being made: nothing looks finished."""

import pytest

from jminigpt4.convert import assemble, verify_folder, write_minigpt4_checkpoint
from jminigpt4.convert.gguf import write_gguf

WRITERS = {
    "minigpt4": (write_minigpt4_checkpoint, "checkpoint.pth"),
    "gguf": (lambda folder, path: write_gguf(folder, path, "float32", progress=False), "model.gguf"),
}


@pytest.fixture(params=WRITERS)
def writing(request, converted, tmp_path):
    """What writes a file of another format, and the file."""
    if request.param == "gguf":
        pytest.importorskip("gguf")
    write, name = WRITERS[request.param]
    path = tmp_path / "out" / name
    path.parent.mkdir()
    return lambda: write(converted.folder, path), path


def test_a_full_disk_leaves_no_folder(originals, tmp_path, full_disk):
    with full_disk(100_000), pytest.raises(OSError, match="out"):
        assemble(**originals, out=tmp_path / "out", prove_equal=False)
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_no_file(writing, full_disk):
    write, path = writing
    with full_disk(500), pytest.raises(OSError, match=path.name):
        write()
    assert not any(path.parent.iterdir())
    write()
    assert path.is_file()


def test_a_killed_process_leaves_no_file(writing, killed_at):
    write, path = writing
    status, operations = killed_at(write, path.parent)
    assert status == 0 and operations > 2
    whole = path.read_bytes()
    for last in range(1, operations + 1):
        path.unlink(missing_ok=True)
        assert killed_at(write, path.parent, last)[0] < 0
        assert not path.exists() or path.read_bytes() == whole


def test_a_killed_conversion_leaves_no_folder_that_looks_finished(originals, tmp_path, killed_at):
    def convert():
        assemble(**originals, out=tmp_path / "out", prove_equal=False)

    _, operations = killed_at(convert, tmp_path)
    assert verify_folder(tmp_path / "out") == []
    for last in range(1, operations, max(1, operations // 6)):
        for each in tmp_path.iterdir():
            each.rename(each.with_name(f"{each.name}-{last}")) if each.name == "out" else None
        assert killed_at(convert, tmp_path, last)[0] < 0
        assert not (tmp_path / "out").exists() or verify_folder(tmp_path / "out") == []
