"""Pictures, data files and the store on S3, and pictures of a web server: servers of this process."""

import hashlib
import io
import json
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from typer.testing import CliRunner

from jminigpt4.data.files import MAX_PICTURE_BYTES
from jminigpt4.data.pictures import FilePicture, PictureFolders, RemotePicture, TablePicture

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


@pytest.fixture(params=["local", "ray"])
def engine(request) -> list[str]:
    """Options of an engine."""
    if request.param == "local":
        return []
    return ["--engine", "ray", "--address", request.getfixturevalue("cluster").address]


def test_files_tars_and_tables_on_s3_become_features_on_s3(bucket, engine, drawings, features, checkpoint, tmp_path):
    """To the same bits as from files, by either engine; a bad picture is said with the ordinary sentence."""
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
    store = f"s3://pictures/store-{len(engine)}"
    command = [checkpoint, store, rows, "s3://pictures/tars/0.tar", "s3://pictures/tables/0.parquet"]
    command += ["--images", "s3://pictures/files", "--dtype", "float32", *engine]
    said, warned = features(*command)
    assert said.splitlines()[-1] == f"30 pictures in {store}; 1 bad"
    files = Job(str(checkpoint), str(tmp_path / "files"), Recipe(cache_dtype="float32")).open_cache()
    files.fill(map(FilePicture, paths), progress=False)
    (line,) = (line for line in warned.splitlines() if line.startswith("left out: "))
    with pytest.raises(ValueError) as sentence:
        files.encoder.image_processor.to_rgb(contents[0][:60], "s3://pictures/files/cut.png")
    assert line == f"left out: {sentence.value}"
    expected = files.features([FilePicture(path) for path in paths])
    cache = FeatureCache(store, files.encoder, "float32")
    remote = [RemotePicture(f"s3://pictures/files/{number}.png") for number in range(10)]
    cells = [TablePicture("s3://pictures/tables/0.parquet", number, "image") for number in range(10)]
    assert torch.equal(cache.features([*remote, *cells]), expected[[*range(10), *range(20, 30)]])
    assert all(cache.store.has_content(hashlib.sha256(content).digest()) for content in contents)
    blocks = cache.store.files.names()
    again, _ = features(*command)
    assert again.splitlines()[-1] == f"30 pictures in {store}; 1 bad" and cache.store.files.names() == blocks


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
