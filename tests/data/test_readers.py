"""Every reader on small files in the layout that the owners of the data publish."""

import io
import json
import pickle
import tarfile

import pytest

from jminigpt4.data.readers import DataSource, as_source, detect, read_source
from jminigpt4.data.rows import PICTURE


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def put(folder, draw, **pictures):
    """Drawings under names, `{file name: number of the drawing}`."""
    for name, number in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(number).save(path, format="PNG")


def rendered(row) -> str:
    """The conversation as one line, `@` for a picture."""
    return "|".join(
        "".join("@" if part is PICTURE else part for part in message.parts) for message in row.conversation
    )


def stair(folder, split="train", tokenized=False):
    """`stair_captions_v1.2_train.json`: annotations are not grouped by picture."""
    images = [
        {
            "id": number,
            "file_name": f"COCO_{split}2014_{number:012d}.jpg",
            "height": 32,
            "width": 40,
            "coco_url": "",
            "flickr_url": "",
            "date_captured": "2013-11-16 19:31:34",
            "license": 3,
        }
        for number in (9, 25)
    ]
    annotations = []
    for index, (image, caption) in enumerate(
        [(25, "キリンが立っている"), (9, "弁当がある"), (25, "木と動物"), (9, "野菜と果物")]
    ):
        annotation = {"id": index, "image_id": image, "caption": caption}
        annotations.append(annotation | ({"tokenized_caption": " ".join(caption)} if tokenized else {}))
    name = f"stair_captions_v1.2_{split}{'_tokenized' * tokenized}.json"
    return write_json(folder / name, {"info": {}, "licenses": [], "images": images, "annotations": annotations})


@pytest.mark.parametrize("tokenized", [False, True])
@pytest.mark.parametrize("layout", ["{split}2014/COCO_{split}2014_{id:012d}.jpg", "train2017/{id:012d}.jpg"])
def test_stair_captions_with_the_names_of_2014_and_2017(tmp_path, draw, layout, tokenized):
    for number, split in ((9, "train"), (25, "train")):
        put(tmp_path / "coco", draw, **{layout.format(split=split, id=number): number})
    path = stair(tmp_path, tokenized=tokenized)
    rows = read_source(DataSource(str(path), images=str(tmp_path / "coco")))
    assert [rendered(row) for row in rows] == ["@|キリンが立っている", "@|弁当がある", "@|木と動物", "@|野菜と果物"]
    assert [row.image_ids for row in rows] == [("coco:25",), ("coco:9",), ("coco:25",), ("coco:9",)]
    assert all(row.is_caption and row.pictures[0].read()[:4] == b"\x89PNG" for row in rows)


def test_train_and_val_together_in_two_folders(tmp_path, draw):
    put(tmp_path / "train2014", draw, **{f"COCO_train2014_{number:012d}.jpg": number for number in (9, 25)})
    put(tmp_path / "val2014", draw, **{f"COCO_val2014_{number:012d}.jpg": number for number in (9, 25)})
    paths = [str(stair(tmp_path, "train")), str(stair(tmp_path, "val"))]
    folders = [str(tmp_path / "train2014"), str(tmp_path / "val2014")]
    rows = read_source(DataSource(paths, images=folders, name="stair"))
    assert len(rows) == 8 and {row.source for row in rows} == {"stair"}
    assert {row.pictures[0].path.rpartition("/")[0] for row in rows[4:]} == {str(tmp_path / "val2014")}


