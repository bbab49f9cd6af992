"""Tables of picture addresses: told how they are downloaded, then joined with what img2dataset has downloaded."""

import io
import json
import shlex
import socket
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jminigpt4.data.downloads import downloads
from jminigpt4.data.id_lists import read_ids
from jminigpt4.data.readers import DataSource, as_source, read_source, recognised
from jminigpt4.data.rows import PICTURE


def jpg(draw, number) -> bytes:
    draw(number).save(buffer := io.BytesIO(), format="JPEG")
    return buffer.getvalue()


def rendered(rows) -> list[str]:
    return [
        "|".join("".join("@" if part is PICTURE else part for part in message.parts) for message in row.conversation)
        for row in rows
    ]


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


URLS = [f"https://example.jp/{name}" for name in ("a.jpg", "b.png?size=3", "c.jpg")]
URLS.append("http://images.cocodataset.org/train2017/000000533137.jpg")
# Of llm-jp/WAON: the features of its card.
WAON = [
    {
        "url": url,
        "caption": f"写真{n}",
        "similarity": 0.3,
        "page_title": "題",
        "page_url": f"https://example.jp/{n}",
        "phash": "f0",
    }
    for n, url in enumerate(URLS)
]


def img2dataset(folder, draw, output_format="webdataset", failed=(2,), columns=()):
    """The folder that `img2dataset` leaves, as its `writer.py` and `downloader.py` write it, with two to a shard."""
    folder.mkdir()
    for shard in range(2):
        rows = []
        for index in range(2):
            number = 2 * shard + index
            status = "failed_to_download" if number in failed else "success"
            meta = {"url": URLS[number], "caption": WAON[number]["caption"], "key": f"{shard:05d}{index:04d}"}
            meta |= {"status": status, "error_message": None, "width": 40, "height": 32, "sha256": "0"}
            rows.append(meta | {column: f"{column}{number}" for column in columns})
        _write_shard(folder, f"{shard:05d}", rows, draw, output_format)
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


def _write_shard(folder, name, rows, draw, output_format):
    good = [row for row in rows if row["status"] == "success"]
    content = {row["key"]: jpg(draw, URLS.index(row["url"])) for row in good}
    if output_format == "parquet":
        rows = [row | {"jpg": content.get(row["key"]), "txt": row.get("caption")} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    if output_format == "webdataset":
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for row in good:
                texts = {"json": json.dumps(row).encode(), "txt": row["caption"].encode(), "jpg": content[row["key"]]}
                for kind, value in texts.items():
                    (member := tarfile.TarInfo(f"{row['key']}.{kind}")).size = len(value)
                    tar.addfile(member, io.BytesIO(value))
    if output_format == "files":
        (folder / name).mkdir()
        for row in good:
            (folder / name / f"{row['key']}.jpg").write_bytes(content[row["key"]])
            (folder / name / f"{row['key']}.json").write_text(json.dumps(row))
            (folder / name / f"{row['key']}.txt").write_text(row["caption"])


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*given):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("waon.jsonl", "--input_format jsonl --url_col url --caption_col caption"),
        ("waon.parquet", "--input_format parquet --url_col url --caption_col caption"),
        ("waon.csv", "--input_format csv --url_col url --caption_col caption"),
        ("waon.json", "--input_format json --url_col url --caption_col caption"),
    ],
)
def test_a_table_of_addresses_says_how_it_is_downloaded(tmp_path, no_network, name, arguments):
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(WAON), path)
    elif name.endswith("csv"):
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in [WAON[0], *(row.values() for row in WAON)]))
    elif name.endswith("json"):
        path.write_text(json.dumps(WAON))
    else:
        lines(path, WAON)
    assert recognised(path).name == "addresses"
    with pytest.raises(ValueError, match="nothing is fetched from here") as raised:
        read_source(as_source(path))
    said = str(raised.value)
    command = shlex.split(said.split("`")[3])
    assert command[:3] == ["img2dataset", "--url_list", str(path)] and arguments in " ".join(command)
    assert said.endswith(f"and read it with `--images {tmp_path / 'waon_pictures'}`.") and "\n" not in said
    assert command[command.index("--resize_mode") + 1] == "keep_ratio"  # by default it would pad to squares


