"""Layouts of rows as their owners document them: which reader knows them, and what is learnt from them."""

import base64
import copy
import io
import json
import random

import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from jminigpt4.cli import app
from jminigpt4.data import encoded as encoded_pictures
from jminigpt4.data.readers import READERS, DataSource, as_source, detect, read_source
from jminigpt4.data.recognition import best, seen_keys
from jminigpt4.data.rows import PICTURE
from jminigpt4.data.table import open_table
from jminigpt4.data.trl_datasets import preference_dataset, read_preferences

NAMES = ("a.png", "b.png", "coco/train2017/000000000009.jpg", "gqa/images/2.jpg")
NAMES += ("ocr_vqa/images/1593.jpg", "textvqa/train_images/e5a.jpg", "vg/VG_100K/7.jpg")


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, each of another colour."""
    for number, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (8, 8), (30 * number, 0, 0)).save(path, format="PNG")
    return tmp_path


def content(name, folder) -> bytes:
    return (folder / name).read_bytes()


def rendered(row) -> str:
    """The conversation in one line: `@` is a picture, and the first letter of other roles than these two is said."""
    marks = {"user": "", "assistant": "", "system": "s:"}
    return "|".join(
        marks[message.role] + "".join("@" if part is PICTURE else part for part in message.parts)
        for message in row.conversation
    )


def chat(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def shared(*texts):
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def parts(*content):
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "猫です"}]


TEXT = {"type": "text", "text": "何?"}
ENCODED = "data:image/png;base64," + base64.b64encode(b"\x89PNG no more than its first bytes, twice over").decode()

# Name of the example: the reader that knows it, its rows, what they say, and the names of all their pictures.
EXAMPLES = {
    "ms-swift: messages": (
        "rows",
        [
            {"messages": chat("<image><image>違いは?", "色です"), "images": ["a.png", "b.png"]},
            {
                "messages": [{"role": "system", "content": "親切に"}, *chat("<image>は何で、<image>は?", "猫と犬")],
                "images": list(NAMES[:2]),
            },
            {"messages": chat("やあ", "はい")},
        ],
        ["@@違いは?|色です", "s:親切に|@は何で、@は?|猫と犬", "やあ|はい"],
        ["a.png", "b.png"] * 2,
    ),
    "ms-swift: query and response": (
        "instructions",
        [
            {
                "system": "親切に",
                "query": "<image>色は?",
                "response": "赤",
                "history": [["何?", "車"]],
                "images": ["a.png"],
            }
        ],
        ["s:親切に|何?|車|@色は?|赤"],
        ["a.png"],
    ),
    "ms-swift: alpaca": (
        "instructions",
        [{"system": "", "instruction": "訳せ", "input": "cat", "output": "猫"}],
        ["訳せ\ncat|猫"],
        [],
    ),
    "ms-swift: conversation": (
        "sharegpt",
        [
            {
                "system": "親切に",
                "conversation": [{"human": "犬?", "assistant": "いいえ"}, {"human": "猫?", "assistant": "はい"}],
            }
        ],
        ["s:親切に|犬?|いいえ|猫?|はい"],
        [],
    ),
    "LLaMA-Factory: mllm_demo": (
        "rows",
        [
            {
                "messages": [
                    {"content": "<image>誰?", "role": "user"},
                    {"content": "選手", "role": "assistant"},
                    {"content": "何をしている?<image>", "role": "user"},
                    {"content": "喜んでいる", "role": "assistant"},
                ],
                "images": ["a.png", "a.png"],
            }
        ],
        ["@誰?|選手|何をしている?@|喜んでいる"],
        ["a.png", "a.png"],
    ),
    "LLaMA-Factory: sharegpt": (
        "sharegpt",
        [
            {"conversations": shared("こんにちは", "はい")},
            {
                "conversations": shared("前に<image>、後に<image>。違いは?", "色"),
                "images": ["a.png", "b.png"],
                "system": "短く",
            },
        ],
        ["こんにちは|はい", "s:短く|前に@、後に@。違いは?|色"],
        ["a.png", "b.png"],
    ),
    "LLaMA-Factory: alpaca with pictures": (
        "instructions",
        [{"instruction": "<image>説明して", "input": "", "output": 3, "history": [], "images": ["b.png"]}],
        ["@説明して|3"],
        ["b.png"],
    ),
    "LLaMA-Factory v1": (
        "rows",
        [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "value": "これは"}, {"type": "image_url", "value": "a.png"}],
                        "loss_weight": 0.0,
                    },
                    {"role": "assistant", "content": [{"type": "text", "value": "車"}], "loss_weight": 1.0},
                ]
            }
        ],
        ["これは@|車"],
        ["a.png"],
    ),
    "TRL: prompt and completion": ("trl", [{"prompt": "空は", "completion": " 青い。"}], ["空は|青い。"], []),
    "TRL: conversational with pictures": (
        "trl",
        [
            {
                "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "空は何色?"}]}],
                "completion": [{"role": "assistant", "content": [{"type": "text", "text": "青"}]}],
                "images": ["a.png"],
            },
            {"prompt": chat("首都は?"), "completion": [{"role": "assistant", "content": "パリ"}], "images": []},
        ],
        ["@空は何色?|青", "首都は?|パリ"],
        ["a.png"],
    ),
    "TRL: messages and image": (
        "rows",
        [{"messages": chat("何?", "猫"), "image": "a.png"}],
        ["@何?|猫"],
        ["a.png"],
    ),
    "TRL: unpaired preference": (
        "trl",
        [{"prompt": "空は", "completion": "青", "label": True}],
        ["空は|青"],
        [],
    ),
    "TRL: preference": (
        "preferences",
        [{"prompt": chat("何?"), "chosen": chat("", "猫")[1:], "rejected": chat("", "犬")[1:], "images": ["a.png"]}],
        ["@何?|猫"],
        ["a.png"],
    ),
    "TRL: preference with implicit prompt": (
        "preferences",
        [{"chosen": chat("何色?", "青"), "rejected": chat("何色?", "緑")}],
        ["何色?|青"],
        [],
    ),
    "LLaMA-Factory: preference": (
        "preferences",
        [
            {
                "conversations": shared("<image>何?"),
                "chosen": {"from": "gpt", "value": "猫"},
                "rejected": {"from": "gpt", "value": "犬"},
                "images": ["b.png"],
            }
        ],
        ["@何?|猫"],
        ["b.png"],
    ),
    "LLaMA-Factory: alpaca preference": (
        "preferences",
        [{"instruction": "訳せ", "input": "cat", "chosen": "猫", "rejected": "犬"}],
        ["訳せ\ncat|猫"],
        [],
    ),
    "ms-swift: preference": (
        "preferences",
        [{"messages": chat("<image>何?", "猫"), "images": ["a.png"], "rejected_response": "知りません"}],
        ["@何?|猫"],
        ["a.png"],
    ),
    "FineVision": (
        "finevision",
        [
            {
                "images": ["a.png", "b.png"],
                "texts": [{"user": "違いは?", "assistant": "色"}, {"user": "同じ?", "assistant": "形"}],
                "source": "mine",
                "relevance_ratings": [5, 4],
                "relevance_min": 4,
            },
            {"images": [], "texts": [{"user": "1+1?", "assistant": "2"}], "source": "mine"},
        ],
        ["@@違いは?|色|同じ?|形", "1+1?|2"],
        ["a.png", "b.png"],
    ),
    "The Cauldron": (
        "finevision",
        [{"images": ["a.png"], "texts": [{"user": "何?", "assistant": "図", "source": "AI2D"}]}],
        ["@何?|図"],
        ["a.png"],
    ),
    "LLaVA": (
        "llava",
        [
            {
                "id": "000000000009",
                "image": "coco/train2017/000000000009.jpg",
                "conversations": shared("これは?\n<image>", "弁当"),
            },
            {"id": 2, "image": "gqa/images/2.jpg", "conversations": shared("<image>\n何?", "車", "何色?", "赤")},
            {"id": "o", "image": "ocr_vqa/images/1593.jpg", "conversations": shared("<image>\n題名は?", "雪国")},
            {"id": "t", "image": "textvqa/train_images/e5a.jpg", "conversations": shared("<image>\n何と?", "止")},
            {"id": "v", "image": "vg/VG_100K/7.jpg", "conversations": shared("<image>\n何?", "木")},
            {"id": "c", "model": "", "conversations": shared("やあ", "はい")},
        ],
        ["@これは?|弁当", "@何?|車|何色?|赤", "@題名は?|雪国", "@何と?|止", "@何?|木", "やあ|はい"],
        list(NAMES[2:]),
    ),
    "LLaVA: several pictures": (
        "llava",
        [{"id": "m", "image": ["a.png", "b.png"], "conversations": shared("前<image>後<image>違いは?", "色")}],
        ["前@後@違いは?|色"],
        ["a.png", "b.png"],
    ),
    "LLaVA-OneVision": (
        "llava",
        [{"id": "1", "image": "a.png", "conversations": shared("何?\n<image>", "猫"), "data_source": "mine"}],
        ["@何?|猫"],
        ["a.png"],
    ),
    "Qwen3-VL": (
        "llava",
        [{"image": ["a.png", "b.png"], "conversations": shared("<image>\n<image>\n違いは?", "色")}],
        ["@@違いは?|色"],
        ["a.png", "b.png"],
    ),
    "Qwen2-VL: parts": (
        "rows",
        [
            {"messages": parts({"type": "image", "image": "file:///FOLDER/a.png", "resized_height": 280}, TEXT)},
            {"messages": parts({"type": "text", "text": "これと"}, {"type": "image", "image": "b.png"}, TEXT)},
        ],
        ["@何?|猫です", "これと@何?|猫です"],
        ["a.png", "b.png"],
    ),
    "Qwen-VL: parts": ("rows", [{"messages": parts({"image": "a.png"}, {"text": "何?"})}], ["@何?|猫です"], ["a.png"]),
    "Qwen-VL: conversations": (
        "llava",
        [
            {
                "id": "identity_2",
                "conversations": [
                    {"from": "user", "value": "Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nどこ?"},
                    {"from": "assistant", "value": "重慶と北京"},
                ],
            }
        ],
        ["@@どこ?|重慶と北京"],
        ["a.png", "b.png"],
    ),
    "OpenAI": (
        "rows",
        [
            {
                "messages": [
                    {"role": "system", "content": "絵を言い当てます。"},
                    {"role": "user", "content": "説明して。"},
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}],
                    },
                    {"role": "assistant", "content": "睡蓮です。", "weight": 1},
                ]
            },
            {"messages": parts(TEXT, {"type": "image_url", "image_url": {"url": ENCODED}})},
            {"messages": parts({"type": "image_url", "image_url": "b.png"}, TEXT)},
        ],
        ["s:絵を言い当てます。|説明して。|@|睡蓮です。", "何?@|猫です", "@何?|猫です"],
        ["a.png", ENCODED, "b.png"],
    ),
    "Anthropic, as ms-swift takes it": (
        "rows",
        [
            {
                "messages": parts(
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": ENCODED.partition(",")[2]},
                    },
                    TEXT,
                )
            }
        ],
        ["@何?|猫です"],
        [ENCODED],
    ),
    "one's own": (
        "rows",
        [
            {"image": "a.png", "caption": "車", "image_id": 9},
            {"image": "b.png", "question": "犬?", "answer": True},
            {"file_names": ["a.png", "b.png"], "text": "二枚"},
            {"image": "a.png", "caption": ["赤い車", "車"]},
        ],
        ["@|車", "@犬?|true", "@@|二枚", "@|赤い車", "@|車"],
        ["a.png", "b.png", "a.png", "b.png", "a.png", "a.png"],
    ),
}


def stored(rows, folder):
    """Rows with the folder where they name it."""
    return json.loads(json.dumps(rows).replace("FOLDER", str(folder)[1:]))


def write(path, rows):
    """Rows as JSON lines or as an array, by the path's ending."""
    if path.suffix == ".json":
        text = json.dumps(rows, ensure_ascii=False, indent=1)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def shown(rows, folder):
    """Contents of all pictures of rows, and of the pictures that are called so."""
    return [picture.read() for row in rows for picture in row.pictures]


