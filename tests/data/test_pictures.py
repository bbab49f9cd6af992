"""Pictures that are not opened yet, and the folders they are looked for in."""

import os
import pickle

import pytest

from jminigpt4.data.ids import canonical_id, coco_twin, image_id
from jminigpt4.data.pictures import FilePicture, MemoryPicture, PictureFolders, TablePicture
from jminigpt4.data.rows import PICTURE, Message, Row


def test_a_folder_is_listed_once_and_no_picture_is_looked_up_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    for number in range(20):
        (tmp_path / ("below" if number % 2 else ".") / f"{number}.png").touch()
    folders = PictureFolders([tmp_path])
    listed, scandir, stat = [], os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    looked_up = []
    monkeypatch.setattr(os, "stat", lambda path, **_: looked_up.append(str(path)) or stat(path))
    found = [folders.find(f"{number}.png").path for number in range(20)]
    monkeypatch.undo()
    assert all(os.path.isfile(path) for path in found) and folders.missing == {}
    # The root twice: for its files, and for its sub-folders when a picture is not among them.
    assert sorted(listed) == [str(tmp_path), str(tmp_path), str(tmp_path / "below")]
    assert not [path for path in looked_up if path.endswith(".png")]


def test_folders_come_before_sub_folders_and_in_their_order(tmp_path):
    for name in ("one/a/x.png", "one/a/y.png", "two/x.png", "two/z/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folders = PictureFolders([tmp_path / "one", tmp_path / "two"])
    assert folders.find("x.png") == FilePicture(str(tmp_path / "two/x.png"))
    assert folders.find("y.png") == FilePicture(str(tmp_path / "one/a/y.png"))
    assert folders.find("nowhere.png", "other.png") == FilePicture(str(tmp_path / "one/nowhere.png"))
    assert folders.missing == {str(tmp_path / "one/nowhere.png"): ("nowhere.png", "other.png")}
    assert PictureFolders().find("x/y.png").path == "x/y.png"


def test_pictures_of_all_kinds_give_bytes_or_an_os_error(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    assert FilePicture(str(tmp_path / "a.bin"), 2, 3).read() == b"234"
    cells = [{"bytes": b"x", "path": None}, {"bytes": None, "path": str(tmp_path / "a.bin")}, None]
    table = pa.table({"image": cells, "images": [cells, [cells[0]], []]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    for path in (str(tmp_path / "a.parquet"), str(tmp_path / "a.arrow")):
        assert [TablePicture(path, row, "image").read() for row in (0, 1)] == [b"x", b"0123456789"]
        assert TablePicture(path, 0, "images", 1).read() == b"0123456789"
        for empty in (TablePicture(path, 2, "image"), TablePicture(path, 0, "images", 2)):
            with pytest.raises(OSError, match="holds no picture"):
                empty.read()
        with pytest.raises(OSError, match="has no row 3"):
            TablePicture(path, 3, "image").read()
    assert len({TablePicture(path, row, column).name for row in (0, 1) for column in ("image", "images")}) == 4
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(OSError, match="a.parquet cannot be read as a table"):
        TablePicture(str(tmp_path / "a.parquet"), 0, "image").read()
    memory = MemoryPicture("m", b"abc")
    assert memory.read() == b"abc" and memory.stamp() != MemoryPicture("m", b"abd").stamp()


def test_rows_go_to_other_processes_with_their_places_for_pictures():
    row = Row((Message("user", (PICTURE, "何?")), Message("assistant", ("犬",))), (FilePicture("a"),), ("a:a",), "s")
    again = pickle.loads(pickle.dumps(row))
    assert again == row and again.conversation[0].parts[0] is PICTURE
    assert again.messages() == row.messages()
    with pytest.raises(ValueError, match="None stands where a text belongs"):
        Message("user", (None,))


@pytest.mark.parametrize("spelt", [9, 9.0, "9", "9.0", "000000000009", "coco:9", "COCO_val2014_000000000009.jpg"])
def test_one_picture_has_one_id(spelt):
    assert canonical_id(spelt) == "coco:9"


@pytest.mark.parametrize(
    ("spelt", "expected"),
    [
        ("vg:1", "vg:1"),
        ("vg:000001.jpg", "vg:1"),
        ("coco:COCO_train2014_000000000009.jpg", "coco:9"),
        ("own:pics/000000000009.jpg", "own:pics/000000000009.jpg"),
        ("own:9", "own:9"),
        ("jmmmu:validation_Math_1.1", "jmmmu:validation_Math_1.1"),
        ("VG_100K/11.jpg", "vg:11"),
        ("pics/3.jpg", "pics/3.jpg"),
    ],
)
def test_only_ids_of_coco_and_visual_genome_have_another_spelling(spelt, expected):
    assert canonical_id(spelt) == expected


@pytest.mark.parametrize(
    "folder", ["vg", "VG_100K", "data/VG_100K_2", "visual_genome", "VisualGenome/x", "gqa/images"]
)
def test_numbers_in_folders_of_visual_genome_are_its_ids(tmp_path, folder):
    assert image_id(f"{folder}/000123.jpg", tmp_path / "a.json") == "vg:123"
    assert image_id(f"{folder}/b.jpg", tmp_path / "a.json") == f"a:{folder}/b.jpg"


def test_twins_are_numbers_or_nothing():
    assert coco_twin(float("nan")) is None and coco_twin(None) is None and coco_twin(9.0) == "coco:9"
