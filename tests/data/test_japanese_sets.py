"""Japanese data sets in the files of their owners, from the Hub and as they are downloaded elsewhere."""

import io
import json

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Sequence, Value

from jminigpt4.data.id_lists import read_ids
from jminigpt4.data.readers import DataSource, as_source, read_source, recognised
from jminigpt4.data.rows import PICTURE


def png(draw, number) -> bytes:
    draw(number).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def cell(draw, number, path=None):
    return {"bytes": png(draw, number), "path": path}


def rendered(rows) -> list[str]:
    """Each conversation as one line, `@` for a picture."""
    return [
        "|".join("".join("@" if part is PICTURE else part for part in message.parts) for message in row.conversation)
        for row in rows
    ]


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


STAIR = {
    "image_id": Value("int64"),
    "image": Image(),
    "file_name": Value("string"),
    "coco_url": Value("string"),
    "annotations": Sequence({"annotation_id": Value("int64"), "image_id": Value("int64"), "caption": Value("string")}),
}


def stair(draw) -> Dataset:
    """shunk031/STAIR-Captions, configuration v1.2.0, which the Hub keeps as a struct of lists."""
    rows = {
        "image_id": [9, 25],
        "image": [cell(draw, 1, "COCO_train2014_000000000009.jpg"), cell(draw, 2)],
        "file_name": ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"],
        "coco_url": ["http://images.cocodataset.org/train2014/COCO_train2014_000000000009.jpg", ""],
        "annotations": [
            {"annotation_id": [1, 2], "image_id": [9, 9], "caption": ["お弁当がある", "野菜と果物"]},
            {"annotation_id": [3], "image_id": [25], "caption": ["キリンが立っている"]},
        ],
    }
    return Dataset.from_dict(rows, features=Features(STAIR))


def test_stair_captions_from_the_hub(tmp_path, draw):
    stair(draw).to_parquet(tmp_path / "train-00000-of-00028.parquet")
    assert recognised(tmp_path).name == "stair"
    rows = read_source(as_source(tmp_path))
    assert rendered(rows) == ["@|お弁当がある", "@|野菜と果物", "@|キリンが立っている"]
    assert [row.image_ids for row in rows] == [("coco:9",), ("coco:9",), ("coco:25",)]
    assert [row.pictures[0].read() for row in rows] == [png(draw, 1), png(draw, 1), png(draw, 2)]
    assert rows[0].pictures == rows[1].pictures and all(row.is_caption for row in rows)
    assert set(read_ids(tmp_path)) == {"coco:9", "coco:25"}


def test_stair_captions_without_pictures_and_as_lists_of_objects(tmp_path, draw):
    """Its columns without `image`, beside COCO's own folders, and as `datasets.List` stores annotations."""
    table = stair(draw).remove_columns("image")
    annotations = [[{"caption": caption} for caption in each["caption"]] for each in table.to_dict()["annotations"]]
    table = table.remove_columns("annotations").add_column("annotations", annotations)
    table.to_parquet(tmp_path / "stair.parquet")
    (tmp_path / "val2014").mkdir()
    draw(4).save(tmp_path / "val2014" / "COCO_val2014_000000000009.jpg", format="PNG")
    rows = read_source(as_source(tmp_path / "stair.parquet"))
    assert rendered(rows) == ["@|お弁当がある", "@|野菜と果物", "@|キリンが立っている"]
    assert rows[0].pictures[0].read() == png(draw, 4) and rows[2].image_ids == ("coco:25",)


def test_a_caption_that_is_none_is_named_with_its_place(tmp_path, draw):
    def blank(row):
        return {"annotations": row["annotations"] | {"caption": [" "] * len(row["annotations"]["caption"])}}

    broken = stair(draw).map(blank)
    broken.to_parquet(tmp_path / "stair.parquet")
    bad = []
    with pytest.raises(ValueError, match="no rows that can be used"):
        read_source(as_source(tmp_path / "stair.parquet"), bad.append)
    assert [each.place for each in bad] == ["row 0, annotation 0", "row 0, annotation 1", "row 1, annotation 0"]
    assert bad[0].reason.endswith("stair.parquet, row 0, annotation 0: an answer is empty or only white space.")


QAS = {
    "qa_id": Value("int64"),
    "question": Value("string"),
    "answer": Value("string"),
    "a_objects": List(Value("null")),
    "q_objects": List(Value("null")),
}