def expected(names, folder):
    return [base64.b64decode(name.partition(",")[2]) if name is ENCODED else content(name, folder) for name in names]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_every_layout_is_known_by_its_rows_and_read(pictures, name, ending):
    reader, rows, says, names = EXAMPLES[name]
    path = write(pictures / f"rows.{ending}", stored(rows, pictures))
    assert detect(path).name == reader
    read = read_source(as_source(path))
    assert [rendered(row) for row in read] == says
    assert shown(read, pictures) == expected(names, pictures)
    assert len({image_id for row in read for image_id in row.image_ids}) == len(set(names)) or name == "one's own"
    assert [rendered(row) for row in read_source(DataSource(str(path), reader=reader))] == says
    assert list(open_table(as_source(path))) == read  # as a run keeps them


def test_no_two_layouts_claim_the_same_rows(pictures):
    """The one that wins has more keys of its own in the rows than any other: names decide nothing."""
    for name, (reader, rows, *_) in EXAMPLES.items():
        keys = seen_keys(write(pictures / "rows.jsonl", rows))
        longest = {
            each.name: max((len(form) for form in each.keys if form <= keys), default=0) for each in READERS.values()
        }
        assert [key for key, value in longest.items() if value == max(longest.values())] == [reader], name
    layouts = [("b", [frozenset("xy")]), ("a", [frozenset("xz")]), ("c", [frozenset("x")])]
    assert best(frozenset("xyz"), layouts) == "a" and best(frozenset("xy"), layouts) == "b"
    assert best(frozenset("y"), layouts) is None


