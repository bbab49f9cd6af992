"""Tars of webdataset beyond captions: compressed ones, rows of other layouts beside a picture, ids by address."""

import gzip
import io
import json
import os
import tarfile

import pytest

from jminigpt4.data.id_lists import read_ids
from jminigpt4.data.readers import as_source, read_source, recognised
from jminigpt4.data.rows import PICTURE


def png(draw, number) -> bytes:
    draw(number).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def rendered(rows) -> list[str]:
    return [
        "|".join("".join("@" if part is PICTURE else part for part in message.parts) for message in row.conversation)
        for row in rows
    ]


def shard(path, members: dict[str, bytes], compressed=False):
    with tarfile.open(path, "w:gz" if compressed else "w") as tar:
        for name, content in members.items():
            (member := tarfile.TarInfo(name)).size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def captioned(draw, *numbers) -> dict[str, bytes]:
    members = {}
    for number in numbers:
        members |= {f"{number:09d}.png": png(draw, number), f"{number:09d}.txt": f"絵{number}".encode()}
    return members


@pytest.mark.parametrize("name", ["00000.tar.gz", "00000.tgz"])
def test_a_compressed_tar_is_unpacked_once_and_said(tmp_path, draw, capsys, name):
    path = shard(tmp_path / name, captioned(draw, 1, 2), compressed=True)
    assert recognised(path).name == recognised(tmp_path).name == "webdataset"
    rows = read_source(as_source(path))
    assert rendered(rows) == ["@|絵1", "@|絵2"] and rows[1].pictures[0].read() == png(draw, 2)
    tar = tmp_path / "00000.tar"
    assert capsys.readouterr().err.strip() == (
        f"{path} is compressed, and no place in it can be read by itself: it is unpacked once, to {tar}."
    )
    assert tar.read_bytes() == gzip.decompress(path.read_bytes())
    assert sorted(os.listdir(tmp_path)) == sorted([tar.name, name])
    before = tar.stat()
    # A folder has it only once, and a second run reads what the first has left.
    assert (
        read_source(as_source(tmp_path))[0].pictures == rows[0].pictures and len(read_source(as_source(tmp_path))) == 2
    )
    assert (tar.stat().st_ino, tar.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert tar.stat().st_mtime_ns == path.stat().st_mtime_ns and capsys.readouterr().err == ""


def test_an_older_tar_of_the_name_is_not_written_over(tmp_path, draw):
    path = shard(tmp_path / "00000.tar.gz", captioned(draw, 1), compressed=True)
    old = shard(tmp_path / "00000.tar", captioned(draw, 2))
    os.utime(old, (1, 1))
    with pytest.raises(ValueError, match=r"00000.tar is older than 00000.tar.gz beside it: remove the one"):
        read_source(as_source(path))
    assert old.read_bytes() != gzip.decompress(path.read_bytes())


def test_compressed_tars_that_cannot_be_unpacked(tmp_path, draw, monkeypatch):
    path = shard(tmp_path / "a.tar.gz", captioned(draw, *range(200)), compressed=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match="a.tar.gz is not a whole gzip file"):
        read_source(as_source(path))
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="a.tar.gz is not a whole gzip file of a tar"):
        read_source(as_source(path))
    path = shard(tmp_path / "stair_captions_v1.2.tar.gz", {"stair_captions_v1.2_train.json": b"{}"}, compressed=True)
    with pytest.raises(
        ValueError, match="holds stair_captions_v1.2_train.json and no pictures: unpack it by `tar xzf`"
    ):
        read_source(as_source(path))
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".*"))
    path = shard(tmp_path / "b.tar.gz", captioned(draw, 1), compressed=True)

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jminigpt4.data.tar_samples.copyfileobj", full)
    with pytest.raises(
        ValueError, match=r"b.tar.gz cannot be unpacked to .*b.tar \(No space left on device\): put `gunzip"
    ):
        read_source(as_source(path))
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".*"))


def test_rows_of_other_layouts_beside_a_picture(tmp_path, draw):
    turns = [{"from": "human", "value": "色は?\n<image>"}, {"from": "gpt", "value": "赤です。"}]
    about = {
        "a": {"conversations": turns, "id": "a"},
        "b": {"question": "何匹?", "answer": 3},
        "c": {"qas": [{"question": "何?", "answer": "犬"}, {"question": "色?"}], "image_id": 7},
        "d": {"captions": ["一", "二"]},
        "e": {"caption": "", "question": "題のない絵?", "answer": "はい"},
        "f": {"width": 3},
    }
    members = {}
    for number, (key, value) in enumerate(about.items()):
        members |= {f"{key}.png": png(draw, number), f"{key}.json": json.dumps(value).encode()}
    path = shard(tmp_path / "rows.tar", members)
    bad = []
    rows = read_source(as_source(path), bad.append)
    assert rendered(rows) == ["@色は?|赤です。", "@何匹?|3", "@何?|犬", "@|一", "@|二", "@題のない絵?|はい"]
    assert rows[1].pictures[0].read() == png(draw, 1)
    assert [fault.reason for fault in bad] == [f"{path}, 'c', question 1: `answer` is missing."]


def test_ids_that_addresses_in_a_tar_tell(tmp_path, draw):
    members = {
        "0.png": png(draw, 1),
        "0.json": json.dumps(
            {"caption": "弁当", "url": "http://images.cocodataset.org/train2017/000000000009.jpg", "key": "0"}
        ).encode(),
        "1.png": png(draw, 2),
        "1.json": json.dumps(
            {"caption": "花", "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/2317429.jpg", "key": "1"}
        ).encode(),
        "2.png": png(draw, 3),
        "2.json": json.dumps({"caption": "猫", "url": "https://example.jp/9.jpg"}).encode(),
    }
    path = shard(tmp_path / "00000.tar", members)
    assert set(read_ids(path)) == {"coco:9", "vg:2317429", "00000:00000/2"}