def vg_500(draw, numbers=(2317429, 7)) -> Dataset:
    """SakanaAI/JA-VG-VQA-500: ids in the row, none in `qas`; `coco_id` is NaN where there is none."""
    features = Features(
        {
            "image_id": Value("int64"),
            "url": Value("string"),
            "coco_id": Value("float64"),
            "image": Image(),
            "qas": List(QAS),
        }
    )
    qas = [
        [{"qa_id": n, "question": f"何{n}?", "answer": f"答え{n}", "a_objects": [], "q_objects": []} for n in range(2)]
    ] * 2
    rows = {
        "image_id": list(numbers),
        "url": ["https://cs.stanford.edu/people/rak248/VG_100K_2/2317429.jpg"] * 2,
        "coco_id": [9.0, float("nan")],
        "image": [cell(draw, 1), cell(draw, 2)],
        "qas": qas,
    }
    return Dataset.from_dict(rows, features=features)


def test_ja_vg_vqa_500_and_the_ids_that_exclude_it(tmp_path, draw):
    vg_500(draw).to_parquet(tmp_path / "ja-vg-vqa-500.parquet")
    assert recognised(tmp_path / "ja-vg-vqa-500.parquet").name == "ja-vg-vqa"
    rows = read_source(as_source(tmp_path / "ja-vg-vqa-500.parquet"))
    assert rendered(rows) == ["@何0?|答え0", "@何1?|答え1"] * 2
    assert [row.image_ids[0] for row in rows] == ["vg:2317429"] * 2 + ["vg:7"] * 2
    assert rows[3].pictures[0].read() == png(draw, 2) and rows[0].pictures == rows[1].pictures
    assert set(read_ids(tmp_path / "ja-vg-vqa-500.parquet")) == {"vg:2317429", "vg:7", "coco:9"}


def test_the_train_part_is_trained_on_and_every_part_excludes(tmp_path, draw, capsys):
    vg_500(draw, (1, 2)).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    vg_500(draw, (3, 4)).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert {row.image_ids[0] for row in read_source(as_source(tmp_path))} == {"vg:1", "vg:2"}
    said = capsys.readouterr().err
    assert said.count("test-00000-of-00001.parquet by its own path") == 1
    assert set(read_ids(tmp_path)) == {"vg:1", "vg:2", "vg:3", "vg:4", "coco:9"}
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    assert {row.image_ids[0] for row in read_source(as_source(tmp_path))} == {"vg:3", "vg:4"}


def test_ja_vg_vqa_keeps_the_seven_good_questions_of_a_picture(tmp_path, draw):
    qas = [{"qa_id": n, "image_id": 7, "question": f"何{n}?", "answer": n} for n in range(8)]
    del qas[3]["answer"]
    path = write_json(tmp_path / "question_answers.json", [{"id": 7, "qas": qas}])
    bad = []
    rows = read_source(as_source(path), bad.append)
    assert rendered(rows) == [f"@何{n}?|{n}" for n in range(8) if n != 3]  # numbers are answers
    (fault,) = bad
    assert fault.reason == f"{path}, row 0 (id 7), question 3: `answer` is missing."


def test_questions_are_joined_by_their_own_id_then_by_that_of_the_entry(tmp_path, draw):
    qa = {"question": "何?", "answer": True}
    entries = [{"id": 7, "qas": [qa | {"image_id": 8}, qa]}, {"image_id": "5", "qas": [qa]}, {"qas": [qa]}]
    path = tmp_path / "vg.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    bad = []
    rows = read_source(as_source(path), bad.append)
    assert [(row.image_ids[0], row.pictures[0].path.rpartition("/")[2]) for row in rows] == [
        ("vg:8", "8.jpg"),
        ("vg:7", "7.jpg"),
        ("vg:5", "5.jpg"),
    ]
    assert rendered(rows)[0] == "@何?|true" and bad[0].reason.endswith("line 3, question 0: `image_id` is missing.")


def test_yj_captions(tmp_path, draw):
    """yahoojapan/YJCaptions: COCO's layout."""
    images = [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 1, "width": 1}]
    captions = [{"image_id": 9, "id": 5, "caption": "お弁当"}]
    path = write_json(tmp_path / "yjcaptions26k_clean.json", {"images": images, "annotations": captions})
    assert recognised(path).name == "coco-captions" and rendered(read_source(as_source(path))) == ["@|お弁当"]
    assert set(read_ids(path)) == {"coco:9"}


def conversation(*turns, roles=("human", "gpt")):
    return [{"from": roles[n % 2], "value": turn} for n, turn in enumerate(turns)]


