"""Training files of every layout against benchmarks, by id, by COCO's twins and by split."""

import json

import pytest

from jminigpt4.data.id_lists import read_ids
from jminigpt4.data.ids import read_twins
from jminigpt4.evaluate.benchmarks import parse_request, read_items
from jminigpt4.evaluate.contamination import benchmark_ids, overlap


def test_the_list_of_a_benchmark_is_what_training_excludes(vg500, tmp_path):
    ids = benchmark_ids(read_items(parse_request(f"ja-vg-vqa-500={vg500}")))
    assert ids == ["coco:9", "vg:11", "vg:12"]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    assert set(read_ids(tmp_path / "ids.txt")) == set(ids)


@pytest.fixture
def training(tmp_path, stair, visual_genome, vg500, lines):
    """Training files of all layouts, and the ids they hold."""
    talk = {"conversations": [{"from": "human", "value": "何?"}, {"from": "gpt", "value": "犬"}]}
    llava = [
        {"id": 1, "image": "coco/train2017/000000000042.jpg", **talk},
        {"id": 2, "image": "vg/VG_100K/11.jpg", **talk},
        {"id": 3, **talk},
    ]
    (tmp_path / "llava.json").write_text(json.dumps(llava))
    own = [
        {"images": ["a.png"], "image_id": "coco:5", "question": "何?", "answer": "犬"},
        {"image": "b.png", "caption": "犬"},
        {"image": "x/VG_100K_2/12.jpg", "caption": "猫"},
    ]
    (tmp_path / "list.txt").write_text("coco:1\n000000000002\nvg:3\n")
    return {
        stair: {"coco:42": "val2014", "coco:73": "val2014"},  # 99 has no caption: nothing is trained on it
        visual_genome: {"vg:2317429": None, "vg:498335": None},
        next(vg500.rglob("*.parquet")): {"vg:11": None, "vg:12": None, "coco:9": None},
        tmp_path / "llava.json": {"coco:42": "train2017", "vg:11": None},
        lines(tmp_path / "own.jsonl", own): {"coco:5": None, "own:b.png": None, "vg:12": None},
        tmp_path / "list.txt": {"coco:1": None, "coco:2": None, "vg:3": None},
    }


def test_ids_are_told_from_every_layout(training):
    for path, expected in training.items():
        assert read_ids(path) == expected, path.name


def test_the_same_pictures_are_found_under_their_names_in_another_split(stair, tmp_path, training):
    found = overlap(tmp_path / "llava.json", "stair", read_items(parse_request(f"stair-captions={stair}")))
    assert (found.pictures, found.shared, found.items, found.by_twin) == (2, 1, 1, 0)
    assert found.splits == {"train2017": 1} and found.share == 50


def test_a_benchmark_that_states_its_twins_needs_no_other_list(vg500, tmp_path):
    (tmp_path / "coco.txt").write_text("9\n")
    for protocol, questions in (("sakana", 1), ("llm-jp", 2)):
        items = read_items(parse_request(f"ja-vg-vqa-500:{protocol}={vg500}"))
        found = overlap(tmp_path / "coco.txt", "vg500", items)
        assert (found.pictures, found.shared, found.by_twin, found.items) == (2, 1, 1, questions)


def test_captions_leak_through_visual_genome(stair, visual_genome, tmp_path):
    entries = [{"image_id": 498335, "coco_id": 73.0}, {"image_id": 2317429, "coco_id": None}]
    (tmp_path / "image_data.json").write_text(json.dumps(entries))
    items = read_items(parse_request(f"stair-captions={stair}"))
    assert overlap(visual_genome, "stair", items).shared == 0
    found = overlap(visual_genome, "stair", items, read_twins(tmp_path / "image_data.json"))
    assert (found.shared, found.by_twin, found.splits) == (1, 1, {"unnamed": 1})


def test_files_that_tell_nothing_are_refused(tmp_path, stair):
    (tmp_path / "empty.jsonl").write_text('{"name": "a"}\n')
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no image ids"):
        read_ids(tmp_path / "empty.jsonl")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        read_ids(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match=r"is not Visual Genome's image_data\.json"):
        read_twins(stair)