@pytest.mark.parametrize("output_format", ["webdataset", "files", "parquet"])
def test_a_table_is_joined_with_what_was_downloaded(tmp_path, draw, no_network, capsys, output_format):
    path = lines(tmp_path / "waon.jsonl", WAON)
    folder = img2dataset(tmp_path / "waon_pictures", draw, output_format)
    rows = read_source(DataSource(str(path), images=str(folder)))
    assert rendered(rows) == ["@|写真0", "@|写真1", "@|写真3"]
    assert [row.pictures[0].read() for row in rows] == [jpg(draw, 0), jpg(draw, 1), jpg(draw, 3)]
    assert [row.image_ids[0] for row in rows] == [f"waon:{URLS[0]}", f"waon:{URLS[1]}", "coco:533137"]
    assert (
        "waon.jsonl: 3 of 4 rows have pictures that were downloaded; the others are left out."
        in capsys.readouterr().err
    )


def test_the_texts_are_the_tables_in_every_layout_of_rows(tmp_path, draw):
    """DEJIMA: captions and questions about one download, whatever text img2dataset was given."""
    folder = img2dataset(tmp_path / "pictures", draw)
    turns = [{"from": "human", "value": "<image>\n色は?"}, {"from": "gpt", "value": "赤です。"}]
    given = {
        "cap.jsonl": ([{"image_url": URLS[0], "caption": "検出にもとづく説明"}], ["@|検出にもとづく説明"]),
        "vqa.jsonl": ([{"url": URLS[1], "question": "何色?", "answer": 3}], ["@何色?|3"]),
        "talk.jsonl": ([{"URL": URLS[1], "conversations": turns}], ["@色は?|赤です。"]),
        "laion.jsonl": ([{"URL": URLS[0], "TEXT": "大文字"}], ["@|大文字"]),
        "several.jsonl": ([{"url": URLS[0], "captions": ["一", "二"]}], ["@|一", "@|二"]),
    }
    for name, (rows, expected) in given.items():
        path = lines(tmp_path / name, rows)
        assert recognised(path).name == "addresses"
        read = read_source(DataSource(str(path), images=str(folder)))
        assert rendered(read) == expected, name
        assert {row.pictures[0].read() for row in read} <= {jpg(draw, 0), jpg(draw, 1)}


def test_ids_of_a_table_exclude_without_pictures(tmp_path):
    path = lines(tmp_path / "waon.jsonl", WAON)
    assert set(read_ids(path)) == {*(f"waon:{url}" for url in URLS[:3]), "coco:533137"}


def test_rows_with_pictures_of_their_own_are_no_table_of_addresses(tmp_path, draw):
    draw(1).save(tmp_path / "a.png")
    path = lines(tmp_path / "own.jsonl", [{"image": "a.png", "url": URLS[0], "caption": "手元の絵"}])
    assert recognised(path).name == "rows" and rendered(read_source(as_source(path))) == ["@|手元の絵"]


def test_downloads_of_other_addresses_and_faults_of_rows(tmp_path, draw):
    folder = img2dataset(tmp_path / "pictures", draw)
    other = lines(tmp_path / "other.jsonl", [{"url": "https://example.jp/none.jpg", "caption": "無い"}])
    with pytest.raises(ValueError, match="None of 1 addresses was found. .*other.jsonl has addresses of pictures"):
        read_source(DataSource(str(other), images=str(folder)))
    path = lines(tmp_path / "bad.jsonl", [WAON[0], {"url": None, "caption": "x"}, {"url": URLS[1], "caption": " "}])
    bad = []
    assert rendered(read_source(DataSource(str(path), images=str(folder)), bad.append)) == ["@|写真0"]
    assert [fault.reason for fault in bad] == [
        f"{path}, line 2: `url` is missing.",
        f"{path}, line 3: an answer is empty or only white space.",
    ]


