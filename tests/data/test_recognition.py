"""One example of every layout and container: known by exactly one reader, and read by it alone."""

import copy
import io
import json
import os
import random
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value
from typer.testing import CliRunner

from jminigpt4.cli import app
from jminigpt4.data.containers import CONTAINERS, container_of
from jminigpt4.data.freshness import Origin
from jminigpt4.data.readers import READERS, as_source, read_source, recognised
from jminigpt4.data.recognition import best, seen_keys

CAPTION, QUESTION = {"image": "a.png", "caption": "犬がいる"}, {"image": "a.png", "question": "何?", "answer": "犬"}
TURNS = [{"from": "human", "value": "<image>\n何?"}, {"from": "gpt", "value": "犬"}]
ADDRESS = {"url": "https://example.jp/a.jpg", "caption": "犬がいる"}


def png(draw, number=1) -> bytes:
    draw(number).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def as_json(value):
    def write(path, draw):
        path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    return write


def as_lines(*rows):
    def write(path, draw):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    return write


def as_text(text):
    def write(path, draw):
        path.write_text(text, encoding="utf-8")

    return write


def as_table(row):
    def write(path, draw):
        pq.write_table(pa.Table.from_pylist([row]), path)

    return write


def in_folder(name, write):
    def write_folder(path, draw):
        (path / name).parent.mkdir(parents=True)
        write(path / name, draw)

    return write_folder


def as_saved(path, draw):
    rows = {"image": [{"bytes": png(draw), "path": None}], "caption": ["犬がいる"]}
    Dataset.from_dict(rows, features=Features({"image": Image(), "caption": Value("string")})).save_to_disk(path)


def as_tar(mode):
    def write(path, draw):
        with tarfile.open(path, mode) as tar:
            for name, content in (("0.png", png(draw)), ("0.txt", "犬がいる".encode())):
                (member := tarfile.TarInfo(name)).size = len(content)
                tar.addfile(member, io.BytesIO(content))

    return write


def as_downloads(path, draw):
    (path / "00000").mkdir(parents=True)
    (path / "00000" / "000000000.jpg").write_bytes(png(draw))
    as_table(ADDRESS | {"key": "000000000", "status": "success"})(path / "00000.parquet", draw)


COCO = {"images": [{"id": 9, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "犬がいる"}]}
STAIR = {"image_id": 9, "file_name": "COCO_val2014_000000000009.jpg", "annotations": [{"caption": "犬がいる"}]}
VQA = {"id": 7, "qas": [{"qa_id": 1, "image_id": 7, "question": "何?", "answer": "犬"}]}
# Name of a file or folder: its reader, its container ("" where the reader reads the file itself), what writes it.
EXAMPLES = {
    "stair.json": ("coco-captions", "", as_json(COCO)),
    "filter_cap.json": ("minigpt4-align", "", as_json({"annotations": [{"image_id": "2", "caption": "a cat"}]})),
    "stair.parquet": ("stair", "parquet", as_table(STAIR)),
    "stair.jsonl": ("stair", "lines", as_lines(STAIR)),
    "question_answers.json": ("ja-vg-vqa", "array", as_json([VQA])),
    "ja-vg-vqa-500.parquet": ("ja-vg-vqa", "parquet", as_table(VQA | {"url": "https://example.jp/7.jpg"})),
    "llava.json": ("llava", "array", as_json([{"id": "a", "image": "a.png", "conversations": TURNS}])),
    "llava.parquet": ("llava", "parquet", as_table({"id": "a", "image": "a.png", "conversations": TURNS})),
    "own.json": ("rows", "array", as_json([CAPTION, QUESTION])),
    "own.jsonl": ("rows", "lines", as_lines(CAPTION, QUESTION)),
    "own.csv": ("rows", "csv", as_text("image,caption\na.png,犬がいる\n")),
    "own.tsv": ("rows", "csv", as_text("image\tquestion\tanswer\na.png\t何?\t犬\n")),
    "own.parquet": ("rows", "parquet", as_table(CAPTION)),
    "hub": ("rows", "parquet", in_folder("data/train-00000-of-00001.parquet", as_table(CAPTION))),
    "saved": ("rows", "saved", as_saved),
    "pictures": ("rows", "imagefolder", in_folder("metadata.csv", as_text("file_name,text\na.png,犬がいる\n"))),
    "parts": (
        "rows",
        "imagefolder",
        in_folder("train/metadata.jsonl", as_lines({"file_name": "a.png", "text": "犬"})),
    ),
    "several": ("rows", "imagefolder", in_folder("metadata.parquet", as_table({"file_name": "a.png", "text": "犬"}))),
    "metadata.csv": ("rows", "imagefolder", as_text("file_name,text\na.png,犬がいる\n")),
    "downloads": ("rows", "img2dataset", as_downloads),
    "00000.tar": ("webdataset", "", as_tar("w")),
    "00001.tar.gz": ("webdataset", "", as_tar("w:gz")),
    "shards": ("webdataset", "", in_folder("00000.tar", as_tar("w"))),
    "waon.parquet": ("addresses", "parquet", as_table(ADDRESS | {"page_url": "https://example.jp", "phash": "f0"})),
    "dejima.jsonl": ("addresses", "lines", as_lines(ADDRESS | {"url": "https://example.jp/b.jpg"})),
    "laion.csv": ("addresses", "csv", as_text("URL,TEXT\nhttps://example.jp/a.jpg,犬\n")),
}