def test_yj_captions_and_a_caption_without_its_picture(tmp_path, draw):
    put(tmp_path, draw, **{"COCO_train2014_000000000009.jpg": 1})
    images = [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": 1, "width": 1}]
    captions = [{"image_id": 9, "id": 5, "caption": "お弁当"}]
    path = write_json(tmp_path / "yjcaptions26k_clean.json", {"images": images, "annotations": captions})
    assert [rendered(row) for row in read_source(as_source(path))] == ["@|お弁当"]
    captions.append({"image_id": 10, "id": 6, "caption": "迷子"})
    write_json(path, {"images": images, "annotations": captions})
    with pytest.raises(ValueError, match="annotation 6: `image_id` 10 is none of"):
        read_source(as_source(path))


def test_visual_genome_is_joined_by_id_over_two_folders(tmp_path, draw):
    put(tmp_path / "vg", draw, **{"VG_100K/2317429.jpg": 1, "VG_100K_2/7.jpg": 2})
    entries = [
        {
            "id": number,
            "qas": [
                {
                    "qa_id": number * 10 + index,
                    "image_id": number,
                    "question": f"何{index}?",
                    "answer": f"答え{number}",
                    "a_objects": [],
                    "q_objects": [],
                }
                for index in range(2)
            ],
        }
        for number in (7, 2317429)
    ]
    path = write_json(tmp_path / "question_answers.json", entries)
    rows = read_source(DataSource(str(path), images=str(tmp_path / "vg")))
    assert [rendered(row) for row in rows] == ["@何0?|答え7", "@何1?|答え7", "@何0?|答え2317429", "@何1?|答え2317429"]
    assert rows[0].pictures[0].path.endswith("VG_100K_2/7.jpg") and rows[2].pictures[0].path.endswith("2317429.jpg")
    assert rows[2].image_ids == ("vg:2317429",) and not rows[0].is_caption
    apart = [str(tmp_path / "vg" / "VG_100K"), str(tmp_path / "vg" / "VG_100K_2")]
    assert [row.pictures for row in read_source(DataSource(str(path), images=apart))] == [row.pictures for row in rows]


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            information = tarfile.TarInfo(name)
            information.size = len(content)
            tar.addfile(information, io.BytesIO(content))


def test_webdataset_shards_of_img2dataset(tmp_path, draw):
    def encoded(number, format_):
        draw(number).save(buffer := io.BytesIO(), format=format_)
        return buffer.getvalue()

    about = {"caption": "猫の写真", "url": "u", "key": "000000000", "status": "success"}
    shard(
        tmp_path / "00000.tar",
        [
            ("000000000.jpg", encoded(0, "JPEG")),
            ("000000000.json", json.dumps(about).encode()),
            ("000000000.txt", "別の文".encode()),
            ("000000001.txt", "犬".encode()),
            ("000000001.webp", encoded(1, "WEBP")),
            ("000000002.png", encoded(2, "PNG")),  # no caption
            ("000000003.json", json.dumps({"caption": None}).encode()),  # no picture
        ],
    )
    shard(
        tmp_path / "00001.tar", [("x.y.png", encoded(3, "PNG")), ("x.y.txt", b""), ("x.json", b'{"caption": "hello"}')]
    )
    rows = read_source(as_source(tmp_path))
    assert [rendered(row) for row in rows] == ["@|猫の写真", "@|犬"]
    assert rows[1].pictures[0].read() == encoded(1, "WEBP")
    assert rows[0].image_ids != rows[1].image_ids
    (tmp_path / "00002.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(ValueError, match="00002.tar"):
        read_source(as_source(tmp_path))


def test_minigpt4_second_stage(tmp_path, draw):
    put(tmp_path / "cc_sbu_align", draw, **{"image/2.jpg": 2, "image/30.jpg": 3})
    annotations = [{"image_id": "2", "caption": "The image shows a cat."}, {"image_id": "30", "caption": "A dog."}]
    write_json(tmp_path / "cc_sbu_align" / "filter_cap.json", {"annotations": annotations})
    rows = read_source(as_source(tmp_path / "cc_sbu_align"))
    assert [rendered(row) for row in rows] == ["@|The image shows a cat.", "@|A dog."]
    assert [row.pictures[0].read()[:4] for row in rows] == [b"\x89PNG"] * 2
    assert (
        read_source(as_source(tmp_path / "cc_sbu_align" / "filter_cap.json"))[0].conversation == rows[0].conversation
    )


LLAVA = [
    {
        "id": "000000033471",
        "image": "000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat colour?", "jp": "<image>\n何色ですか?"},
            {"from": "gpt", "value": "Red.", "jp": "赤です。"},
            {"from": "human", "value": "Why?", "jp": "なぜ?"},
            {"from": "gpt", "value": "Paint.", "jp": "塗装です。"},
        ],
    },
    {
        "id": 7,
        "image": "vg/VG_100K/7.jpg",
        "conversations": [
            {"from": "ユーザー", "value": "これは?\n<image>"},
            {"from": "システム", "value": "花です。"},
        ],
    },
    {"id": "t", "conversations": [{"from": "human", "value": "こんにちは"}, {"from": "gpt", "value": "はい"}]},
    {
        "id": "two",
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "gpt", "value": "begins wrongly"},
            {"from": "human", "value": "違いは?"},
            {"from": "gpt", "value": "色です。"},
            {"from": "human", "value": "unanswered"},
        ],
    },
]


