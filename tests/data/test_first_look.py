"""Pictures are looked for before a model is loaded, and a wrong folder is one sentence."""

import json

import pytest
from PIL import Image

from jminigpt4.data import first_look
from jminigpt4.data.first_look import look_at, look_at_first_rows, too_many
from jminigpt4.data.pictures import FilePicture, MemoryPicture
from jminigpt4.data.readers import DataSource
from jminigpt4.train import commands, engine, frozen


def write_rows(folder, count: int, name: str = "rows.jsonl"):
    lines = [json.dumps({"image": f"pictures/{number}.png", "caption": "犬"}) for number in range(count)]
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / name


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures, of which a test may take some away."""
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
    return [FilePicture(str(tmp_path / "pictures" / f"{number}.png")) for number in range(12)]


def test_all_there_is_nothing_to_say(pictures):
    look_at(pictures, "rows", most=0.0)
    look_at([], "rows", most=0.0)
    look_at([MemoryPicture("of a visitor", pictures[0].read())], "rows", most=0.0)


@pytest.mark.parametrize(("most", "missing", "refused"), [(0.05, 6, False), (0.05, 7, True), (0.8, 9, False)])
def test_the_share_that_may_be_missing(pictures, tmp_path, most, missing, refused):
    for picture in pictures[3 : 3 + missing]:
        (tmp_path / picture.path).unlink()
    if not refused:
        look_at(pictures, "rows", most)
        return
    with pytest.raises(FileNotFoundError) as raised:
        look_at(pictures, "rows", most)
    assert str(raised.value) == (
        f"{pictures[3].path} does not exist: 7 of 12 pictures of rows are missing. `--images FOLDER` (`images` of a "
        "data source) says where pictures lie."
    )


def test_what_is_no_picture_is_found_without_a_model(pictures, tmp_path):
    for picture in pictures[:7]:
        (tmp_path / picture.path).write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"7 of 12 pictures of rows that were looked at cannot be read: .*0\.png is"):
        look_at(pictures, "rows")


def test_of_many_pictures_some_are_looked_for(monkeypatch):
    looked_for = []

    class Counted(FilePicture):
        __slots__ = ()

        def stamp(self):
            looked_for.append(self.path)
            raise FileNotFoundError

    many = [Counted(f"{number}.png") for number in range(5000)]
    with pytest.raises(FileNotFoundError, match="1,000 of 1,000 looked for, of 5,000 pictures of rows are missing"):
        look_at(many * 2, "rows")
    assert looked_for == [f"{number}.png" for number in range(0, 5000, 5)]


def test_a_choice_says_less_than_all(pictures, monkeypatch):
    """Every second of twelve is looked for; four of those six are missing, two are, with a limit of 5 %."""
    monkeypatch.setattr(first_look, "LOOKED_FOR", 6)
    gone = [FilePicture("gone/1.png"), FilePicture("gone/2.png")]
    look_at([*pictures[:8], gone[0], *pictures[8:10], gone[1]], "rows", most=0.05)
    with pytest.raises(FileNotFoundError, match="4 of 6 looked for, of 12"):
        look_at([FilePicture(f"gone/{number}.png") for number in range(7)] + pictures[:5], "rows", most=0.05)


def test_names_that_no_file_can_have():
    with pytest.raises(FileNotFoundError, match="1 of 1"):
        look_at([FilePicture("a\0.png")], "rows")


def test_below_twenty_a_share_says_little():
    assert not too_many(6, 12, 0.05) and too_many(7, 12, 0.05)
    assert not too_many(50, 1000, 0.05) and too_many(51, 1000, 0.05)


def test_first_rows_are_looked_at_before_the_rest_is_read(tmp_path):
    path = write_rows(tmp_path, first_look.FIRST_ROWS)
    path.write_text(path.read_text(encoding="utf-8") + "no JSON\n", encoding="utf-8")
    (tmp_path / "first.jsonl").write_text(
        "no JSON\n" + write_rows(tmp_path, 3, "b.jsonl").read_text(encoding="utf-8"), encoding="utf-8"
    )
    with pytest.raises(FileNotFoundError, match=r"pictures/0\.png does not exist: 200 of 200"):
        look_at_first_rows(DataSource(str(path)))
    with pytest.raises(FileNotFoundError, match="2 of 2"):  # of the first two rows, the bad one passed over
        first = DataSource(str(tmp_path / "first.jsonl"), reader="jsonl")
        first_look.FIRST_ROWS, before = 2, first_look.FIRST_ROWS
        try:
            look_at_first_rows(first)
        finally:
            first_look.FIRST_ROWS = before
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl does not exist"):
        look_at_first_rows(DataSource(str(tmp_path / "nowhere.jsonl")))


def test_large_json_is_not_read_twice(tmp_path, monkeypatch):
    rows = [{"id": 1, "image": "1.png", "conversations": []}]
    (tmp_path / "llava.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr(first_look, "LARGE", 10)
    monkeypatch.setattr(first_look, "rows_of", lambda *given: pytest.fail("it was read"))
    look_at_first_rows(DataSource(str(tmp_path / "llava.json")))


def refuse_to_load(*given):
    raise AssertionError("the model was loaded first")


def test_train_and_features_look_before_the_model_is_loaded(tmp_path, monkeypatch):
    path = str(write_rows(tmp_path, 12))
    monkeypatch.setattr(engine, "load_model", refuse_to_load)
    monkeypatch.setattr(frozen, "load_model", refuse_to_load)
    for look in (
        lambda: engine.train("model", path, tmp_path / "run"),
        lambda: engine.dry_run("model", path),
        lambda: engine.train("model", path, tmp_path / "run", on_bad_picture="raise"),
        lambda: commands.features("model", tmp_path / "cache", [path]),
    ):
        with pytest.raises(FileNotFoundError, match=r"0\.png does not exist: 12 of 12 pictures of rows are missing"):
            look()
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_one_missing_picture_where_none_may_be(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "load_model", refuse_to_load)
    (tmp_path / pictures[5].path).unlink()
    path = str(write_rows(tmp_path, 12))
    with pytest.raises(AssertionError, match="loaded first"):
        engine.train("model", path, tmp_path / "run")