LLAVA_JA = {
    # turing-motors/LLaVA-Instruct-150K-JA: the Japanese text is in `jp`.
    "llava_instruct_150k_ja.json": (
        {
            "id": "000000033471",
            "image": "000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat colour?", "jp": "<image>\n何色ですか?"},
                {"from": "gpt", "value": "Red.", "jp": "赤です。"},
            ],
        },
        "@何色ですか?|赤です。",
        "coco:33471",
    ),
    # turing-motors/LLaVA-v1.5-Instruct-620K-JA.
    "llava_v1_5_instruct_620k_ja_v2.jsonl": (
        {"id": "1", "image": "vg/VG_100K/7.jpg", "conversations": conversation("<image>\n何ですか?", "花です。")},
        "@何ですか?|花です。",
        "vg:7",
    ),
    # turing-motors/LLaVA-Pretrain-JA.
    "llava_pretrain_blip_laion_cc_sbu_558k_ja.jsonl": (
        {
            "id": "004539375",
            "image": "00453/004539375.jpg",
            "conversations": conversation("画像を説明してください。\n<image>", "木の椅子"),
        },
        "@画像を説明してください。|木の椅子",
        "llava_pretrain_blip_laion_cc_sbu_558k_ja:00453/004539375.jpg",
    ),
    # llm-jp/japanese-photos-conversation, which llava-instruct-ja is like.
    "japanese_photos_conv_12k.json": (
        {
            "id": "japanese_photos_00001",
            "image": "japanese_photos_00001.jpg",
            "conversations": conversation("<image>\nどこですか?", "市街地です。", "看板は?", "「立ち呑み」です。"),
        },
        "@どこですか?|市街地です。|看板は?|「立ち呑み」です。",
        "japanese_photos_conv_12k:japanese_photos_00001.jpg",
    ),
    # llm-jp/ja-vg-vqa-conversation.
    "ja-vg-vqa_instruct_99k.json": (
        {"id": 7, "image": "VG_100K/7.jpg", "conversations": conversation("<image>\n何人?", "2人")},
        "@何人?|2人",
        "vg:7",
    ),
    # WayBob/Japanese_Photo_conversation_cleaned: LLaVA's turns under `messages`.
    "cleaned.json": (
        {
            "id": "japanese_photos_00001",
            "images": ["photo_data/japanese_photos_00001.jpg"],
            "messages": conversation("<image>\nここはどこ?", "市街地です。"),
        },
        "@ここはどこ?|市街地です。",
        "cleaned:photo_data/japanese_photos_00001.jpg",
    ),
    # toshi456/LLaVA-JP-Instruct-108K.
    "llava_jp_108k.json": (
        {
            "id": "1",
            "image": "000000000009.jpg",
            "conversations": conversation("何?\n<image>", "犬", roles=("ユーザー", "システム")),
        },
        "@何?|犬",
        "coco:9",
    ),
}


@pytest.mark.parametrize("name", LLAVA_JA)
def test_japanese_instruction_sets(tmp_path, name):
    row, expected, image_id = LLAVA_JA[name]
    path = tmp_path / name
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        write_json(path, [row])
    (read,) = read_source(as_source(path))
    assert rendered([read]) == [expected] and read.image_ids == (image_id,)
    assert set(read_ids(path)) == {image_id}


def test_a_saved_data_set_is_read_in_the_order_it_states(tmp_path, draw, capsys):
    rows = {"image": [cell(draw, n) for n in range(5)], "caption": [f"絵{n}" for n in range(5)]}
    saved = Dataset.from_dict(rows, features=Features({"image": Image(), "caption": Value("string")}))
    saved.save_to_disk(tmp_path / "saved", num_shards=2)
    assert recognised(tmp_path / "saved").name == "rows"
    read = read_source(as_source(tmp_path / "saved"))
    assert rendered(read) == [f"@|絵{n}" for n in range(5)]
    assert [row.pictures[0].read() for row in read] == [png(draw, n) for n in range(5)]
    assert len({row.image_ids for row in read}) == 5
    (arrow, _) = sorted((tmp_path / "saved").glob("*.arrow"))
    assert rendered(read_source(as_source(arrow))) == ["@|絵0", "@|絵1", "@|絵2"]
    arrow.unlink()
    with pytest.raises(ValueError, match=rf"{arrow} does not exist, but .*state.json names it: is the folder whole\?"):
        read_source(DataSource(str(tmp_path / "saved"), reader="rows"))


def test_of_a_saved_dictionary_the_train_part(tmp_path, draw, capsys):
    def part(*numbers):
        rows = {"image": [cell(draw, n) for n in numbers], "caption": [f"絵{n}" for n in numbers]}
        return Dataset.from_dict(rows, features=Features({"image": Image(), "caption": Value("string")}))

    DatasetDict({"train": part(1, 2), "validation": part(3)}).save_to_disk(tmp_path / "both")
    assert rendered(read_source(as_source(tmp_path / "both"))) == ["@|絵1", "@|絵2"]
    assert "both: its part `train` is read; validation by its own path." in capsys.readouterr().err
    assert rendered(read_source(as_source(tmp_path / "both" / "validation"))) == ["@|絵3"]
