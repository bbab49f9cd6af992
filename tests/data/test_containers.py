"""What holds rows: CSV of spreadsheets, Parquet and Arrow, folders of pictures."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Value

from jminigpt4.data.arrow_files import table_rows
from jminigpt4.data.containers import container_of
from jminigpt4.data.id_lists import read_ids
from jminigpt4.data.pictures import TablePicture
from jminigpt4.data.readers import DataSource, as_source, detect, read_source, recognised
from jminigpt4.data.rows import PICTURE
from jminigpt4.data.splits import split_of, training_parts


def png(draw, number) -> bytes:
    draw(number).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def rendered(rows) -> list[str]:
    return [
        "|".join("".join("@" if part is PICTURE else part for part in message.parts) for message in row.conversation)
        for row in rows
    ]


def csv(tmp_path, text: str, encoding: str = "utf-8", name: str = "rows.csv"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return tmp_path / name


def read_with_faults(path) -> tuple[list[str], list[str]]:
    bad = []
    rows = read_source(as_source(path), bad.append)
    return rendered(rows), [fault.reason.removeprefix(f"{path}, ") for fault in bad]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,caption\na.jpg,猫\n", ["@|猫"]),
        ("\ufeffimage,caption\r\na.jpg,猫\r\nb.jpg,犬\r\n", ["@|猫", "@|犬"]),  # Windows, Excel's "CSV UTF-8"
        ('image,caption\na.jpg,"猫,""大きい""\r\nと犬"\n\n', ['@|猫,"大きい"\r\nと犬']),
        ("image;caption\na.jpg;猫,犬\n", ["@|猫,犬"]),
        ("image\tquestion\tanswer\na.jpg\t何?\t3\n", ["@何?|3"]),
        (",image,caption\n0,a.jpg,猫\n1,b.jpg,犬\n", ["@|猫", "@|犬"]),  # a data frame's index
        ('images,captions\n"[""a.jpg""]","[""猫"", ""犬""]"\n', ["@|猫", "@|犬"]),
        (
            'images,messages\n"[""a.jpg""]","[{""role"": ""user"", ""content"": ""<image>何?""}, '
            '{""role"": ""assistant"", ""content"": ""[犬]""}]"\n',
            ["@何?|[犬]"],
        ),
        ("image,caption\na.jpg,[猫]\n", ["@|[猫]"]),
    ],
)
def test_csv_of_many_writers(tmp_path, text, expected):
    path = csv(tmp_path, text)
    assert container_of(path).name == "csv" and recognised(path).name == "rows"
    assert rendered(read_source(as_source(path))) == expected


def test_pictures_of_csv_are_relative_to_it_and_known_by_their_names(tmp_path, draw):
    (tmp_path / "coco").mkdir()
    draw(1).save(tmp_path / "coco" / "COCO_val2014_000000000009.jpg", format="PNG")
    path = csv(tmp_path, "image,caption\ncoco\\COCO_val2014_000000000009.jpg,弁当\n絵.png,犬\n", name="表.tsv")
    rows = read_source(as_source(path))
    assert rows[0].pictures[0].read() == png(draw, 1)
    assert [row.image_ids[0] for row in rows] == ["coco:9", "表:絵.png"] and set(read_ids(path)) == {
        "coco:9",
        "表:絵.png",
    }


def test_faults_of_csv_are_named_by_line_and_the_rest_is_read(tmp_path):
    path = csv(
        tmp_path,
        'image,caption\na.jpg,猫\nb.jpg,犬,と\nc.jpg\n"d.jpg","牛\nと馬"\ne.jpg,"鳥"と\nf.jpg,\ng.jpg,魚\nh.jpg,"開く\n',
    )
    rows, bad = read_with_faults(path)
    assert rows == ["@|猫", "@|牛\nと馬", "@|魚"]
    columns = "is there a comma or a line break in a cell without quotes?"
    assert bad == [
        f"line 3: 3 cells, where the header names 2 columns: {columns}",
        f"line 4: 1 cells, where the header names 2 columns: {columns}",
        "line 7: is no CSV: ',' expected after '\"'.",
        "line 8: `caption` is missing.",
        "line 10: a quote is opened here and never closed.",
    ]


def test_a_cell_longer_than_the_standard_library_takes(tmp_path):
    (row,) = read_source(as_source(csv(tmp_path, f"image,caption\na.jpg,{'犬' * 200_000}\n")))
    assert len(row.answer) == 200_000


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        (
            "image,caption\na.jpg,猫がいる\n",
            "cp932",
            "line 2: is not UTF-8 .*: save it as UTF-8. It seems to be Shift_JIS",
        ),
        (
            "image,説明\na.jpg,猫がいる\n",
            "cp932",
            'line 1: is not UTF-8 .*seems to be Shift_JIS; Excel\'s "CSV UTF-8"',
        ),
        ("image,caption\na.jpg,猫\n", "utf-16", "line 1: is not UTF-8 but UTF-16: save it as UTF-8"),
        ("image,caption\ra.jpg,猫\r", "utf-8", "line 1: its lines end with carriage returns alone"),
        ("image,caption,image\na.jpg,猫,b.jpg\n", "utf-8", "line 1: the column `image` is there twice"),
        ("images,caption\n\"['a.jpg']\",猫\n", "utf-8", "line 2: `images` begins with \\[ and is not JSON"),
    ],
)
def test_what_is_wrong_with_a_csv_is_one_sentence(tmp_path, text, encoding, message):
    path = csv(tmp_path, text, encoding)
    with pytest.raises(ValueError, match=message) as raised:
        read_source(as_source(path))
    assert str(raised.value).startswith(f"{path}, ") and "\n" not in str(raised.value)


def test_parquet_with_names_of_files_and_an_empty_cell(tmp_path, draw):
    draw(1).save(tmp_path / "a.png")
    table = pa.table({"image": ["a.png", None, "c.png"], "caption": ["猫", "犬", None]})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows, bad = read_with_faults(tmp_path / "rows.parquet")
    assert rows == ["@|猫"] and bad == ["row 1: `image` is missing.", "row 2: `caption` is missing."]
    assert read_source(as_source(tmp_path / "rows.parquet"), [].append)[0].pictures[0].read() == png(draw, 1)


def test_pictures_of_tables_stay_where_they_are(tmp_path, draw):
    features = Features({"images": List(Image()), "question": Value("string"), "answer": Value("int64")})
    rows = {
        "images": [[{"bytes": png(draw, n), "path": f"{n}.png"} for n in numbers] for numbers in ([1, 2], [], [3])],
        "question": ["違いは?", "こんにちは", "何?"],
        "answer": [1, 2, 3],
    }
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet", batch_size=2)
    read = read_source(as_source(tmp_path / "rows.parquet"))
    assert rendered(read) == ["@@違いは?|1", "こんにちは|2", "@何?|3"]
    assert [[picture.read() for picture in row.pictures] for row in read] == [
        [png(draw, 1), png(draw, 2)],
        [],
        [png(draw, 3)],
    ]
    assert [row.image_ids for row in read] == [("rows:rows/0.0", "rows:rows/0.1"), (), ("rows:rows/2.0",)]


def test_ids_that_cells_of_pictures_tell(tmp_path, draw):
    cells = [{"bytes": b"1", "path": "COCO_val2014_000000000009.jpg"}, {"bytes": b"2", "path": "own.png"}]
    table = pa.table({"images": [cells, cells[1:]], "caption": ["二枚", "一枚"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    read = read_source(as_source(tmp_path / "rows.parquet"))
    assert [row.image_ids for row in read] == [("coco:9", "rows:rows/0.1"), ("rows:rows/1.0",)]
    stated = table.append_column("image_ids", pa.array([["vg:1", "vg:2"], ["vg:3"]]))
    pq.write_table(stated, tmp_path / "rows.parquet")
    assert read_source(as_source(tmp_path / "rows.parquet"))[0].image_ids == ("vg:1", "vg:2")


def test_rows_of_a_table_are_numbered_over_batches_and_bytes_alone_are_pictures(tmp_path):
    number = 2500
    pictures = [None if row == 1300 else b"%d" % row for row in range(number)]
    table = pa.table({"jpg": pa.array(pictures, pa.binary()), "caption": [f"絵{row}" for row in range(number)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1700)
    for name in ("a.parquet", "a.arrow"):
        rows = list(table_rows(tmp_path / name))
        assert [row for row, _ in rows] == list(range(number))
        assert rows[1300][1] == {"caption": "絵1300", "jpg": None}
        assert rows[2400][1]["jpg"] == TablePicture(str(tmp_path / name), 2400, "jpg", None)
        assert rows[2400][1]["jpg"].read() == b"2400"


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_table_that_is_cut_off_is_named(tmp_path, name):
    table = pa.table({"image": ["a.png"] * 5000, "caption": ["猫"] * 5000})
    if name == "rows.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} cannot be read as (Parquet|Arrow) \(\w+\): is it whole\?"):
        read_source(DataSource(str(tmp_path / name), reader="rows"))


def metadata(folder, rows, kind="jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("".join(f"{line}\r\n" for line in lines), encoding="utf-8-sig")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_imagefolder_in_the_three_forms_of_its_metadata(tmp_path, draw, kind):
    rows = [{"file_name": "a.png", "text": "赤い車"}, {"file_name": "deep/b.png", "text": "犬"}]
    path = metadata(tmp_path / "folder", rows, kind)
    (tmp_path / "folder" / "deep").mkdir()
    draw(1).save(tmp_path / "folder" / "a.png")
    draw(2).save(tmp_path / "folder" / "deep" / "b.png")
    for given in (tmp_path / "folder", path):
        assert container_of(given).name == "imagefolder"
        read = read_source(as_source(given))
        assert rendered(read) == ["@|赤い車", "@|犬"] and read[1].pictures[0].read() == png(draw, 2)
        assert [row.image_ids[0] for row in read] == ["folder:a.png", "folder:deep/b.png"]


def test_several_pictures_of_a_row_keep_the_order_of_its_columns(tmp_path):
    rows = [
        {"file_names": ["a.png", "b.png"], "question": "違いは?", "answer": "色"},
        {"before_file_name": "a.png", "file_name": "c.png", "question": "前は?", "answer": "犬"},
        {"text": "名前がない"},
        {"file_names": [3], "text": "数"},
    ]
    path = metadata(tmp_path / "folder", rows)
    bad = []
    read = read_source(as_source(path.parent), bad.append)
    assert rendered(read) == ["@@違いは?|色", "@@前は?|犬"]
    assert [[picture.path.rpartition("/")[2] for picture in row.pictures] for row in read] == [
        ["a.png", "b.png"],
        ["a.png", "c.png"],
    ]
    assert [fault.reason for fault in bad] == [
        f"{path}, line 3: `file_name` is missing.",
        f"{path}, line 4: `file_names` holds 3, which is no name.",
    ]


def test_parts_of_an_imagefolder(tmp_path, draw, capsys):
    for part, number in (("train", 1), ("validation", 2)):
        metadata(tmp_path / "folder" / part, [{"file_name": "a.png", "text": part}])
        draw(number).save(tmp_path / "folder" / part / "a.png")
    read = read_source(as_source(tmp_path / "folder"))
    assert rendered(read) == ["@|train"] and read[0].pictures[0].read() == png(draw, 1)
    assert "folder: its part `train` is read; validation by its own path." in capsys.readouterr().err
    read = read_source(as_source(tmp_path / "folder" / "validation"))
    assert rendered(read) == ["@|validation"] and read[0].pictures[0].read() == png(draw, 2)
    assert set(read_ids(tmp_path / "folder")) == {"folder:train/a.png", "validation:a.png"}
    metadata(tmp_path / "folder" / "train", [{"file_name": "a.png", "text": "二度"}], "csv")
    with pytest.raises(ValueError, match="train has metadata.csv and metadata.jsonl: which of them is right"):
        read_source(as_source(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00028.parquet", "train"),
        ("stair_captions_v1.2_val.json", "validation"),
        ("dev", "validation"),
        ("test2015", "test"),
        ("my-eval.tar", "test"),
        ("Training", "train"),
        ("contest", ""),
        ("trainee.parquet", ""),
        ("data", ""),
    ],
)
def test_names_of_parts(tmp_path, name, split):
    assert split_of(tmp_path / name) == split


def test_parts_are_chosen_only_where_one_is_called_train(tmp_path):
    def names(*parts):
        return [part.name for part in training_parts([tmp_path / part for part in parts])]

    assert names("test-0.parquet", "val-0.parquet") == ["test-0.parquet", "val-0.parquet"]
    assert names("cats", "dogs") == ["cats", "dogs"]
    assert names("train-0", "train-1", "val-0", "extra") == ["train-0", "train-1", "extra"]


def test_a_folder_of_nothing_known_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="no known layout"):
        detect(tmp_path)
