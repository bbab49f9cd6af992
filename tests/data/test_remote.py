"""Pictures and data files at addresses: in memory here, on S3 in tests/scale."""

import io
import json
import pickle
import tarfile
import threading

import fsspec
import pytest

from jminigpt4.data import files, remote, table
from jminigpt4.data.pictures import FilePicture, PictureFolders, RemotePicture, TablePicture, stamps
from jminigpt4.data.readers import DataSource, read_source
from jminigpt4.data.remote import RemotePath, data_path, is_url
from jminigpt4.data.table import open_table


@pytest.fixture
def bucket():
    """`bucket(**{path: content})` puts files into `memory://bucket`, which is empty before and after."""
    memory = fsspec.filesystem("memory")

    def put(files: dict[str, bytes]):
        for name, content in files.items():
            memory.pipe_file(f"/bucket/{name}", content)

    yield put
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def test_what_is_an_address():
    assert all(map(is_url, ("s3://b/a.jpg", "gs://b", "hf://datasets/a/b", "HTTPS://h/a.jpg", "memory://x")))
    names = ("a.jpg", "C://a.jpg", "file:///a.jpg", "simplecache::s3://b/a.jpg", "s3:/b/a.jpg", "a/s3://b")
    assert not any(map(is_url, names))


def test_a_remote_picture_is_read_whole_or_as_a_part_of_an_archive(bucket):
    bucket({"a.png": b"0123456789"})
    whole, part = RemotePicture("memory://bucket/a.png"), RemotePicture("memory://bucket/a.png", 2, 3)
    assert whole.read() == b"0123456789" and part.read() == b"234"
    assert whole.name == "memory://bucket/a.png" and part.name == "memory://bucket/a.png@2"
    assert whole.stamp()[0] == 10 and part.stamp() == (3, whole.stamp()[1])
    assert pickle.loads(pickle.dumps(part)) == part


def test_a_stamp_stays_while_the_content_does_and_fits_a_column(bucket):
    bucket({"a.png": b"0123456789"})
    picture = RemotePicture("memory://bucket/a.png")
    before = picture.stamp()
    assert before == picture.stamp() and 0 < before[1] < 2**63
    bucket({"a.png": b"9876543210"})
    assert picture.stamp()[0] == before[0] and picture.stamp() != before


@pytest.mark.parametrize("told", [{"ETag": '"1"'}, {"md5Hash": "1"}, {"blob_id": "1"}, {"lfs": {"sha256": "1"}}])
def test_a_stamp_is_of_what_the_place_knows_of_the_content(monkeypatch, told):
    """A copy with another time of change is the same picture where there is a checksum."""
    info = {"size": 4, "LastModified": "then"}
    monkeypatch.setattr(remote, "_asked", lambda url, ask: info | told)
    first = remote.stamp("s3://b/a.png")
    monkeypatch.setattr(remote, "_asked", lambda url, ask: info | told | {"LastModified": "now"})
    assert remote.stamp("s3://b/a.png") == first
    other = {key: {"sha256": "2"} if key == "lfs" else "2" for key in told}
    monkeypatch.setattr(remote, "_asked", lambda url, ask: info | other)
    assert remote.stamp("s3://b/a.png") != first
    monkeypatch.setattr(remote, "_asked", lambda url, ask: {"size": 4})
    assert remote.stamp("https://h/a.png") == (4, 0)


def test_what_cannot_be_read_is_an_os_error_that_names_the_address(bucket, monkeypatch):
    bucket({"a.png": b"0123456789"})
    for absent in (RemotePicture("memory://bucket/b.png"), RemotePicture("memory://bucket/b.png", 1, 2)):
        for ask in (absent.read, absent.stamp):
            with pytest.raises(FileNotFoundError, match=r"memory://bucket/b.png does not exist\."):
                ask()
    with pytest.raises(OSError, match="gave 2 of the 5 bytes from 8 on"):
        RemotePicture("memory://bucket/a.png", 8, 5).read()
    with pytest.raises(OSError, match="memory://bucket is a folder"):
        RemotePicture("memory://bucket").stamp()
    memory = fsspec.filesystem("memory")

    def broken(*_, **__):
        raise RuntimeError("a driver's\nown kind of error")

    monkeypatch.setattr(type(memory), "cat_file", broken)
    with pytest.raises(OSError, match="memory://bucket/a.png cannot be read: a driver's own kind of error"):
        RemotePicture("memory://bucket/a.png").read()


