"""Exclusion lists, twins of COCO and Visual Genome, splits by picture, caption prompts."""

import json

import numpy as np
import pytest

from jminigpt4.data.id_lists import read_ids
from jminigpt4.data.pictures import FilePicture
from jminigpt4.data.rows import caption_row, question_row
from jminigpt4.data.table import RowList
from jminigpt4.train.groups import group, split
from jminigpt4.train.prompts import JAPANESE, CaptionPrompts
from jminigpt4.train.selection import CocoTwins, not_in, rows_about


def row(image_id: str):
    return caption_row("猫", FilePicture(f"{image_id}.jpg"), image_id, "source")


@pytest.fixture
def twins(tmp_path) -> CocoTwins:
    """Visual Genome's pictures 1 and 3 are COCO's 9 and 25."""
    entries = [{"image_id": 1, "coco_id": 9.0}, {"image_id": 2, "coco_id": None}, {"image_id": 3, "coco_id": 25}]
    (tmp_path / "image_data.json").write_text(json.dumps(entries))
    return CocoTwins(tmp_path / "image_data.json")


def left(rows, ids, twins) -> list[str]:
    listed = rows_about(ids, RowList(rows), twins)
    return [each.image_ids[0] for number, each in enumerate(rows) if number not in listed]


def test_a_picture_of_an_evaluation_set_is_excluded_under_both_its_ids(tmp_path, twins):
    rows = [row("coco:9"), row("vg:1"), row("vg:2"), row("vg:3"), row("coco:25"), row("mine:9")]
    (tmp_path / "val.txt").write_text("000000000009\n")
    kept = left(rows, read_ids(tmp_path / "val.txt"), twins)
    assert kept == ["vg:2", "vg:3", "coco:25", "mine:9"]
    (tmp_path / "vg500.json").write_text(json.dumps([{"image_id": 3, "coco_id": float("nan")}]))
    kept = left(rows, read_ids(tmp_path / "vg500.json"), twins)
    assert kept == ["coco:9", "vg:1", "vg:2", "mine:9"]
    kept = left(rows, read_ids(tmp_path / "vg500.json"), CocoTwins())
    assert kept == ["coco:9", "vg:1", "vg:2", "coco:25", "mine:9"]
    assert len(left(rows, [], twins)) == 6


def test_a_hash_that_two_ids_share_excludes_one_alone(monkeypatch):
    monkeypatch.setattr("jminigpt4.data.columns.id_key", lambda image_id: 7)
    monkeypatch.setattr("jminigpt4.train.selection.id_key", lambda image_id: 7)
    assert left([row("coco:9"), row("coco:25")], ["coco:25"], CocoTwins()) == ["coco:9"]


def test_an_id_matches_by_its_twin_too(twins):
    tables = [RowList([row("coco:9"), row("vg:3")]), RowList([row("mine:9")])]
    assert not_in(["vg:1", "coco:25", "mine:9", "vg:2", "coco:7"], tables, twins) == ["vg:2", "coco:7"]


def test_ids_are_read_from_what_benchmarks_publish(tmp_path):
    from datasets import Dataset

    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"id": 9}, {"id": 25}], "annotations": []}))
    (tmp_path / "rows.jsonl").write_text('{"image_id": "coco:9"}\n{"image_id": 25}\n')
    Dataset.from_dict({"image_id": [1, 2], "coco_id": [9.0, None]}).to_parquet(tmp_path / "vg500.parquet")
    assert (
        read_ids(tmp_path / "coco.json") == read_ids(tmp_path / "rows.jsonl") == dict.fromkeys(("coco:9", "coco:25"))
    )
    assert read_ids(tmp_path / "vg500.parquet") == dict.fromkeys(("vg:1", "vg:2", "coco:9"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="no image ids"):
        read_ids(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_ids(tmp_path / "absent.txt")


def test_a_split_never_parts_a_picture_or_its_twin(twins):
    rows = [row(f"coco:{number}") for number in range(400) for _ in range(2)]
    rows += [question_row("何?", "犬", FilePicture(f"{number}.jpg"), f"vg:{number}", "vg") for number in (1, 2, 3)]

    def halves(rows, share):
        return split(group(RowList(rows), np.empty(0, np.int64), twins, rows_per_picture=1), share)

    training, validation = halves(rows, 0.25)
    sides = [{twins.identity(each.image_ids[0]) for each in side} for side in (training, validation)]
    assert not sides[0] & sides[1]
    assert len(training) + len(validation) == 803
    assert 0.2 < len(validation) / (len(training) + len(validation)) < 0.3
    again = halves(rows[100:], 0.25)[1]
    assert {each.image_ids for each in again} <= {each.image_ids for each in validation}
    assert len(halves(rows, 0.0)[1]) == 0


def test_caption_prompts_are_drawn_with_their_probability_and_only_asked_of_captions():
    prompts = CaptionPrompts("japanese", 0.25, seed=1)
    drawn = [prompts.choose(0, 0, group) for group in range(400)]
    assert 0.2 < sum(bool(each) for each in drawn) / 400 < 0.3
    assert set(drawn) == {"", *JAPANESE}
    assert drawn == [CaptionPrompts("japanese", 0.25, seed=1).choose(0, 0, group) for group in range(400)]
    assert drawn != [prompts.choose(1, 0, group) for group in range(400)]
    assert CaptionPrompts().choose(0, 0, 3) == "" and CaptionPrompts(["何?"]).choose(0, 0, 3) == "何?"
    caption = row("coco:1").messages("何?")
    assert caption[0]["content"] == [{"type": "image"}, {"type": "text", "text": "何?"}]
    asked = question_row("色は?", "赤", FilePicture("a.jpg"), "vg:1", "vg").messages("何?")
    assert asked[0]["content"] == [{"type": "image"}, {"type": "text", "text": "色は?"}]
    with pytest.raises(ValueError, match="japanese"):
        CaptionPrompts("german")
    with pytest.raises(ValueError, match="between 0 and 1"):
        CaptionPrompts("japanese", 1.5)
