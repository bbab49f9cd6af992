"""Checkpoint folders: whole or not there, listed file by file."""

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest
import torch

from jminigpt4.checkpoint import (
    MANIFEST,
    finished_file,
    finished_folder,
    read_projection,
    remove_unfinished,
    save_projection,
    sha256,
    verify_manifest,
    write_manifest,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_appears_when_complete(tmp_path):
    target = tmp_path / "out"
    with finished_folder(target) as folder:
        (folder / "weights").write_text("1")
        assert not target.exists()
    assert names(tmp_path) == ["out"]
    assert (target / "weights").read_text() == "1"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((target / "weights").stat().st_mode) == 0o666 & ~umask


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), finished_folder(tmp_path / "out") as folder:
        (folder / "weights").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == []


def test_never_overwrites_unasked(tmp_path):
    (tmp_path / "out").mkdir()
    with finished_folder(tmp_path / "out") as folder:  # an empty folder may be filled
        (folder / "a").write_text("old")
    with pytest.raises(FileExistsError, match="exists already"), finished_folder(tmp_path / "out"):
        pass
    with finished_folder(tmp_path / "out", replace=True) as folder:
        (folder / "b").write_text("new")
        assert names(tmp_path / "out") == ["a"]
    assert names(tmp_path / "out") == ["b"]
    assert names(tmp_path) == ["out"]


def test_a_file_appears_when_complete(tmp_path):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with finished_file(target) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".json" and target.read_text() == "old"
        remove_unfinished(tmp_path)  # of another process: what is being written stays
        assert temporary.exists()
    assert target.read_text() == "new" and names(tmp_path) == ["scores.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    with pytest.raises(RuntimeError), finished_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "new" and names(tmp_path) == ["scores.json"]


def test_leftovers_go_and_what_was_moved_aside_comes_back(tmp_path):
    (tmp_path / ".run.unfinished-1").mkdir()
    (tmp_path / ".run.unfinished-1" / "half").write_text("1")
    (tmp_path / ".scores.json.unfinished-2.json").write_text("{")
    aside = tmp_path / ".old.replaced-3" / "old"  # killed between the two renames of `finished_folder`
    aside.mkdir(parents=True)
    (aside / "weights").write_text("1")
    remove_unfinished(tmp_path, "run")
    assert names(tmp_path) == [".old.replaced-3", ".scores.json.unfinished-2.json"]
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["old"] and (tmp_path / "old" / "weights").read_text() == "1"


def test_killed_in_the_middle(tmp_path):
    code = """
        import importlib.util, os, signal, sys
        spec = importlib.util.spec_from_file_location("checkpoint", sys.argv[1])
        checkpoint = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(checkpoint)
        with checkpoint.finished_folder(sys.argv[2]) as folder:
            (folder / "weights").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    module = sys.modules["jminigpt4.checkpoint"].__file__
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code), module, str(tmp_path / "out")])
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.unfinished-") for name in names(tmp_path))


def test_manifest_finds_any_change(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(bytes(range(256)))
    (tmp_path / "sub" / "b").write_bytes(b"b")
    manifest = write_manifest(tmp_path)
    assert manifest.read_text() == f"{sha256(tmp_path / 'a')}  a\n{sha256(tmp_path / 'sub' / 'b')}  sub/b\n"
    assert verify_manifest(tmp_path) == []
    for position in (0, 100, 255):
        data = bytearray(range(256))
        data[position] ^= 1
        (tmp_path / "a").write_bytes(data)
        assert verify_manifest(tmp_path) == ["a has changed: its SHA-256 is not the listed one."]
    (tmp_path / "a").unlink()
    (tmp_path / "c").write_text("")
    assert verify_manifest(tmp_path) == ["a is missing.", f"c is not listed in {MANIFEST}."]


def test_manifest_itself(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no SHA256SUMS"):
        verify_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("garbage\n")
    with pytest.raises(ValueError, match="line 1, is not a line of sha256sum"):
        verify_manifest(tmp_path)


def test_projection_round_trip(model, tmp_path):
    path = save_projection(model, tmp_path, {"language_model": "tiny"})
    weight, bias, metadata = read_projection(tmp_path)
    assert torch.equal(weight, model.model.language_projection.weight)
    assert torch.equal(bias, model.model.language_projection.bias)
    assert metadata == {"language_model": "tiny"}
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        read_projection(path)
    with pytest.raises(FileNotFoundError):
        read_projection(tmp_path / "nowhere.safetensors")