def test_llava_pictures_of_coco_2017_on_a_disk_with_2014(tmp_path, draw):
    put(tmp_path / "coco", draw, **{"val2014/COCO_val2014_000000033471.jpg": 1})
    conversation = [{"from": "human", "value": "何?\n<image>"}, {"from": "gpt", "value": "犬"}]
    row = {"id": "a", "image": "coco/train2017/000000033471.jpg", "conversations": conversation}
    path = write_lines(tmp_path / "llava_v1_5_instruct_620k_ja_v2.jsonl", [row])
    (read,) = read_source(DataSource(str(path), images=str(tmp_path / "coco")))
    assert read.pictures[0].path.endswith("COCO_val2014_000000033471.jpg") and read.image_ids == ("coco:33471",)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_llava_conversations(tmp_path, draw, kind):
    put(tmp_path / "coco", draw, **{"COCO_train2014_000000033471.jpg": 1})
    put(tmp_path / "rest", draw, **{"vg/VG_100K/7.jpg": 2, "a.png": 3, "b.png": 4})
    path = tmp_path / f"llava.{kind}"
    write_json(path, LLAVA) if kind == "json" else write_lines(path, LLAVA)
    source = DataSource(str(path), images=[str(tmp_path / "coco"), str(tmp_path / "rest")])
    rows = read_source(source)
    assert [rendered(row) for row in rows] == [
        "@何色ですか?|赤です。|なぜ?|塗装です。",
        "@これは?|花です。",
        "こんにちは|はい",
        "@@違いは?|色です。",
    ]
    assert [row.image_ids for row in rows[:3]] == [("coco:33471",), ("vg:7",), ()]
    assert all(picture.read()[:4] == b"\x89PNG" for row in rows for picture in row.pictures)
    english = read_source(DataSource(str(path), images=source.images, language="value"))
    assert rendered(english[0]) == "@What colour?|Red.|Why?|Paint."
    with pytest.raises(ValueError, match=rf"{'row 1' if kind == 'json' else 'line 2'}.*`jp` is missing"):
        read_source(DataSource(str(path), images=source.images, language="jp"))


def test_unknown_roles_are_named(tmp_path):
    path = write_json(tmp_path / "l.json", [{"id": 3, "conversations": [{"from": "narrator", "value": "x"}]}])
    with pytest.raises(ValueError, match=r"id 3.*'narrator'"):
        read_source(as_source(path))


def test_parquet_with_messages_and_images(tmp_path, draw):
    from datasets import Dataset, Features, Image, List, Value

    def content(number):
        draw(number).save(buffer := io.BytesIO(), format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "これは?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "花"}]},
    ]
    broken = {"bytes": b"broken", "path": None}
    rows = {
        "messages": [
            messages,
            messages,
            messages[:1] + [{"role": "assistant", "content": [{"type": "text", "text": "木"}]}],
        ],
        "images": [[content(1)], [broken], [content(3)]],
    }
    part = {"type": Value("string"), "text": Value("string")}
    features = Features(
        {"messages": List({"role": Value("string"), "content": List(part)}), "images": List(Image(decode=False))}
    )
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    read = read_source(as_source(tmp_path / "rows.parquet"))
    assert [rendered(row) for row in read] == ["@これは?|花", "@これは?|花", "@これは?|木"]
    assert [row.pictures[0].read() for row in read] == [content(1)["bytes"], b"broken", content(3)["bytes"]]
    assert len({picture.name for row in read for picture in row.pictures}) == 3
    assert pickle.loads(pickle.dumps(read[2])).pictures[0].read() == content(3)["bytes"]  # as DataLoader workers do
    (tmp_path / "shards").mkdir()
    for part in range(2):
        (tmp_path / "shards" / f"train-0000{part}-of-00002.parquet").write_bytes(
            (tmp_path / "rows.parquet").read_bytes()
        )
    both = read_source(as_source(tmp_path / "shards"))
    assert [row.conversation for row in both] == [row.conversation for row in read] * 2
    assert len({row.image_ids for row in both}) == 6