TABLES = ["FineVision", "LLaVA-OneVision", "TRL: conversational with pictures", "TRL: messages and image"]
TABLES += ["LLaMA-Factory: sharegpt", "TRL: preference", "one's own"]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("inside", [True, False])
def test_the_same_layouts_in_parquet(pictures, name, inside):
    """Pictures lie in the file as `datasets` writes them, or are named by path."""
    from datasets import Dataset, Image, List

    reader, rows, says, names = EXAMPLES[name]
    if name == "one's own":
        rows, says, names = rows[:3], says[:3], names[:4]  # a column holds texts or lists
    if name.startswith("TRL: conv"):
        rows, says = rows[:1], says[:1]
    columns = dict.fromkeys(key for row in rows for key in row)
    data = [{key: row.get(key) for key in columns} for row in copy.deepcopy(rows)]
    if name == "one's own":
        for row in data:
            row["answer"] = row["answer"] and "true"
    kinds = {"image": Image(), "images": List(Image()), "file_names": List(Image())}
    if inside:
        for row in data:
            for key in kinds.keys() & row.keys():
                row[key] = _inside(row[key], pictures)
    table = Dataset.from_list(data)
    if inside:
        for key in kinds.keys() & columns.keys():
            table = table.cast_column(key, kinds[key])
    table.to_parquet(pictures / "rows.parquet")
    assert detect(pictures / "rows.parquet").name == reader
    read = read_source(as_source(pictures / "rows.parquet"))
    assert [rendered(row) for row in read] == says
    assert shown(read, pictures) == expected(names, pictures)