@pytest.mark.parametrize("output_format", ["webdataset", "files", "parquet"])
def test_what_img2dataset_leaves_is_read_by_itself(tmp_path, draw, output_format):
    folder = img2dataset(tmp_path / "waon", draw, output_format)
    rows = read_source(as_source(folder))
    assert rendered(rows) == ["@|写真0", "@|写真1", "@|写真3"]
    assert [row.pictures[0].read() for row in rows] == [jpg(draw, 0), jpg(draw, 1), jpg(draw, 3)]
    assert rows[2].image_ids == ("coco:533137",) and len({row.image_ids for row in rows}) == 3
    assert "coco:533137" in read_ids(folder)


@pytest.mark.parametrize("output_format", ["webdataset", "files", "parquet"])
def test_additional_columns_are_rows_of_their_layout(tmp_path, draw, output_format):
    folder = img2dataset(tmp_path / "vqa", draw, output_format, columns=("question", "answer"))
    for table in folder.glob("*.parquet"):
        rows = pq.read_table(table)
        pq.write_table(rows.drop_columns([name for name in ("caption", "txt") if name in rows.column_names]), table)
    if output_format == "webdataset":
        for shard in folder.glob("*.tar"):
            _without_captions(shard)
    assert rendered(read_source(as_source(folder))) == [f"@question{n}|answer{n}" for n in (0, 1, 3)]


def _without_captions(shard):
    with tarfile.open(shard) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(shard, "w") as tar:
        for name, content in members:
            if name.endswith(".txt"):
                continue
            if name.endswith(".json"):
                about = json.loads(content)
                del about["caption"]
                content = json.dumps(about).encode()
            (member := tarfile.TarInfo(name)).size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_the_index_of_downloads_takes_little_and_is_made_anew_when_shards_change(tmp_path, draw):
    folder = img2dataset(tmp_path / "pictures", draw, failed=(0, 2))
    found = downloads([str(folder)])
    assert len(found) == 2 and found.find(URLS[0]) is None and found.find(URLS[1]).read() == jpg(draw, 1)
    assert (found.digests.nbytes + found.places.nbytes) / len(found) == 40
    assert downloads([str(folder)]) is found
    (folder / "00001.tar").unlink()
    assert len(downloads([str(folder)])) == 1


def test_a_shard_table_that_is_damaged_or_without_pictures_is_named(tmp_path, draw):
    folder = img2dataset(tmp_path / "pictures", draw, "files")
    (folder / "00001" / "000010001.jpg").unlink()
    rows = read_source(as_source(folder))  # a missing file is a bad picture of its own, not a wrong row
    with pytest.raises(FileNotFoundError):
        rows[-1].pictures[0].read()
    (folder / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="00001.parquet cannot be read as Parquet: is it whole?"):
        read_source(as_source(folder))


def test_addresses_within_rows_of_other_layouts_are_joined_too(tmp_path, draw, no_network):
    """Qwen's and OpenAI's parts, LLaVA's `image`: where a row names an address, the download is meant."""
    part = {"type": "image_url", "image_url": {"url": URLS[0]}}
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "何?"}]},
        {"role": "assistant", "content": "犬"},
    ]
    path = lines(tmp_path / "openai.jsonl", [{"messages": messages}, {"image": URLS[3], "caption": "弁当"}])
    folder = img2dataset(tmp_path / "pictures", draw)
    rows = read_source(DataSource(str(path), images=str(folder)))
    assert rendered(rows) == ["@何?|犬", "@|弁当"]
    assert [row.pictures[0].read() for row in rows] == [jpg(draw, 0), jpg(draw, 3)]
    assert set(read_ids(path)) == {f"openai:{URLS[0]}", "coco:533137"}
    with pytest.raises(
        ValueError,
        match="line 1: 'https://example.jp/a.jpg' is an address, and none is opened that lies in no",
    ):
        read_source(as_source(path))
