"""Checkpoint folders: whole or not there, listed file by file."""

import os
import signal
import stat
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from jminigpt4 import checkpoint
from jminigpt4.checkpoint import (
    MANIFEST,
    finished_file,
    finished_folder,
    locked_folder,
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
    for text in ("garbage\n", f"{'0' * 64} one blank\n", f"{'G' * 64}  a\n", f"{'0' * 64}  a"):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match="line 1, is not a line of sha256sum"):
            verify_manifest(tmp_path)
    (tmp_path / MANIFEST).unlink()
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(FileNotFoundError, match="has no SHA256SUMS"):
        verify_manifest(tmp_path)


@pytest.fixture
def listed(tmp_path):
    """A folder with a file, a file in a subfolder, and their manifest; beside it a file that is not its own."""
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "sub" / "b").write_text("b")
    (tmp_path / "outside").write_text("a")
    write_manifest(folder)
    return folder


def add(name, text="x"):
    def change(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def link(name, target):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def fifo(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def list_too(name):
    def change(folder):
        with open(folder / MANIFEST, "a") as file:
            file.write(f"{sha256(folder / 'a')}  {name}\n")

    return change


NO_FILE = "is no regular file but a link, a pipe or a device: it is not opened."
HIDING_PLACES = {
    "in the cache": (add(".cache/evil.py"), f".cache/evil.py is not listed in {MANIFEST}."),
    "in the Hub's cache": (add(".cache/huggingface/evil.py"), f"evil.py is not listed in {MANIFEST}."),
    "in the Hub's downloads": (add(".cache/huggingface/download/evil.py"), f"evil.py is not listed in {MANIFEST}."),
    "git": (add(".git/hooks/post-checkout"), f".git is not listed in {MANIFEST}."),
    "git of a submodule": (add(".git"), f".git is not listed in {MANIFEST}."),
    "git below": (add("sub/.git/config"), f"sub/.git/config is not listed in {MANIFEST}."),
    "another list": (add("sub/SHA256SUMS"), f"sub/SHA256SUMS is not listed in {MANIFEST}."),
    "linked folder": (link("more", ".."), f"more {NO_FILE}"),
    "dangling link": (link("more", "nowhere"), f"more {NO_FILE}"),
    "pipe": (fifo("more"), f"more {NO_FILE}"),
    "pipe in a file's place": (fifo("a"), f"a {NO_FILE}"),
    "link in a file's place": (link("a", "../outside"), f"a {NO_FILE}"),
    "link inside": (link("a", "sub/b"), f"a {NO_FILE}"),
    "listed twice": (list_too("a"), f"a is listed twice in {MANIFEST}."),
    "listed outside": (list_too("../outside"), f"../outside leads out of the folder: {MANIFEST} may"),
    "listed roundabout": (list_too("sub/../a"), f"sub/../a leads out of the folder: {MANIFEST} may"),
    "listed absolutely": (list_too("/etc/passwd"), f"/etc/passwd leads out of the folder: {MANIFEST} may"),
    "listed in vain": (list_too("./a"), "./a is missing."),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("hide, problem", HIDING_PLACES.values(), ids=HIDING_PLACES)
def test_nothing_hides_from_the_manifest(listed, hide, problem):
    assert verify_manifest(listed) == []
    hide(listed)
    (found,) = verify_manifest(listed)
    assert problem in found


def test_what_the_hub_leaves_beside_a_download(listed):
    for name in ("README.md.metadata", "README.md.lock", "sub/b.metadata"):
        add(f".cache/huggingface/download/{name}")(listed)
    add(".cache/huggingface/.gitignore")(listed)
    add(".cache/huggingface/CACHEDIR.TAG")(listed)
    add(f".cache/huggingface/trees/{'0' * 40}.json")(listed)
    add(".gitattributes")(listed)
    assert verify_manifest(listed) == []


def test_a_snapshot_in_the_hubs_cache(listed, tmp_path):
    """Its files are links into `blobs` beside it; a link to anywhere else is none of them."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.parent.mkdir(parents=True)
    blobs.mkdir()
    listed.rename(snapshot)
    for number, name in enumerate(("a", "sub/b", MANIFEST)):
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    assert verify_manifest(snapshot) == []
    link("a", tmp_path / "outside")(snapshot)
    assert verify_manifest(snapshot) == [f"a {NO_FILE}"]


def test_projection_round_trip(model, tmp_path):
    path = save_projection(model, tmp_path, {"language_model": "tiny"})
    weight, bias, metadata = read_projection(tmp_path)
    assert torch.equal(weight, model.model.language_projection.weight)
    assert torch.equal(bias, model.model.language_projection.bias)
    assert metadata == {"language_model": "tiny"}
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        read_projection(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="is a pointer of git-lfs"):
        read_projection(path)
    with pytest.raises(FileNotFoundError):
        read_projection(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    "weight, bias",
    [
        (torch.zeros(6), torch.zeros(2)),
        (torch.zeros(2, 3), torch.zeros(3)),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2)),
        (torch.zeros(2, 3), None),
    ],
    ids=["one dimension", "another bias", "integers", "no bias"],
)
def test_a_projection_that_is_no_linear_layer(tmp_path, weight, bias):
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    save_file(tensors, tmp_path / "projection.safetensors")
    with pytest.raises(ValueError, match="is not a projection file"):
        read_projection(tmp_path)


class Msvcrt:
    """What Windows has in the place of `fcntl`, by file: one process's descriptors exclude each other there."""

    LK_NBLCK = 2

    def __init__(self):
        self.locked: dict[int, int] = {}

    def locking(self, descriptor, mode, count):
        assert mode == self.LK_NBLCK and count == 1
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == checkpoint.BEYOND  # behind what others want to read
        file = os.fstat(descriptor).st_ino
        if self.locked.get(file, descriptor) != descriptor:
            raise OSError(13, "Permission denied")
        self.locked[file] = descriptor


@pytest.fixture
def windows(monkeypatch):
    """As far as Linux can be Windows: no `fcntl`, no folders that are opened, open files that are not removed, and no
    folder that is renamed over another."""
    library, opened = Msvcrt(), {}
    real = {name: getattr(os, name) for name in ("open", "close", "replace", "unlink")}

    def open_(path, flags, *mode, **given):
        if os.path.isdir(path) and flags & 3 == os.O_RDONLY and not given:
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = real["open"](path, flags, *mode, **given)
        opened[descriptor] = os.path.realpath(path)
        return descriptor

    def close(descriptor):
        library.locked = {file: each for file, each in library.locked.items() if each != descriptor}
        opened.pop(descriptor, None)
        real["close"](descriptor)

    def unlink(path, *given, **options):
        if os.path.realpath(path) in opened.values():
            raise PermissionError(13, "The file is used by another process", str(path))
        real["unlink"](path, *given, **options)

    def replace(source, target):
        if os.path.isdir(target):
            raise PermissionError(13, "Access is denied", str(target))
        real["replace"](source, target)

    monkeypatch.setitem(sys.modules, "msvcrt", library)
    monkeypatch.setattr(checkpoint, "fcntl", None)
    monkeypatch.setattr(checkpoint, "WINDOWS", True)
    for name, function in (("open", open_), ("close", close), ("replace", replace), ("unlink", unlink)):
        monkeypatch.setattr(checkpoint.os, name, function)
    return library


def test_files_and_folders_on_windows(windows, tmp_path):
    with finished_file(tmp_path / "file") as temporary:
        temporary.write_text("1")
    (tmp_path / "empty").mkdir()
    with finished_folder(tmp_path / "empty") as folder:  # an empty folder is there already
        (folder / "a").write_text("old")
    with finished_folder(tmp_path / "empty", replace=True) as folder:
        (folder / "b").write_text("new")
    assert names(tmp_path) == ["empty", "file"] and names(tmp_path / "empty") == ["b"]
    (tmp_path / ".file.unfinished-x").mkdir()
    remove_unfinished(tmp_path)  # whose writer cannot be known to be dead there
    assert (tmp_path / ".file.unfinished-x").is_dir()


def test_a_locked_folder_on_windows(windows, tmp_path):
    with locked_folder(tmp_path / "run"):
        with (
            pytest.raises(BlockingIOError, match=f"is in use by process {os.getpid()} on"),
            locked_folder(tmp_path / "run"),
        ):
            pass
        assert names(tmp_path / "run") == [".lock"]
    assert names(tmp_path / "run") == []
    with locked_folder(tmp_path / "run"):
        pass


def test_what_is_just_begun_may_be_taken_for_a_leftover(tmp_path, monkeypatch):
    """Another process removes leftovers between the making of a temporary folder and its claiming."""
    make, made = checkpoint.tempfile.mkdtemp, []

    def raced(**named):
        made.append(make(**named))
        if len(made) == 1:
            checkpoint.remove_unfinished(tmp_path)
        return made[-1]

    monkeypatch.setattr(checkpoint.tempfile, "mkdtemp", raced)
    with checkpoint.finished_file(tmp_path / "file") as temporary:
        temporary.write_text("whole", encoding="utf-8")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "whole" and len(made) == 2
    made.clear()
    with checkpoint.finished_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("whole", encoding="utf-8")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file", "folder", "file"] and len(made) == 2