def test_imagefolder_with_metadata(tmp_path, draw):
    put(tmp_path / "folder", draw, **{"a.png": 1, "deep/b.png": 2})
    lines = [{"file_name": "a.png", "text": "赤い車"}, {"file_name": "deep/b.png", "question": "何?", "answer": "犬"}]
    write_lines(tmp_path / "folder" / "metadata.jsonl", lines)
    assert [rendered(row) for row in read_source(as_source(tmp_path / "folder"))] == ["@|赤い車", "@何?|犬"]


def test_plain_lines(tmp_path, draw):
    put(tmp_path, draw, **{"a.png": 1, "b.png": 2})
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "違いは?"}]
    path = write_lines(
        tmp_path / "rows.jsonl",
        [
            {"image": "a.png", "caption": "猫", "image_id": "coco:9"},
            {"image": "b.png", "question": "何?", "answer": "犬"},
            {
                "images": ["a.png", "b.png"],
                "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "色"}],
            },
            {"messages": [{"role": "user", "content": "やあ"}, {"role": "assistant", "content": "はい"}]},
        ],
    )
    rows = read_source(as_source(path))
    assert [rendered(row) for row in rows] == ["@|猫", "@何?|犬", "@@違いは?|色", "やあ|はい"]
    assert rows[0].image_ids == ("coco:9",) and rows[1].image_ids == ("rows:b.png",)


@pytest.mark.parametrize(
    ("line", "message_text"),
    [
        ('{"image": "a.png"}', "line 2.*caption"),
        ('{"image": "a.png", "caption": ""}', "line 2.*empty"),
        ("{broken", "line 2.*not JSON"),
        ("[1]", "line 2.*object"),
        ('{"image": "a.png", "question": "q"}', "line 2.*answer"),
        ('{"images": ["a.png"], "messages": [{"role": "user", "content": "q"}]}', "line 2.*end with an answer"),
    ],
)
def test_faults_are_named_by_line(tmp_path, line, message_text):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image": "a.png", "caption": "ok"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message_text):
        read_source(as_source(path))


def test_what_cannot_be_read_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_source(as_source(tmp_path / "nowhere.json"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="state one with `--reader`"):
        detect(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="wheight"):
        as_source({"path": "x", "wheight": 3})
    path = write_lines(tmp_path / "rows.jsonl", [{"image": "a.png", "caption": "x"}])
    with pytest.raises(FileNotFoundError, match="picture folder"):
        read_source(DataSource(str(path), images=str(tmp_path / "absent")))
    (row,) = read_source(as_source(path))
    assert row.pictures[0].path == str(tmp_path / "a.png")  # missing, and nothing else in its place


def test_a_reader_that_registers_itself_is_known_to_all_who_list_readers(tmp_path, monkeypatch):
    from jminigpt4.data.id_lists import read_ids
    from jminigpt4.data.readers import READERS, registry
    from jminigpt4.data.rows import caption_row

    path = tmp_path / "a.lines"
    path.write_text("000000000009.jpg 犬\nb.jpg 猫\n", encoding="utf-8")
    with pytest.raises(ValueError, match="rows .*webdataset"):
        detect(path)
    monkeypatch.setitem(READERS, "lines", None)  # taken back after the test

    @registry.reader("lines", "lines of a name and a caption", lambda path: path.suffix == ".lines")
    def read(path, folders, source):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, caption = line.split()
            yield caption_row(caption, folders.find(name), f"lines:{name}", source)

    assert [rendered(row) for row in read_source(as_source(path))] == ["@|犬", "@|猫"]
    assert set(read_ids(path)) == {"lines:000000000009.jpg", "lines:b.jpg"}
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="lines .lines of a name and a caption"):
        detect(tmp_path / "notes.txt")


def test_every_file_of_the_folder_registers_a_reader_and_imports_nothing_heavy():
    import subprocess
    import sys

    code = """
import sys, jminigpt4
before = set(sys.modules)
from jminigpt4.data.readers import READERS
from jminigpt4.evaluate.benchmarks import BENCHMARKS
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(len(READERS), len(BENCHMARKS), sorted(new & {"torch", "transformers", "pyarrow", "datasets"}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "13 22 []"
