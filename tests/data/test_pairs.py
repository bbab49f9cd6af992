"""Training and evaluation on the same file: the same ids, the same pictures, the same rows."""

import json
import os
import unicodedata
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from jminigpt4.cli import app
from jminigpt4.data.id_lists import read_ids
from jminigpt4.data.readers import DataSource, as_source, read_source
from jminigpt4.data.table import open_table
from jminigpt4.evaluate.benchmarks import parse_request, read_items
from jminigpt4.evaluate.contamination import benchmark_ids, overlap
from jminigpt4.train.inspection import inspect
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.selection import CocoTwins
from jminigpt4.train.sources import read_data

NAMES = {
    "pics/a.png": "own:pics/a.png",
    "pics/000000000009.jpg": "coco:9",
    "coco/COCO_val2014_000000000025.jpg": "coco:25",
    "data/vg/123.jpg": "vg:123",
    "gqa/images/2317429.jpg": "vg:2317429",
    "VG_100K_2/7.jpg": "vg:7",
    "other/7.jpg": "own:other/7.jpg",
}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def own(tmp_path, draw):
    """One's own file with a picture under every kind of name, and one row that gives its ids itself."""
    rows = []
    for number, name in enumerate([*NAMES, "b.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        draw(number).save(tmp_path / name, format="PNG")
        rows.append({"image": name, "question": "何?", "answer": f"犬{number}"})
    rows[-1] = {"image": "b.png", "caption": "猫\u2028です", "image_id": "mine:pics/000000000009.jpg"}
    pair = {"images": ["b.png", "pics/a.png"], "image_ids": ["coco:1", "own:pics/a.png"]}
    return write(tmp_path / "own.jsonl", [*rows, {**pair, "question": "違いは?", "answer": "色"}])


def train_ids(path, **source):
    return [each for row in read_source(DataSource(str(path), **source)) for each in row.image_ids]


def evaluate_ids(path, *images):
    return [each for item in read_items(parse_request(str(path), list(map(str, images)))) for each in item.image_ids]


def test_the_same_file_has_the_same_ids(own):
    expected = [*NAMES.values(), "mine:pics/000000000009.jpg", "coco:1", "own:pics/a.png"]
    assert train_ids(own) == evaluate_ids(own) == expected
    assert set(read_ids(own)) == set(expected)
    assert train_ids(own, name="another title") == expected


def test_a_benchmark_that_is_trained_on_is_found_whole(own, tmp_path):
    found = overlap(own, "own", read_items(parse_request(str(own))))
    assert found.shared == found.pictures == len(set(train_ids(own))) and found.items == len(NAMES) + 2
    arguments = ["evaluate", "-b", str(own), "--train-data", str(own), "-o", str(tmp_path / "out")]
    printed = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert f"{found.pictures} of {found.pictures} pictures of own (100.0 %)" in printed


def test_the_list_of_a_benchmark_finds_every_row_of_its_file(own, tmp_path, processor):
    ids = benchmark_ids(read_items(parse_request(str(own))))
    (tmp_path / "image_ids.txt").write_text("\n".join(ids))
    found = inspect(open_table(as_source(own)), processor, [str(tmp_path / "image_ids.txt")], progress=False)
    assert found.overlap == {str(tmp_path / "image_ids.txt"): found.rows} and found.unmatched == []


@pytest.mark.parametrize("name", NAMES)
def test_an_exclusion_list_drops_the_right_rows(own, tmp_path, name):
    (tmp_path / "list.txt").write_text(NAMES[name] + "\n")
    (source,) = read_data(str(own), Recipe(exclude=[str(tmp_path / "list.txt")]), CocoTwins())
    kept = {picture.path for group in source.training for picture in group.pictures}
    expected = {str(tmp_path / each) for each in [*NAMES, "b.png"] if each != name}
    assert kept == expected
    rows = sum(len(group.rows) for group in source.training)
    assert rows == len(NAMES) + 2 - (2 if name == "pics/a.png" else 1)


def test_ids_that_match_nothing_are_counted(own, tmp_path, processor, capsys):
    path = tmp_path / "list.txt"
    path.write_text("coco:9\ncoco:4\nmine:x\n")
    line = f"2 of 3 ids in {path} match no picture, the first is coco:4."
    read_data(str(own), Recipe(exclude=[str(path)]), CocoTwins())
    assert f"exclude: {line}" in capsys.readouterr().out
    items = read_items(parse_request(str(own), only=path))
    assert [item.image_ids for item in items] == [("coco:9",)]
    assert capsys.readouterr().err == f"only: {line}\n"
    found = inspect(open_table(as_source(own)), processor, [str(path)], progress=False)
    assert found.unmatched == [line] and f"  {line}" in list(found.lines()) and found.overlap[str(path)] == 1
    path.write_text("coco:9\n")
    read_data(str(own), Recipe(exclude=[str(path)]), CocoTwins())
    assert "exclude" not in capsys.readouterr().out


def test_the_key_text_is_a_caption_for_both(tmp_path, draw):
    draw(0).save(tmp_path / "a.png")
    path = write(tmp_path / "own.jsonl", [{"image": "a.png", "text": "犬"}])
    ((row,), (item,)) = read_source(as_source(path)), read_items(parse_request(str(path)))
    assert row.answer == "犬" and item.references == ("犬",) and item.fields == {}
    assert row.messages()[:-1] == item.messages


DECOMPOSED, COMPOSED = (unicodedata.normalize(form, "がぞう/ぎ.png") for form in ("NFD", "NFC"))


@pytest.mark.parametrize(
    ("on_disk", "in_file"),
    [
        ("deep/a.png", "a.png"),
        ("deep/x/a.png", "x/a.png"),
        ("x/a.png", "x\\a.png"),
        ("x/ぎ a#.png", "file://{root}/x/" + quote("ぎ a#.png")),
        ("x/a.png", "{root}/x/a.png"),
        (DECOMPOSED, COMPOSED),
        (COMPOSED, DECOMPOSED),
        (COMPOSED, "{root}/" + DECOMPOSED),
        ("val2014/COCO_val2014_000000000009.jpg", "train2017/000000000009.jpg"),
    ],
)
def test_a_picture_is_found_by_both(tmp_path, draw, on_disk, in_file):
    root, text = tmp_path / "pictures", tmp_path / "text"
    (root / on_disk).parent.mkdir(parents=True)
    text.mkdir()
    draw(0).save(root / on_disk, format="PNG")
    path = write(text / "own.jsonl", [{"image": in_file.format(root=root), "caption": "犬"}])
    (row,) = read_source(DataSource(str(path), images=[str(text), str(root)]))
    (item,) = read_items(parse_request(str(path), [str(root)]))
    for picture in (*row.pictures, *item.pictures):
        assert os.path.samefile(picture.path, root / on_disk)
    assert row.image_ids == item.image_ids


def test_a_missing_picture_is_named_by_both(tmp_path):
    path = write(tmp_path / "own.jsonl", [{"image": "x/a.png", "caption": "犬"}])
    (row,) = read_source(as_source(path))
    with pytest.raises(FileNotFoundError, match="x/a.png"):
        row.pictures[0].read()
    with pytest.raises(FileNotFoundError, match="1 of 1 pictures are not there, the first is x/a.png"):
        read_items(parse_request(str(path)))


def test_a_null_in_the_place_of_a_text_is_refused_by_both(tmp_path):
    content = [{"type": "image"}, {"type": "text", "text": None}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "犬"}]
    path = write(tmp_path / "own.jsonl", [{"image": "a.png", "messages": messages}])
    for read in (lambda: read_source(as_source(path)), lambda: read_items(parse_request(str(path)))):
        with pytest.raises(ValueError, match="own.jsonl, line 1: `messages.0.content.1`: there is no `text`"):
            read()
