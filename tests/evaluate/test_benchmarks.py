"""Every benchmark is read from the layout its owners publish; what is wrong with a file is said in one sentence."""

import io
import json

import pytest
from PIL import Image

from jminigpt4.evaluate.benchmarks import BENCHMARKS, parse_request, read_items


def read(text: str, *images, **options):
    return read_items(parse_request(text, [str(each) for each in images], **options))


def opens(picture) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture.read())).size


def test_stair_captions_are_gathered_by_picture(stair):
    items = read(f"stair-captions={stair}")
    assert [(item.id, item.image_ids) for item in items] == [("42", ("coco:42",)), ("73", ("coco:73",))]
    assert items[0].references == ("白い猫がソファーの上で寝ている", "ソファーで猫が眠っている", "白い猫が寝ている")
    assert items[0].messages == [{"role": "user", "content": [{"type": "image"}]}]
    assert opens(items[1].pictures[0]) == (32, 24)


def test_captions_are_asked_with_a_prompt_and_cut_to_wanted_ids(stair, tmp_path):
    wanted = tmp_path / "ids.txt"
    wanted.write_text("000000000073\n")
    (item,) = read(f"yj-captions={stair}", prompt="説明して", only=wanted)
    assert item.id == "73" and item.question == "説明して"


def test_coco_2017_names_are_found_too(stair, tmp_path):
    pictures = tmp_path / "elsewhere" / "val2017"
    pictures.mkdir(parents=True)
    for old in (stair.parent / "val2014").iterdir():
        old.rename(pictures / old.name.rpartition("_")[2])
    assert read(f"stair-captions={stair}", pictures.parent)[0].pictures[0].name.endswith("val2017/000000000042.jpg")


@pytest.mark.parametrize(("protocol", "ids"), [("sakana", ["1", "3"]), ("llm-jp", ["1", "2", "3", "4"])])
def test_visual_genome_asks_the_first_question_or_all(visual_genome, protocol, ids):
    items = read(f"ja-vg-vqa:{protocol}={visual_genome}")
    assert [item.id for item in items] == ids
    assert items[0].question == "何色ですか?" and items[0].references == ("赤",)
    assert items[0].image_ids == ("vg:2317429",) and items[-1].image_ids == ("vg:498335",)
    assert len({item.pictures for item in items}) == 2


@pytest.mark.parametrize(("protocol", "ids"), [("sakana", ["101", "103"]), ("llm-jp", ["101", "102", "103", "104"])])
def test_ja_vg_vqa_500_keeps_coco_ids_that_are_numbers(vg500, protocol, ids):
    items = read(f"ja-vg-vqa-500:{protocol}={vg500}")
    assert [item.id for item in items] == ids
    assert items[0].details == {"coco_id": "coco:9"} and items[-1].details == {}


def test_wild_bench_knows_that_two_rows_have_one_picture(wild):
    items = read(f"ja-vlm-bench-in-the-wild={wild}")
    assert [item.id for item in items] == ["0", "1", "2"]
    assert items[0].pictures == items[1].pictures != items[2].pictures
    assert items[0].cluster == items[1].cluster != items[2].cluster


def test_heron_bench_joins_questions_contexts_and_answers(heron):
    items = read(f"heron-bench={heron}")
    assert [item.fields["category"] for item in items] == ["conv", "detail", "complex", "conv"]
    assert items[2].details == {"context": "2羽の鳥の絵です。", "gpt4_answer": "答え2", "image": "002.jpg"}
    assert items[0].references == ()