def test_no_more_than_a_picture_has_is_read(bucket, monkeypatch):
    monkeypatch.setattr(files, "MAX_PICTURE_BYTES", 5)
    bucket({"a.png": b"0123456789", "b.png": b"01234"})
    with pytest.raises(OSError, match=r"memory://bucket/a.png has more bytes; at most 5 are read"):
        RemotePicture("memory://bucket/a.png").read()
    with pytest.raises(OSError, match=r"has 7 bytes; at most 5 are read"):
        RemotePicture("memory://bucket/a.png", 1, 7).read()
    assert RemotePicture("memory://bucket/b.png").read() == b"01234"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://bucket/a", r"s3://bucket/a needs the package s3fs: pip install .*\[scale\]"),
        ("gs://bucket/a", r"gs://bucket/a needs the package gcsfs: pip install .*\[scale\]"),
        ("https://host/a", r"https://host/a needs the package aiohttp: pip install .*\[scale\]"),
        ("abfs://bucket/a", r"abfs://bucket/a needs the package adlfs: pip install adlfs"),
    ],
)
def test_a_missing_driver_is_named_before_anything_is_opened(monkeypatch, url, sentence):
    found = remote.find_spec
    absent = ("s3fs", "gcsfs", "aiohttp", "adlfs")
    monkeypatch.setattr(remote, "find_spec", lambda name: None if name in absent else found(name))
    with pytest.raises(ImportError, match=sentence):
        PictureFolders([url])
    with pytest.raises(ImportError, match=sentence):  # no bad picture: nothing of that place can be read
        RemotePicture(url).read()


def test_an_unknown_kind_of_address_is_named():
    with pytest.raises(ValueError, match="nosuch://a is an address of a kind that fsspec does not know: nosuch"):
        PictureFolders(["nosuch://a"])


def test_the_only_folder_is_not_listed(bucket, monkeypatch):
    monkeypatch.setattr(
        "jminigpt4.data.pictures.listed", lambda folder: pytest.fail("a bucket of 400 million pictures was listed")
    )
    folders = PictureFolders(["memory://bucket/set/"])
    assert folders.find("a/犬.png") == RemotePicture("memory://bucket/set/a/犬.png")
    assert folders.find("/here/a.png") == FilePicture("/here/a.png")


def test_addresses_and_folders_are_looked_through_in_order(bucket, tmp_path):
    (tmp_path / "a.png").touch()
    bucket({"one/b.png": b"1", "two/a.png": b"2", "two/b.png": b"3", "two/below/c.png": b"4"})
    folders = PictureFolders([tmp_path, "memory://bucket/one", "memory://bucket/two"])
    assert folders.find("a.png") == FilePicture(str(tmp_path / "a.png"))
    assert folders.find("b.png") == RemotePicture("memory://bucket/one/b.png")
    assert folders.find("c.png") == RemotePicture("memory://bucket/two/below/c.png")
    assert folders.find("below/c.png") == RemotePicture("memory://bucket/two/below/c.png")
    assert folders.find("d.png") == FilePicture(str(tmp_path / "d.png"))
    assert folders.missing == {str(tmp_path / "d.png"): ("d.png",)}


def test_coco_pictures_at_an_address_are_found_under_all_their_names(bucket):
    bucket({"val2017/000000000009.jpg": b"1"})
    found = PictureFolders(["memory://bucket"]).find("COCO_val2014_000000000009.jpg")
    assert found == RemotePicture("memory://bucket/val2017/000000000009.jpg")


@pytest.mark.parametrize(
    "name",
    [
        *("memory://other/a.png", "https://host/a.png", "s3://bucket/pictures/a.png"),
        *("memory://bucket/pictures-of-others/a.png", "memory://bucket/a.png"),
        *("memory://bucket/pictures/../secret.png", "memory://bucket/pictures/%2e%2e/secret.png"),
        *("../secret.png", "a/../../secret.png", "..\\secret.png", "%2E%2E/secret.png"),
    ],
)
def test_a_row_opens_no_address_outside_the_picture_folders(bucket, name):
    bucket({"secret.png": b"1", "pictures/a.png": b"2"})
    folders = PictureFolders(["memory://bucket/pictures"])
    with pytest.raises(ValueError, match="allows it|leads out of memory://bucket/pictures"):
        folders.find(name)
    assert folders.find("memory://bucket/pictures/a.png").read() == b"2"
    with pytest.raises(ValueError, match="allows it"):
        PictureFolders(["."]).find("memory://bucket/pictures/a.png")


