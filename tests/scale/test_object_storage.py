"""Pictures, data files and the store on S3, and pictures of a web server: servers of this process."""

import io
import json
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from typer.testing import CliRunner

from jminigpt4.data.files import MAX_PICTURE_BYTES
from jminigpt4.data.pictures import FilePicture, PictureFolders, RemotePicture

pytestmark = [pytest.mark.scale, pytest.mark.timeout(900)]


@pytest.fixture
def features(monkeypatch):
    """`features(*arguments)`: what the verb prints and warns of."""
    from jminigpt4.cli import app

    def run(*arguments) -> tuple[str, str]:
        result = CliRunner().invoke(app, ["features", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout, result.stderr

    return run


def packed(contents: list[bytes]) -> bytes:
    """A tar in img2dataset's layout."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for number, content in enumerate(contents):
            for name, part in ((f"{number}.png", content), (f"{number}.txt", "犬".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    return archive.getvalue()


def table(contents: list[bytes]) -> bytes:
    """Parquet as `datasets` writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": content, "path": None} for content in contents]
    file = io.BytesIO()
    pq.write_table(pa.table({"image": cells, "caption": ["犬"] * len(cells)}), file, row_group_size=2)
    return file.getvalue()


def test_files_tars_and_tables_on_s3_become_features_on_s3(
    bucket, cluster, drawings, features, checkpoint, tmp_path, monkeypatch
):
    """By Ray and by this machine, to the same bits as from files; a bad picture is said with the same sentence."""
    from jminigpt4.train.features import FeatureCache
    from jminigpt4.train.ray_features import Job
    from jminigpt4.train.recipe import Recipe

    paths = drawings(30)
    contents = [FilePicture(path).read() for path in paths]
    bucket({f"files/{number}.png": content for number, content in enumerate(contents[:10])})
    bucket({"files/cut.png": contents[0][:60], "tars/0.tar": packed(contents[10:20])})
    bucket({"tables/0.parquet": table(contents[20:])})
    rows = tmp_path / "rows.jsonl"
    names = [*(f"{number}.png" for number in range(10)), "cut.png"]
    rows.write_text("".join(json.dumps({"image": name, "caption": "犬"}) + "\n" for name in names))
    data = [rows, "s3://pictures/tars/0.tar", "s3://pictures/tables/0.parquet", "--images", "s3://pictures/files"]
    data += ["--dtype", "float32"]
    ray = ("--engine", "ray", "--address", cluster.address)
    said, warned = features(checkpoint, "s3://pictures/store", *data, *ray)
    assert said.splitlines()[-1] == "30 pictures in s3://pictures/store; 1 bad"
    here, warned_here = features(checkpoint, tmp_path / "here", *data)
    assert here.splitlines()[-1] == f"30 pictures in {tmp_path / 'here'}; 1 bad"
    lines = [[line for line in each.splitlines() if line.startswith("left out:")] for each in (warned, warned_here)]
    assert lines[0] == lines[1] and "s3://pictures/files/cut.png" in lines[0][0]

    files = Job(str(checkpoint), str(tmp_path / "files"), Recipe(cache_dtype="float32")).open()
    files.fill(map(FilePicture, paths), progress=False)
    expected = files.features([FilePicture(path) for path in paths])
    remote = [RemotePicture(f"s3://pictures/files/{number}.png") for number in range(10)]
    for folder in ("s3://pictures/store", str(tmp_path / "here")):
        cache = FeatureCache(folder, files.encoder, "float32")
        assert torch.equal(cache.features(remote), expected[:10])
        assert all(cache.store.has_content(each) for each in map(_digest, contents))

    monkeypatch.setattr(RemotePicture, "read", lambda self: pytest.fail("a picture was read that the store has"))
    again, _ = features(checkpoint, "s3://pictures/store", *data[:3], "--images", "s3://pictures/files", *data[-2:])
    assert again.splitlines()[-1].startswith("30 pictures")


def _digest(content: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(content).digest()


def test_a_picture_on_s3(bucket):
    bucket({"one/a.png": b"0123456789", "one/below/b.png": b"1"})
    whole, part = RemotePicture("s3://pictures/one/a.png"), RemotePicture("s3://pictures/one/a.png", 2, 3)
    assert whole.read() == b"0123456789" and part.read() == b"234"
    before = whole.stamp()
    assert before[0] == 10 and before[1] and part.stamp() == (3, before[1])
    bucket({"one/a.png": b"0123456789"})
    assert whole.stamp() == before  # the ETag says that it is the same
    bucket({"one/a.png": b"9876543210"})
    assert whole.stamp() != before
    with pytest.raises(FileNotFoundError, match=r"s3://pictures/one/c.png does not exist"):
        RemotePicture("s3://pictures/one/c.png").read()
    with pytest.raises(OSError, match=r"s3://nobodys/c.png (does not exist|cannot be read)"):
        RemotePicture("s3://nobodys/c.png").stamp()
    folders = PictureFolders(["s3://pictures/none", "s3://pictures/one"])
    assert folders.find("b.png") == RemotePicture("s3://pictures/one/below/b.png")


@pytest.fixture
def web():
    """`web(answer)`: the address of a server on loopback; `answer` writes its responses."""
    servers = []

    def serve(answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


CONTENT = bytes(range(100))


def send(handler, status: int, content: bytes, **headers):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(content)


def test_a_picture_on_a_web_server(web):
    def answer(handler):
        if not handler.path.endswith("a.png"):
            return send(handler, 404, b"none")
        asked = handler.headers.get("Range")
        if asked is None:
            return send(handler, 200, CONTENT, ETag='"1"')
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        return send(handler, 206, CONTENT[first : last + 1], ETag='"1"')

    url = web(answer)
    picture = PictureFolders([url]).find("a.png")
    assert picture.read() == CONTENT and picture.stamp()[0] == 100 and picture.stamp()[1]
    assert RemotePicture(f"{url}/a.png", 5, 20).read() == CONTENT[5:25]
    for ask in (RemotePicture(f"{url}/b.png").read, RemotePicture(f"{url}/b.png").stamp):
        with pytest.raises(FileNotFoundError, match="/b.png does not exist"):
            ask()


def test_a_web_server_that_sends_no_parts(web):
    """Its answer is the beginning of the file: as good as another picture's bytes."""
    url = web(lambda handler: send(handler, 200, CONTENT))
    assert RemotePicture(f"{url}/a.tar").stamp() == (100, 0)
    with pytest.raises(OSError, match="a.tar cannot be read: its server sends no parts of files"):
        RemotePicture(f"{url}/a.tar", 5, 20).read()


def test_a_web_server_that_never_ends(web, monkeypatch):
    monkeypatch.setattr("jminigpt4.data.files.MAX_PICTURE_BYTES", 1_000_000)
    assert MAX_PICTURE_BYTES == 200_000_000

    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        while handler.command == "GET":
            try:
                handler.wfile.write(bytes(100_000))
            except OSError:
                return

    with pytest.raises(OSError, match="has more bytes; at most 1,000,000 are read"):
        RemotePicture(f"{web(answer)}/a.png").read()