def test_heron_bench_is_read_from_llm_jps_parquet_too(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "PNG")
    row = {"question_id": 5, "image": {"bytes": content.getvalue(), "path": "x"}, "category": "detail", "text": "?"}
    row |= {"context": "赤い。", "answer": {"gpt-4-0125-preview": "赤です。"}, "image_category": "art"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train-00000.parquet")
    (item,) = read(f"heron-bench={tmp_path}")
    assert item.id == "5" and item.details["gpt4_answer"] == "赤です。"


def test_jmmmu_shows_the_pictures_that_question_and_options_mention(jmmmu):
    art, free, choice = read(f"jmmmu={jmmmu}")
    assert len(art.pictures) == 3  # the fourth is in the file, but nobody mentions it
    assert art.details["options"] == ["自由の女神", "富士山", "東京塔", "<image 3>"]
    assert art.question.startswith("と") and "A. 自由の女神\nB. 富士山\nC. 東京塔\nD. \n\n与えられた" in art.question
    assert [part["type"] for part in art.messages[0]["content"]] == ["image", "image", "image", "text"]
    assert art.fields == {"subject": "Japanese_Art", "culture": "specific"}
    assert free.details["options"] is None and free.question.endswith("短いフレーズで記入してください。")
    assert len(choice.pictures) == 1 and choice.fields == {"subject": "Math", "culture": "agnostic"}


def test_own_messages_end_with_the_right_answer(own):
    items = read(str(own))
    assert len(items) == 12 and parse_request(str(own)).title == "held_out"
    assert items[0].references == ("犬が写っています。",) and items[0].question == "何が写ってる?"
    assert items[0].fields == {"category": "name", "artist": "openmoji"}
    assert items[0].image_ids == ("held_out:drawings/0.png",)


def test_own_lines_may_be_short_and_have_several_references(tmp_path, lines, own):
    rows = [
        {"image": "drawings/0.png", "question": "何?", "answer": "犬", "references": ["いぬ"], "image_id": "coco:9"},
        {"image": "drawings/1.png", "caption": "猫がいます。"},
        {"messages": [{"role": "user", "content": "こんにちは"}], "references": ["はい"]},
    ]
    question, caption, chat = read(str(lines(tmp_path / "short.jsonl", rows)))
    assert question.references == ("犬", "いぬ") and question.image_ids == ("coco:9",)
    assert caption.question == "" and caption.references == ("猫がいます。",)
    assert chat.pictures == () and chat.cluster == "3"


def test_own_conversations_keep_their_earlier_turns(tmp_path, lines, own):
    messages = [
        {"role": "user", "content": "何が写ってる?"},
        {"role": "assistant", "content": "犬です。"},
        {"role": "user", "content": "何色?"},
        {"role": "assistant", "content": "赤です。"},
    ]
    (item,) = read(str(lines(tmp_path / "long.jsonl", [{"images": ["drawings/0.png"], "messages": messages}])))
    assert item.messages[0]["content"][0] == {"type": "image"}
    assert [message["role"] for message in item.messages] == ["user", "assistant", "user"]
    assert item.references == ("赤です。",)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "drawings/0.png", "question": "何?"}, r"line 1: `answer` is missing"),
        (
            {"images": ["drawings/0.png"], "messages": [{"role": "user", "content": "?"}]},
            "line 1: there is no right answer",
        ),
        ({"image": "drawings/9.png", "caption": "猫"}, "1 of 1 pictures are not there, the first is drawings/9.png"),
        ({"image": "drawings/0.png", "caption": "猫", "image_ids": ["a", "b"]}, "line 1: 1 pictures but 2 image ids"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, own, row, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read(str(lines(tmp_path / "wrong.jsonl", [row])))


WRONG = [None, 3, True, ["犬"], {"a": 1}]


@pytest.mark.parametrize("value", WRONG, ids=map(repr, WRONG))
@pytest.mark.parametrize("key", ["question", "answer", "references", "messages", "caption", "id", "image"])
def test_a_wrong_type_is_named_before_anything_is_generated(tmp_path, lines, own, key, value):
    """Numbers and booleans are right answers, a list of texts is a list of references, and one caption may be one."""
    row = {"image": "drawings/0.png", "question": "何?", "answer": "犬"}
    row |= {"messages": [{"role": "user", "content": "?"}]} if key == "references" else {}
    row = {"image": row["image"], key: value} if key in ("messages", "caption") else {**row, key: value}
    path = lines(tmp_path / "wrong.jsonl", [row])
    if (key, value) in [
        ("answer", 3),
        ("answer", True),
        ("references", ["犬"]),
        ("caption", ["犬"]),
        ("id", 3),
        ("id", None),
        ("image", None),
    ]:
        (item,) = read(str(path))
        assert item.references == ({3: "3", True: "true"}[value] if key == "answer" else "犬",)
    else:
        missing = r"1 of 1 pictures are not there, the first is 犬" if (key, value) == ("image", ["犬"]) else "line 1"
        with pytest.raises((ValueError, FileNotFoundError), match=missing):
            read(str(path))


@pytest.mark.parametrize("value", WRONG, ids=map(repr, WRONG))
def test_a_wrong_type_in_the_owners_files_is_named(tmp_path, value, stair, visual_genome, heron, lines):
    content = json.loads(stair.read_text())
    content["annotations"][1]["caption"] = value
    stair.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"val\.json, annotation 1: `caption` must be a valid string, got"):
        read(f"stair-captions={stair}")
    entries = json.loads(visual_genome.read_text())
    entries[1]["qas"][0]["question"] = value
    visual_genome.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"answers\.json, entry 1: `qas\.0\.question` must be a valid string, got"):
        read(f"ja-vg-vqa={visual_genome}")
    lines(heron / "answers_gpt4.jsonl", [{"question_id": 0, "text": value}])
    with pytest.raises(ValueError, match=r"answers_gpt4\.jsonl, line 1: `text` must be a valid string, got"):
        read(f"heron-bench={heron}")