def _inside(value, folder):
    if value is None or isinstance(value, list):
        return value and [_inside(each, folder) for each in value]
    return {"bytes": content(value, folder), "path": None}


REFUSED = {
    "tools of LLaMA-Factory": (
        {
            "conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}],
            "tools": "[{}]",
        },
        r"`tools` is not read",
    ),
    "observation": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "{}"}], "system": "s"},
        r"`conversations\.1\.from`: role 'observation' is a tool's",
    ),
    "tool_response of ms-swift": (
        {"messages": [*chat("a"), {"role": "tool_response", "content": "{}"}, *chat("", "b")[1:]]},
        r"`messages\.1\.role`: role 'tool_response' is a tool's",
    ),
    "tool_calls of OpenAI": (
        {"messages": [*chat("a"), {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]},
        r"`messages\.1`: `tool_calls`: rows in which tools are called are not read",
    ),
    "videos": ({"messages": chat("<video>何?", "猫"), "videos": ["a.mp4"]}, "`videos` is not read"),
    "boxes of ms-swift": (
        {"messages": chat("<image>どこ?", "<bbox>"), "images": ["a.png"], "objects": {"ref": [], "bbox": [[1, 2]]}},
        "`objects` is not read",
    ),
    "a video of LLaVA": (
        {"id": 1, "video": "a.mp4", "conversations": shared("<video>何?", "猫")},
        "`video` is not read",
    ),
    "loss: false of ms-swift": (
        {"messages": [*chat("a"), {"role": "assistant", "content": "b", "loss": False}]},
        r"`loss` is False, and here every answer of a row is learnt alike",
    ),
    "weight: 0 of OpenAI": (
        {"messages": [*chat("a"), {"role": "assistant", "content": "b", "weight": 0}]},
        r"`weight` is 0",
    ),
    "loss_weight of LLaMA-Factory v1": (
        {"messages": [*chat("a"), {"role": "assistant", "content": "b", "loss_weight": 0.0}]},
        r"`loss_weight` is 0\.0",
    ),
    "label: false of TRL": ({"prompt": "a", "completion": "b", "label": False}, "`label` is false"),
    "kto_tag: false of LLaMA-Factory": (
        {"conversations": shared("a", "b"), "kto_tag": False, "system": "s"},
        "`kto_tag` is false",
    ),
    "an address": ({"messages": parts({"type": "image", "image": "https://a.example/b.png"}, TEXT)}, "is an address"),
    "base64 that is empty": (
        {"messages": parts({"type": "image", "image": "data:image/png;base64,"}, TEXT)},
        "base64",
    ),
    "more places than pictures": (
        {"conversations": shared("<image><image>何?", "猫"), "images": ["a.png"]},
        "2 places for pictures, 1 pictures",
    ),
    "fewer places than pictures": (
        {"texts": [{"user": "<image>何?", "assistant": "猫"}], "images": ["a.png", "b.png"]},
        "1 places for pictures, 2 pictures",
    ),
    "a picture that nobody asks about": (
        {"messages": [{"role": "assistant", "content": "猫"}], "images": ["a.png"]},
        "0 places for pictures, 1 pictures",
    ),
    "<image> in an answer": (
        {"texts": [{"user": "何?", "assistant": "<image>"}], "images": []},
        "<image> stands in a text",
    ),
    "an answer that is null": (
        {"texts": [{"user": "何?", "assistant": None}], "images": []},
        r"`texts\.0\.assistant`",
    ),
    "a conversation that ends with a question": (
        {"conversations": shared("a", "b", "c"), "system": "s"},
        "must end with an answer",
    ),
    "an alpaca row without its answer": ({"instruction": "a", "input": "b"}, "`output` is missing"),
    "a query without its response": (
        {"query": "a", "response": None, "instruction": "b", "output": "c"},
        "`response` is",
    ),
    "a history of single texts": ({"instruction": "a", "output": "b", "history": ["c"]}, r"`history\.0`"),
    "answers to different questions": (
        {"chosen": chat("何色?", "青"), "rejected": chat("何?", "緑")},
        "follow different questions",
    ),
    "a preference without what is rejected": ({"prompt": "a", "chosen": "b"}, "`rejected` is missing"),
    "a part of two kinds": ({"messages": parts({"image": "a.png", "text": "何?"})}, "a picture and a text"),
    "a part of none": ({"messages": parts({"type": "text"})}, "there is no `text`"),
    "image_url of nothing": ({"messages": parts({"type": "image_url"})}, "there is no `image_url`"),
}


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_a_bad_row_with_its_reason(pictures, row, message):
    layouts = {
        "messages": "rows",
        "conversations": "sharegpt",
        "texts": "finevision",
        "prompt": "trl",
        "query": "instructions",
    }
    layouts |= {"instruction": "instructions"}
    reader = next((layouts[key] for key in row if key in layouts), "preferences")
    reader = "preferences" if "chosen" in row else "llava" if "video" in row else reader
    path = write(pictures / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=rf"^{path}, line 1: .*{message}") as raised:
        read_source(DataSource(str(path), reader=reader))
    assert "\n" not in str(raised.value)


