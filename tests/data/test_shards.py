"""Shards: what a pattern names, and what of it comes in whole."""

import http.server
import importlib.util
import threading
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jminigpt4.data import shards
from jminigpt4.data.shards import ShardLost, expand_braces, fetch, is_remote, list_shards

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(shards, "FIRST_WAIT", 0.001)


def test_braces_count_and_list_as_a_shell_does():
    assert list(expand_braces("a/{08..11}.tar")) == ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]
    assert list(expand_braces("{a,b}/{1..2}")) == ["a/1", "a/2", "b/1", "b/2"]
    assert list(expand_braces("{a,b{1..2}}")) == ["a", "b1", "a", "b2"]  # the inner ones first; a list names each once
    assert list(expand_braces("plain.tar")) == ["plain.tar"]


@pytest.mark.parametrize("pattern", ["{a}.tar", "{5..3}.tar", "{0..9999999}.tar"])
def test_braces_that_mean_nothing_are_refused(pattern):
    with pytest.raises(ValueError, match=r"neither a range|counts from"):
        list(expand_braces(pattern))


def test_a_pattern_names_files_of_this_machine(tmp_path, monkeypatch):
    for name in ("b.tar", "a.tar", "deep/er/c.tar", "note.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    every = [str(tmp_path / name) for name in ("a.tar", "b.tar", "deep/er/c.tar")]
    assert list_shards(["*.tar"]) == every[:2] == list_shards([str(tmp_path / "{b,a}.tar")])
    assert list_shards(["**.tar", "a.tar"]) == every == list_shards([f"file://{tmp_path}/**/*.tar"])
    for pattern, error, message in (
        ("c.tar", FileNotFoundError, "does not exist"),
        ("*.zip", FileNotFoundError, "matches no file"),
        (".", ValueError, "is a folder: name its shards"),
    ):
        with pytest.raises(error, match=message):
            list_shards([pattern])


def test_a_pattern_names_files_of_a_server(memory):
    for name in ("y/1.parquet", "y/x/0.parquet", "y/readme.md"):
        memory.pipe(f"/{name}", CONTENT)
    assert list_shards(["memory://y/**.parquet"]) == ["memory:///y/1.parquet", "memory:///y/x/0.parquet"]
    assert list_shards(["https://a.example/{0..1}.tar?x=y"]) == [f"https://a.example/{n}.tar?x=y" for n in (0, 1)]
    with pytest.raises(ValueError, match="web server cannot be asked"):
        list_shards(["https://a.example/*.tar"])
    with pytest.raises(ValueError, match=r"names no file: .*a\.example/data/\*\*\.parquet"):
        list_shards(["https://a.example/data/"])
    with pytest.raises(ValueError, match="cannot be opened"):
        list_shards(["nonsense://a/*.tar"])
    assert not is_remote("C:/a.tar") and not is_remote("file:///a.tar") and is_remote("hf://datasets/a/b/c.tar")


def test_what_opens_an_address_is_named_where_it_is_not_installed(monkeypatch):
    def lacking(*arguments, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacking)
    with pytest.raises(ImportError, match=r"s3://b/\*.tar needs .*Install s3fs.*scale"):
        list_shards(["s3://b/*.tar"])


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def faulty(memory, monkeypatch):
    """`faulty[name]`: what befalls the tries of fetching `name` in turn, a number of bytes after which it ends or an
    exception; whole after them. `faulty.tries`: names of all tries."""

    class Faults(dict):
        tries: list[str] = []

    faults, get = Faults(), MemoryFileSystem.get_file

    def get_file(self, rpath, lpath, callback=None, **options):
        name = rpath.rpartition("/")[2]
        faults.tries = [*faults.tries, name]
        fault = faults[name].pop(0) if faults.get(name) else None
        if isinstance(fault, Exception):
            raise fault
        get(self, rpath, lpath, callback=callback, **options)
        if fault is not None:
            Path(lpath).write_bytes(Path(lpath).read_bytes()[:fault])

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    return faults


def test_a_shard_comes_in_whole_after_faults_that_pass(memory, faulty, tmp_path):
    memory.pipe("/a/0.tar", CONTENT)
    faulty["0.tar"] = [RuntimeError("500"), 100, TimeoutError()]
    path = fetch("memory:///a/0.tar", tmp_path)
    assert path == tmp_path / "0.tar" and path.read_bytes() == CONTENT
    assert len(faulty.tries) == 4 and [each.name for each in tmp_path.iterdir()] == ["0.tar"]


def test_a_shard_that_does_not_come_is_named_with_the_reason_and_leaves_nothing(memory, faulty, tmp_path):
    memory.pipe("/a/0.tar", CONTENT)
    faulty["0.tar"] = [100] * 99
    with pytest.raises(ShardLost, match=r"memory:///a/0.tar cannot be fetched: 100 of its 10,240 bytes"):
        fetch("memory:///a/0.tar", tmp_path)
    assert len(faulty.tries) == shards.TRIES
    with pytest.raises(ShardLost, match=r"1.tar cannot be fetched: it is not there"):
        fetch("memory:///a/1.tar", tmp_path)
    assert faulty.tries.count("1.tar") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_of_this_machine_stays_where_it_is(tmp_path):
    (tmp_path / "0.tar").write_bytes(CONTENT)
    assert fetch(str(tmp_path / "0.tar"), tmp_path / "elsewhere") == tmp_path / "0.tar"
    with pytest.raises(ShardLost, match="does not exist any more"):
        fetch(str(tmp_path / "1.tar"), tmp_path)


def test_fetching_is_given_up_at_once_when_the_run_ends(memory, faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FIRST_WAIT", 30.0)
    memory.pipe("/a/0.tar", CONTENT)
    faulty["0.tar"] = [RuntimeError("500")] * 99
    ended = threading.Event()
    threading.Timer(0.1, ended.set).start()
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        fetch("memory:///a/0.tar", tmp_path, ended)
    assert time.monotonic() - began < 25 and len(faulty.tries) == 1


class Server(http.server.ThreadingHTTPServer):
    """On loopback; `faults` befall requests for a shard in turn: a status, or bytes after which the line breaks."""

    def __init__(self, faults: list[tuple[str, int]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.served = faults, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self):
        self.server.served += 1
        kind, number = self.server.faults.pop(0) if self.server.faults else ("", 0)
        if kind == "status":
            self.send_error(number)
            return
        self.do_HEAD()
        if kind == "silent":
            time.sleep(number)
        self.wfile.write(CONTENT[:number] if kind == "broken" else CONTENT)

    def log_message(self, *arguments):
        pass


@pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is None, reason="needs aiohttp, which opens https:// for fsspec"
)
def test_a_web_server_with_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "STALLED", 0.5)
    server = Server([("status", 500), ("broken", 300), ("status", 503), ("silent", 2)])
    address = f"http://127.0.0.1:{server.server_port}/a/00000.tar?key=1"
    try:
        assert fetch(address, tmp_path).read_bytes() == CONTENT
        assert server.served == 5 and [each.name for each in tmp_path.iterdir()] == ["00000.tar"]
        server.faults[:] = [("status", 404)]
        with pytest.raises(ShardLost, match="it is not there"):
            fetch(address, tmp_path)
        server.faults[:] = [("status", 500)] * 99
        with pytest.raises(ShardLost, match=r"00000.tar.* cannot be fetched: 500"):
            fetch(address, tmp_path)
    finally:
        server.shutdown()
        server.server_close()