@pytest.fixture
def example(tmp_path, draw):
    def written(name):
        path = tmp_path / name
        EXAMPLES[name][2](path, draw)
        return path

    return written


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_known_by_one_reader(example, name):
    reader, container, _ = EXAMPLES[name]
    path = example(name)
    assert recognised(path).name == reader
    of_files = [each.name for each in READERS.values() if each.recognises is not None and each.recognises(path)]
    keys = seen_keys(path)
    claims = [(each.name, len(form)) for each in READERS.values() for form in each.keys if form and form <= keys]
    if container and reader != "addresses":
        assert of_files == []
        most = max(size for _, size in claims)
        assert {each for each, size in claims if size == most} == {reader} == {best(keys, forms())}
    else:
        assert of_files == [reader]
    assert (container_of(path).name if container else "") == container
    if reader != "addresses":
        rows = read_source(as_source(path))
        assert all(row.answer in {"犬がいる", "犬", "a cat"} for row in rows) and rows


def forms():
    return [(each.name, each.keys) for each in READERS.values()]


@pytest.mark.parametrize("name", EXAMPLES)
def test_where_several_containers_hold_a_path_the_first_by_name_is_meant(example, name):
    path = example(name)
    holders = sorted(each.name for each in CONTAINERS.values() if each.holds(path))
    meant = EXAMPLES[name][1]
    if meant in ("imagefolder", "img2dataset"):  # which read their tables by the others
        assert holders in ([meant], [meant, "lines"], [meant, "parquet"])
    elif meant:
        assert holders == [meant]


def test_data_shows_three_rows_of_each(example, draw):
    names = ["stair.jsonl", "question_answers.json", "own.csv", "saved", "pictures", "00000.tar"]
    paths = [example(name) for name in names]
    draw(1).save(paths[0].parent / "a.png")
    result = CliRunner().invoke(app, ["data", *map(str, paths)], catch_exceptions=False)
    assert result.stdout.count("犬がいる") >= 5 and result.stdout.count("rows about 1 pictures") == len(names)


FOREIGN = [None, True, 0, -1, 2.5, 10**30, "", " ", "<image>", "\0", "a" * 500, [], {}, [[]], ["a.png"] * 2]
FOREIGN += [{"type": "image"}, {"a": {"b": []}}, [None], [3], "../../etc/passwd", "\u2028"]
MUTATED = {
    "stair.jsonl": STAIR,
    "stair-lists.jsonl": STAIR | {"annotations": {"caption": ["犬", "猫"], "annotation_id": [1, 2]}},
    "vqa.jsonl": VQA | {"coco_id": 9.0},
    "captions.jsonl": {"image": "a.png", "captions": ["犬", "猫"]},
    "metadata.jsonl": {"file_name": "a.png", "after_file_names": ["b.png"], "text": "犬"},
    "addresses.jsonl": ADDRESS,
}


def mutated(value, generator):
    """A value with something else, or nothing, at one place."""
    value = copy.deepcopy(value)
    places, stack = [], [value]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        places += [(holder, key) for key in keys]
        stack += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    holder, key = generator.choice(places)
    if generator.random() < 0.15:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(generator.choice(FOREIGN))
    return value


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_rows_are_read_or_named(tmp_path, name):
    """100 of each: nothing but rows and sentences with file and place."""
    generator, path, read = random.Random(name), tmp_path / name, 0
    reader = {"addresses.jsonl": "addresses", "vqa.jsonl": "ja-vg-vqa"}.get(name, "rows")
    reader = "stair" if name.startswith("stair") else reader
    for _ in range(100):
        rows = [MUTATED[name], mutated(MUTATED[name], generator)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        bad = []
        try:
            read += len(read_source(as_source({"path": str(path), "reader": reader}), bad.append))
        except ValueError as error:
            assert name == "addresses.jsonl" and "nothing is fetched from here" in str(error), error
        for fault in bad:
            assert fault.reason.startswith(f"{path}, line 2") and "\n" not in fault.reason
    assert read >= 100 or name == "addresses.jsonl"


def again(path, **given):
    """Fingerprints of a source's table of rows."""
    return Origin.of(as_source({"path": str(path), **given})).fingerprint


@pytest.mark.parametrize("name", ["hub", "saved", "pictures", "parts", "several", "downloads", "shards", "own.csv"])
def test_a_table_of_rows_is_made_anew_when_what_holds_them_changes(example, name):
    path = example(name)
    before = again(path)
    assert again(path) == before
    for file in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file()):
        if file.suffix in (".jpg", ".png"):
            continue
        if file.name == "dataset_info.json":
            continue
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert again(path) != before, file
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert again(path) == before


def test_unpacking_a_tar_is_no_change_and_more_downloads_are_one(example, tmp_path, draw):
    shard = example("00001.tar.gz")
    before, alone = again(tmp_path), again(shard)
    read_source(as_source(shard))
    assert (tmp_path / "00001.tar").is_file() and (again(tmp_path), again(shard)) == (before, alone)
    table = tmp_path / "waon.jsonl"
    as_lines(ADDRESS)(table, draw)
    (tmp_path / "downloads").mkdir()
    before = again(table, images=str(tmp_path / "downloads"))
    as_table(ADDRESS | {"key": "000000000", "status": "success"})(tmp_path / "downloads" / "00000.parquet", draw)
    assert again(table, images=str(tmp_path / "downloads")) != before