def test_addresses_in_rows_are_bad_rows_unless_the_user_names_their_place(bucket, tmp_path, draw):
    draw(1).save(tmp_path / "a.png")
    bucket({"a.png": (tmp_path / "a.png").read_bytes()})
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": "memory://bucket/a.png", "caption": "犬"}))
    bad = []
    with pytest.raises(ValueError, match="holds no rows"):
        read_source(DataSource(str(path)), bad.append)
    assert "line 1: 'memory://bucket/a.png' is an address" in bad[0].reason
    assert "`--images memory://bucket`" in bad[0].reason
    (row,) = read_source(DataSource(str(path), images="memory://bucket"))
    assert row.pictures == (RemotePicture("memory://bucket/a.png"),)


def test_names_at_a_web_server_are_names_of_files(monkeypatch):
    monkeypatch.setattr("jminigpt4.data.pictures.filesystem", lambda url: None)
    folders = PictureFolders(["https://host/set"])
    assert folders.find("犬 #1?.png").path == "https://host/set/%E7%8A%AC%20%231%3F.png"
    assert folders.find("https://host/set/a.png?size=large").path == "https://host/set/a.png?size=large"
    assert folders.find("000000000009.jpg").path == "https://host/set/000000000009.jpg"


def test_a_data_file_at_an_address_is_read_where_it_lies(bucket, tmp_path, draw):
    draw(1).save(tmp_path / "1.png")
    line = json.dumps({"image": "1.png", "caption": "犬"})
    bucket({"set/rows.jsonl": line.encode(), "set/1.png": (tmp_path / "1.png").read_bytes()})
    (row,) = read_source(DataSource("memory://bucket/set/rows.jsonl"))
    assert row.answer == "犬" and row.pictures == (RemotePicture("memory://bucket/set/1.png"),)
    assert row.pictures[0].read() == (tmp_path / "1.png").read_bytes() and row.image_ids == ("rows:1.png",)
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/set/other.jsonl does not exist"):
        read_source(DataSource("memory://bucket/set/other.jsonl"))


def test_stair_captions_at_an_address_find_their_pictures_there(bucket):
    """As STAIR distributes them: one JSON of two lists, pictures under 2014's names; here in 2017's folders."""
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in (9, 25)]
    captions = [{"id": number, "image_id": number, "caption": f"犬{number}"} for number in (9, 25)]
    whole = json.dumps({"images": images, "annotations": captions}, ensure_ascii=False)
    bucket({"stair/val.json": whole.encode()} | {f"coco/val2017/{number:012d}.jpg": b"1" for number in (9, 25)})
    rows = read_source(DataSource("memory://bucket/stair/val.json", images="memory://bucket/coco"))
    assert [row.answer for row in rows] == ["犬9", "犬25"] and rows[0].image_ids == ("coco:9",)
    assert rows[1].pictures == (RemotePicture("memory://bucket/coco/val2017/000000000025.jpg"),)


def test_a_path_at_an_address(bucket):
    bucket({"set/b.tar": b"12", "set/a.tar": b"1", "set/c.json": b"", "set/below/d.tar": b""})
    path = data_path("memory://bucket/set/")
    assert isinstance(path, RemotePath) and str(path) == "memory://bucket/set" and path.is_dir()
    assert [each.name for each in sorted(path.glob("*.tar"))] == ["a.tar", "b.tar"]
    file = path / "b.tar"
    assert (file.stem, file.suffix, file.parent, file.is_file(), file.stat().st_size) == ("b", ".tar", path, True, 2)
    assert not (path / "x").exists() and {path, data_path(str(path))} == {path}
    with file.open_bytes() as opened:
        assert opened.read() == b"12"


def parquet(images: list) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"image": images, "caption": ["犬"] * len(images)}), file, row_group_size=2)
    return file.getvalue()