def test_wrong_types_in_parquet_are_named(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture = {"bytes": b"x", "path": "x"}
    rows = [
        ({"image": [picture], "question": [3], "answer": ["犬"]}, "row 0: `question` must be a valid string, got 3"),
        ({"image": [picture, None], "question": ["?"] * 2, "answer": ["犬"] * 2}, "row 1: `image` must be"),
        ({"image": ["a.png"], "question": ["?"], "answer": ["犬"]}, "row 0: `image` must be"),
    ]
    for columns, said in rows:
        pq.write_table(pa.table(columns), tmp_path / "test.parquet")
        with pytest.raises(ValueError, match=rf"test\.parquet, {said}"):
            read(f"ja-vlm-bench-in-the-wild={tmp_path / 'test.parquet'}")
    (tmp_path / "test.parquet").write_bytes((tmp_path / "test.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"test\.parquet cannot be read as Parquet"):
        read(f"ja-vlm-bench-in-the-wild={tmp_path / 'test.parquet'}")


@pytest.mark.parametrize(
    "text",
    ["nofile.jsonl", "data/nofile.jsonl", "own=data/nofile", "jmmmu=tests/nofile", "jmmmu=data/a.parquet", "jmmmu=no"],
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        parse_request(text)
    assert parse_request("jmmmu=someone/JMMMU").path.as_posix() == "someone/JMMMU"


@pytest.mark.parametrize("name", ["stair-captions", "ja-vg-vqa"])
def test_another_layout_is_refused(tmp_path, name):
    (tmp_path / "other.json").write_text(json.dumps([{"x": 1}]))
    with pytest.raises(ValueError, match=r"other\.json(, entry 0: `id` is missing| is not)"):
        read(f"{name}={tmp_path / 'other.json'}")


def test_missing_columns_and_missing_files_are_named(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with pytest.raises(FileNotFoundError, match=r"holds no test\*\.parquet"):
        read(f"jmmmu={tmp_path}")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="lacks the columns answer, image, question"):
        read(f"ja-vlm-bench-in-the-wild={tmp_path / 'test.parquet'}")


def test_missing_pictures_are_counted_before_anything_is_asked(stair):
    (stair.parent / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 pictures are not there, the first is COCO_val2014_0+42\.jpg"):
        read(f"stair-captions={stair}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("coco", "There is no benchmark 'coco': choose one of stair-captions"),
        ("ja-vg-vqa-500:english", "has no protocol 'english'; it has sakana, llm-jp"),
        ("jmmmu:sakana", "has no protocol 'sakana'; it has none"),
        ("stair-captions", "not read from the Hub: name its file"),
        ("stair-captions=./nowhere.json", "nowhere.json does not exist"),
    ],
)
def test_a_wrong_request_names_what_there_is(text, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        parse_request(text)


def test_protocols_have_their_own_titles():
    titles = [parse_request(f"ja-vg-vqa-500:{each}").title for each in BENCHMARKS["ja-vg-vqa-500"].protocols]
    assert titles == ["ja-vg-vqa-500-sakana", "ja-vg-vqa-500-llm-jp"]
