"""Training files of every layout against benchmarks, by id, by COCO's twins and by split."""

import json

import pytest

from jminigpt4.data.ids import canonical_id, coco_twin, read_twins
from jminigpt4.evaluate.benchmarks import parse_request, read_items
from jminigpt4.evaluate.contamination import benchmark_ids, image_ids, overlap


@pytest.mark.parametrize("spelt", [9, 9.0, "9", "9.0", "000000000009", "coco:9", "COCO_val2014_000000000009.jpg"])
def test_one_picture_has_one_id(spelt):
    assert canonical_id(spelt) == "coco:9"


def test_ids_are_spelt_as_training_spells_them():
    from jminigpt4.train.selection import canonical_id as in_training

    for spelt in (
        9,
        9.0,
        "000000000009",
        "vg:1",
        "jmmmu:validation_Math_1.1",
        "COCO_val2014_000000000009.jpg",
        "own:a.png",
    ):
        assert canonical_id(spelt) == in_training(spelt)
    assert coco_twin(float("nan")) is None and coco_twin(None) is None and coco_twin(9.0) == "coco:9"


def test_the_list_of_a_benchmark_is_what_training_excludes(vg500, tmp_path):
    from jminigpt4.train.selection import read_ids

    ids = benchmark_ids(read_items(parse_request(f"ja-vg-vqa-500={vg500}")))
    assert ids == ["coco:9", "vg:11", "vg:12"]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    assert read_ids(tmp_path / "ids.txt") == set(ids)


@pytest.fixture
def training(tmp_path, stair, visual_genome, vg500, lines):
    """Training files of all layouts, and the ids they hold."""
    llava = [
        {"id": 1, "image": "coco/train2017/000000000042.jpg", "conversations": []},
        {"id": 2, "image": "vg/VG_100K/11.jpg", "conversations": []},
        {"id": 3, "conversations": []},
    ]
    (tmp_path / "llava.json").write_text(json.dumps(llava))
    own = [
        {"images": ["a.png"], "image_id": "coco:5", "messages": []},
        {"image": "x/VG_100K_2/12.jpg", "caption": "猫"},
    ]
    (tmp_path / "list.txt").write_text("coco:1\n000000000002\nvg:3\n")
    return {
        stair: {"coco:42": "val2014", "coco:73": "val2014", "coco:99": "val2014"},
        visual_genome: {"vg:2317429": None, "vg:498335": None},
        next(vg500.rglob("*.parquet")): {"vg:11": None, "vg:12": None, "coco:9": None},
        tmp_path / "llava.json": {"coco:42": "train2017", "vg:11": None},
        lines(tmp_path / "own.jsonl", own): {"coco:5": None, "vg:12": None},
        tmp_path / "list.txt": {"coco:1": None, "coco:2": None, "vg:3": None},
    }


def test_ids_are_told_from_every_layout(training):
    for path, expected in training.items():
        assert image_ids(path) == expected, path.name


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
    (tmp_path / "empty.jsonl").write_text('{"image": "a.png", "caption": "猫"}\n')
    with pytest.raises(ValueError, match=r"No image id can be told from .*empty\.jsonl"):
        image_ids(tmp_path / "empty.jsonl")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        image_ids(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match=r"is not Visual Genome's image_data\.json"):
        read_twins(stair)