def test_a_table_opens_no_address_that_a_cell_names(bucket):
    """A table's cells are a stranger's; only the user's own words open addresses."""
    bucket({"a.png": b"1"})
    names = ["memory://bucket/a.png", "https://host/a.png", "s3://bucket/a.png"]
    bucket({"0.parquet": parquet([{"bytes": None, "path": name} for name in names])})
    for number in range(3):
        with pytest.raises(OSError, match="No such file"):
            TablePicture("memory://bucket/0.parquet", number, "image").read()


def test_a_parquet_file_at_an_address_is_read_by_its_cells(bucket):
    contents = [bytes([number]) for number in range(5)]
    bucket({"tables/0.parquet": parquet([{"bytes": content, "path": None} for content in contents])})
    for path in ("memory://bucket/tables/0.parquet", "memory://bucket/tables"):
        pictures = [row.pictures[0] for row in read_source(DataSource(path))]
        assert pictures == [TablePicture("memory://bucket/tables/0.parquet", row, "image") for row in range(5)]
        assert [picture.read() for picture in pictures] == contents
        assert stamps(pictures) == [remote.stamp("memory://bucket/tables/0.parquet")] * 5
    bucket({"tables/0.parquet": parquet([{"bytes": b"other", "path": None}])})
    assert pictures[0].read() == b"other"  # what was kept of the old file is not taken
    with pytest.raises(OSError, match="has no row 3"):
        pictures[3].read()


def test_rows_at_an_address_are_indexed_once_and_anew_when_they_change(bucket, draw, tmp_path, monkeypatch):
    draw(1).save(tmp_path / "1.png")
    line = json.dumps({"image": "1.png", "caption": "犬"}) + "\n"
    bucket({"set/rows.jsonl": line.encode(), "set/1.png": (tmp_path / "1.png").read_bytes()})
    source = DataSource("memory://bucket/set/rows.jsonl", images=["memory://bucket/set", "memory://bucket/more"])
    assert open_table(source)[0].pictures == (RemotePicture("memory://bucket/set/1.png"),)
    with monkeypatch.context() as patch:
        patch.setattr(table, "_build", lambda *_: pytest.fail("read again"))
        assert len(open_table(source)) == 1
    bucket({"set/rows.jsonl": (line * 2).encode()})
    assert len(open_table(source)) == 2
    bucket({"set/rows.jsonl": line.replace("1.png", "2.png").encode()})
    assert open_table(source)[0].pictures == (RemotePicture("memory://bucket/set/2.png"),)  # nowhere
    bucket({"more/2.png": b"2"})
    assert open_table(source)[0].pictures == (RemotePicture("memory://bucket/more/2.png"),)


def test_a_tar_at_an_address_is_indexed_and_its_members_are_read_by_ranges(bucket, tmp_path, draw, monkeypatch):
    packed, contents = io.BytesIO(), []
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(3):
            draw(number).save(tmp_path / "x.png")
            contents.append((tmp_path / "x.png").read_bytes())
            for name, content in ((f"{number}.png", contents[-1]), (f"{number}.txt", f"犬{number}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    bucket({"tars/0.tar": packed.getvalue()})
    for path in ("memory://bucket/tars/0.tar", "memory://bucket/tars"):
        rows = read_source(DataSource(path))
        assert [row.answer for row in rows] == ["犬0", "犬1", "犬2"]
        pictures = [row.pictures[0] for row in rows]
        assert all(isinstance(picture, RemotePicture) and picture.offset for picture in pictures)
        assert [picture.read() for picture in pictures] == contents


def test_stamps_are_asked_for_many_at_once_and_keep_their_order(bucket, tmp_path, monkeypatch):
    """32 requests wait for each other here: one after the other they would wait for ever."""
    (tmp_path / "a.png").write_bytes(b"1")
    bucket({f"{number}.png": bytes(number + 1) for number in range(32)})
    asked, info = threading.Barrier(32, timeout=20), remote.stamp
    monkeypatch.setattr("jminigpt4.data.pictures.stamp", lambda url: asked.wait() >= 0 and info(url))
    pictures = [RemotePicture(f"memory://bucket/{number}.png") for number in range(32)]
    parts = [RemotePicture("memory://bucket/5.png", number, 2) for number in range(9)]
    found = stamps([FilePicture(str(tmp_path / "a.png")), *pictures, *parts, FilePicture("\0")])
    assert [each and each[0] for each in found] == [1, *range(1, 33), *[2] * 9, None]
    assert found[33:42] == [(2, found[6][1])] * 9  # a 33rd request would have waited for 31 others