UNKNOWN = {
    "a key that is missing": (
        [{"prompt": "a", "answers": ["b"]}],
        "its rows have `answers`, `prompt`, and `trl`, which comes nearest, wants `completion` beside `prompt`",
    ),
    "a key inside": (
        [{"texts": [{"user": "a", "bot": "b"}], "images": []}],
        "its rows have `images`, `texts`, and `finevision`, which comes nearest, wants `texts.assistant` beside",
    ),
    "one's own without its text": (
        [{"image": "a.png", "label": 3}],
        "its rows have `image`, `label`, and `rows`, which comes nearest, wants `caption` beside `image`",
    ),
    "nothing of any": ([{"foo": 1}], "its rows have `foo`: state one with `--reader`"),
}


@pytest.mark.parametrize(("rows", "message"), UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_rows_of_no_layout_are_told_their_keys_and_the_nearest(tmp_path, rows, message, ending):
    path = write(tmp_path / f"rows.{ending}", rows)
    with pytest.raises(ValueError) as raised:
        detect(path)
    assert f"{path} is of no known layout; {message}" in str(raised.value)
    result = CliRunner().invoke(app, ["data", str(path)])
    assert message in str(result.exception)


def test_a_reader_can_be_named(pictures):
    """Rows that two layouts can read: the text of `prompt` is a question to one, a field of nobody to the other."""
    row = {"image": "a.png", "caption": "車", "prompt": "何?", "completion": "赤い車", "more": 1}
    path = write(pictures / "rows.jsonl", [row])
    says = {name: rendered(read_source(DataSource(str(path), reader=name))[0]) for name in ("trl", "rows", "jsonl")}
    assert says == {"trl": "@何?|赤い車", "rows": "@|車", "jsonl": "@|車"}
    result = CliRunner().invoke(app, ["data", str(path), "--reader", "trl"], catch_exceptions=False)
    assert "赤い車" in result.stdout and "1 rows about 1 pictures" in result.stdout
    assert as_source({"path": "x", "format": "llava"}).reader == "llava"  # as recipes called it
    with pytest.raises(ValueError, match="`reader` and `format`, which are the same"):
        as_source({"path": "x", "format": "llava", "reader": "llava"})
    with pytest.raises(ValueError, match="'swift' is no reader; there are addresses, coco-captions, .*trl"):
        read_source(DataSource(str(path), reader="swift"))
    (pictures / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="notes.txt holds no single rows: it is none of"):
        read_source(DataSource(str(pictures / "notes.txt"), reader="trl"))


@pytest.mark.parametrize(
    "name", ["FineVision", "OpenAI", "LLaMA-Factory: sharegpt", "TRL: preference", "ms-swift: messages"]
)
def test_three_rows_are_shown(pictures, name):
    _, rows, says, _ = EXAMPLES[name]
    rows = [row for row in rows if "base64" not in json.dumps(row)]
    result = CliRunner().invoke(app, ["data", str(write(pictures / "rows.json", rows))], catch_exceptions=False)
    assert f"{len(rows)} rows about" in result.stdout
    for row in rows[:3]:
        answer = row.get("messages", row.get("conversations", row.get("texts", row.get("chosen"))))[-1]
        assert answer.get("content", answer.get("value", answer.get("assistant"))) in result.stdout


def test_a_language_that_there_is_not(pictures):
    path = write(pictures / "rows.jsonl", [{"id": 1, "image": "a.png", "conversations": shared("何?", "猫")}])
    with pytest.raises(ValueError, match="line 1: language must be auto, jp, value, got 'ja'"):
        read_source(DataSource(str(path), language="ja"))
    with pytest.raises(ValueError, match="A data source: `language` must be 'auto', 'value' or 'jp'"):
        as_source({"path": str(path), "language": "ja"})


def test_llavas_picture_goes_first_only_where_its_loader_moves_it(pictures):
    said = shared("前<image>後", "猫")
    rows = [{"id": 1, "image": "a.png", "conversations": said}, {"id": 2, "images": ["a.png"], "conversations": said}]
    path = write(pictures / "rows.jsonl", rows)
    assert [rendered(row) for row in read_source(as_source(path))] == ["@前後|猫", "前@後|猫"]


FOLDERS = {
    "above": ([""], NAMES[2:]),
    "each data set's": (["coco", "gqa", "ocr_vqa", "textvqa", "vg"], NAMES[2:]),
    "the innermost": (
        ["coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K"],
        NAMES[2:],
    ),
}


@pytest.mark.parametrize(("folders", "names"), FOLDERS.values(), ids=FOLDERS)
def test_folders_of_the_llava_mixture(pictures, folders, names):
    _, rows, _, _ = EXAMPLES["LLaVA"]
    (pictures / "text").mkdir()
    path = write(pictures / "text" / "llava_v1_5_mix665k.json", rows)
    read = read_source(DataSource(str(path), images=[str(pictures / folder) for folder in folders]))
    assert shown(read, pictures) == [content(name, pictures) for name in names]
    assert [row.image_ids[0] for row in read if row.pictures][:2] == ["coco:9", "vg:2"]


def test_a_folder_of_another_name_gives_no_picture(pictures):
    """`1593.jpg` of another data set is not `ocr_vqa/images/1593.jpg`."""
    other = pictures / "ocr_vqa" / "else"
    other.mkdir()
    (other / "1593.jpg").write_bytes(b"another")
    row = {"id": 1, "image": "ocr_vqa/images/1593.jpg", "conversations": shared("何?", "本")}
    (read,) = read_source(DataSource(str(write(pictures / "rows.jsonl", [row])), images=str(other)))
    with pytest.raises(FileNotFoundError):
        read.pictures[0].read()


def test_pictures_of_ocr_vqa_keep_the_ending_they_came_with(pictures):
    (pictures / NAMES[4]).rename(pictures / "ocr_vqa" / "images" / "1593.gif")
    row = {"id": 1, "image": "ocr_vqa/images/1593.jpg", "conversations": shared("何?", "本")}
    (read,) = read_source(as_source(write(pictures / "rows.jsonl", [row])))
    assert read.pictures[0].path.endswith("1593.gif") and read.pictures[0].read()[:4] == b"\x89PNG"


def test_base64_is_read_where_it_stands_when_it_is_needed(tmp_path, draw, monkeypatch):
    encoded = []
    for number in range(4):
        draw(number).save(buffer := io.BytesIO(), format="PNG")
        encoded.append(buffer.getvalue())
    urls = ["data:image/png;base64," + base64.b64encode(each).decode() for each in encoded]
    rows = [{"messages": parts({"type": "image_url", "image_url": {"url": url}}, TEXT)} for url in urls]
    rows[3] = {"messages": parts({"type": "image_url", "image_url": {"url": urls[0]}}, TEXT)}  # the same once more
    path = tmp_path / "rows.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for written in (text, text.replace("/", "\\/"), text.replace("+", "\\u002B")):
        path.write_text(written)
        read = read_source(as_source(path))
        assert [row.pictures[0].read() for row in read] == [*encoded[:3], encoded[0]]
        assert len({row.image_ids for row in read}) == 4
        assert all(row.pictures[0].size < len(text) and not hasattr(row.pictures[0], "content") for row in read)
    monkeypatch.setattr(encoded_pictures, "open_regular", lambda path: io.BytesIO(path.read_bytes()))
    with pytest.raises(ValueError, match=r"line 1: pictures in base64 are read from files on disk only"):
        read_source(as_source(path))
    monkeypatch.undo()
    path.write_text(json.dumps({"messages": parts({"type": "image", "image": "data:image/png;base64,!!!!"}, TEXT)}))
    with pytest.raises(OSError, match="is not base64"):
        read_source(as_source(path))[0].pictures[0].read()


def test_lines_in_a_file_that_is_called_json(pictures):
    path = pictures / "rows.json"
    write(pictures / "rows.jsonl", [{"image": "a.png", "caption": "犬"}, {"image": "b.png", "caption": "猫"}]).rename(
        path
    )
    assert [rendered(row) for row in read_source(as_source(path))] == ["@|犬", "@|猫"]
    path.write_text('{"image": "a.png", "caption": "犬"}')
    with pytest.raises(ValueError, match="is of no known layout"):
        detect(path)  # one object is no list of rows


def test_preferences_for_trl(pictures):
    rows = EXAMPLES["LLaMA-Factory: preference"][1] + [{**EXAMPLES["LLaMA-Factory: preference"][1][0], "images": []}]
    path = write(pictures / "rows.json", rows)
    bad = []
    (pair,) = read_preferences(path, bad.append)
    assert rendered(pair.preferred) == "@何?|猫" and rendered(pair.rejected) == "@何?|犬"
    assert [each.place for each in bad] == ["row 1"]
    with pytest.raises(ValueError, match="row 1: 1 places for pictures, 0 pictures"):
        preference_dataset(path)
    data = preference_dataset({"path": str(path), "images": str(pictures)}, bad.append)
    assert data.column_names == ["images", "prompt", "chosen", "rejected"]
    assert data[0]["prompt"] == [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "何?"}]}
    ]
    assert data[0]["chosen"] == [{"role": "assistant", "content": [{"type": "text", "text": "猫"}]}]
    assert data[0]["rejected"][0]["content"][0]["text"] == "犬"
    assert data[0]["images"][0].size == (8, 8)


FOREIGN = [
    None,
    True,
    0,
    -1,
    2.5,
    10**30,
    float("nan"),
    "",
    " ",
    "<image>",
    "<img>a.png</img>",
    "\0",
    [],
    {},
    [[]],
    [3],
]
FOREIGN += ["data:image/png;base64,AAAA", "https://a.example/b", {"role": "user"}, {"from": "gpt"}, [None], "tool"]


def mutated(value, generator):
    """A value with something else, or nothing, at one or two places."""
    value = copy.deepcopy(value)
    for _ in range(generator.randint(1, 2)):
        places, stack = [], [value]
        while stack:
            holder = stack.pop()
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            places += [(holder, key) for key in keys]
            stack += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
        if not places:
            return generator.choice(FOREIGN)
        holder, key = generator.choice(places)
        if generator.random() < 0.2:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(generator.choice(FOREIGN))
    return value


@pytest.mark.parametrize("name", EXAMPLES)
def test_wrong_rows_are_read_or_named_in_a_sentence(pictures, name):
    """A hundred of each: rows that can be shown, or one sentence with the line; the file stays known."""
    reader, rows, *_ = EXAMPLES[name]
    generator = random.Random(name)
    wrong = [mutated(generator.choice(rows), generator) for _ in range(100)]
    path = write(pictures / "rows.jsonl", [*stored(rows, pictures), *wrong])
    assert detect(path).name in {reader, "llava"}
    bad = []
    read = read_source(DataSource(str(path), reader=reader), bad.append)
    assert len(read) >= len(rows) and bad
    for row in read:
        assert row.answer.strip() and len(row.pictures) == len(row.image_ids)
        json.dumps(row.messages(), ensure_ascii=False).encode()
    for each in bad:
        assert each.reason.startswith(f"{path}, {each.place}: ") and "\n" not in each.reason
        assert each.reason.endswith((".", "?")) and len(each.reason) < 600, each.reason
