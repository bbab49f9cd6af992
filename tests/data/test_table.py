"""Tables of rows: read once, mapped afterwards, made anew when what they are made of changes, never half there."""

import json
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest

from jminigpt4.data import table as tables
from jminigpt4.data.columns import Decoded, batch_of
from jminigpt4.data.pictures import FilePicture, MemoryPicture, TablePicture
from jminigpt4.data.readers import DataSource, as_source, refuse, registry
from jminigpt4.data.rows import PICTURE, Message, Row, caption_row, question_row
from jminigpt4.data.table import RowList, RowTable, open_table


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JMINIGPT4_ROWS", str(tmp_path / "tables"))
    return tmp_path / "tables"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Data files that a reader has read."""
    read, rows_in = [], registry.rows_in
    monkeypatch.setattr(registry, "rows_in", lambda *given: read.append(given[0].name) or rows_in(*given))
    return read


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def captions(path, count: int, start: int = 0):
    return write(path, *({"image": f"{n % 3}.png", "caption": f"犬{n}"} for n in range(start, start + count)))


ROWS = [
    caption_row("犬", FilePicture("a.png"), "own:a", "s"),
    question_row("何?", "3", FilePicture("0.tar", 512, 99), "coco:9", "s"),
    question_row("", "猫\u2028\n", TablePicture("t.parquet", 7, "images", 2), "vg:1", "s"),
    Row((Message("user", ("こんにちは",)), Message("assistant", ("はい",))), (), (), "s"),
    Row(
        (
            Message("system", ("短く",)),
            Message("user", (PICTURE, "と", PICTURE, "は?")),
            Message("assistant", ("一",)),
            Message("user", ()),
            Message("assistant", ("二",)),
        ),
        (FilePicture("a.png"), TablePicture("t.parquet", 0, "image")),
        ("own:a", "own:t/0.0"),
        "s",
    ),
]


def test_rows_come_out_of_columns_as_they_went_in():
    batch = Decoded(batch_of(ROWS))
    assert [batch.row(number, "s") for number in range(len(ROWS))] == ROWS
    assert Decoded(batch_of(ROWS).slice(3)).row(1, "s") == ROWS[4]
    with pytest.raises(ValueError, match="A MemoryPicture cannot be stored in a table of rows: FilePicture, "):
        batch_of([caption_row("犬", MemoryPicture("m", b""), "own:a", "s")])


def test_rows_of_another_program_are_selected_by_the_same_columns():
    (_, batch), stored = next(RowList(ROWS).batches()), batch_of(ROWS)
    assert all(batch.column(name).equals(stored.column(name)) for name in batch.schema.names)
    assert RowList(ROWS).rows_about({"a.png"}).tolist() == [0, 4]
    twice = [caption_row("犬", MemoryPicture("m", content), "own:a", "s") for content in (b"1", b"2")]
    keys = next(RowList(twice).batches())[1].column("picture_keys").flatten().to_pylist()
    assert keys[0] != keys[1]


def test_a_second_start_reads_no_data(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    source = as_source(captions(tmp_path / "rows.jsonl", 50))
    first = open_table(source)
    again = open_table(source)
    assert reads == ["rows.jsonl"] and len(again) == 50
    assert list(again) == list(first) and again[49].answer == "犬49" and again[7].source == "rows"
    assert [start for start, _ in again.batches()] == list(range(0, 50, 7))
    assert open_table(DataSource(source.path, name="other"))[0].source == "other" and len(reads) == 1
    assert list(pickle.loads(pickle.dumps(again))) == list(first)
    with pytest.raises(IndexError, match="has no row 50"):
        again[50]


def test_long_rows_are_written_in_smaller_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_BYTES", 100)
    found = open_table(as_source(captions(tmp_path / "rows.jsonl", 100)))
    assert len(list(found.batches())) > 2 and [row.answer for row in found] == [f"犬{n}" for n in range(100)]


def test_what_a_table_is_made_of(tmp_path, reads, folder):
    """Files, picture folders, reader and its version: each makes it anew, and the one of before goes."""
    path = captions(tmp_path / "rows.jsonl", 5)
    open_table(as_source(path))
    time.sleep(0.01)
    captions(path, 5, start=5)  # of the same size
    assert open_table(as_source(path))[0].answer == "犬5"
    assert (
        len(list(folder.iterdir())) == 1 == len([each for each in next(folder.iterdir()).iterdir() if each.is_dir()])
    )
    os.utime(path, ns=(1, 1))
    assert open_table(as_source(path))[0].answer == "犬5" and len(reads) == 3
    (tmp_path / "pictures").mkdir()
    images = DataSource(str(path), images=str(tmp_path / "pictures"))
    assert open_table(images)[0].pictures[0].path == str(tmp_path / "pictures/2.png")
    assert open_table(as_source(path))[0].pictures[0].path == str(tmp_path / "2.png") and len(reads) == 4


def test_a_reader_of_another_version_reads_anew(tmp_path, reads, monkeypatch):
    from dataclasses import replace

    from jminigpt4.data.readers import READERS

    path = captions(tmp_path / "rows.jsonl", 5)
    open_table(as_source(path))
    monkeypatch.setitem(READERS, "rows", replace(READERS["rows"], version=2))
    open_table(as_source(path))
    assert len(reads) == 2


def test_a_new_file_in_a_folder_is_seen(tmp_path, draw):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "metadata.jsonl", {"file_name": "0.png", "text": "犬"})
    assert len(open_table(as_source(data))) == 1
    draw(0).save(data / "0.png")
    write(data / "metadata.jsonl", *[{"file_name": "0.png", "text": "犬"}] * 2)
    assert len(open_table(as_source(data))) == 2


def test_pictures_that_come_and_go_are_found_where_they_are(tmp_path, reads):
    """Missing at first, then there, then moved; other names that appear beside them change nothing."""
    path, pictures = captions(tmp_path / "rows.jsonl", 6), tmp_path / "pictures"
    pictures.mkdir()
    source = DataSource(str(path), images=str(pictures))

    def rows() -> list[bool]:
        table = open_table(source)
        return [os.path.isfile(table[number].pictures[0].path) for number in range(3)]

    assert rows() == [False] * 3
    (pictures / "0.png").touch()
    assert rows() == [True, False, False] and len(reads) == 2
    (pictures / "train2014").mkdir()
    (pictures / "other.png").touch()
    assert rows() == [True, False, False] and len(reads) == 2  # nothing that a row asks for
    (pictures / "train2014/1.png").touch()
    (pictures / "train2014/2.png").touch()
    assert rows() == [True] * 3 and len(reads) == 3
    (pictures / "0.png").rename(pictures / "train2014/0.png")
    assert rows() == [True] * 3 and len(reads) == 4
    (pictures / "train2014/0.png").unlink()
    assert rows() == [False, True, True] and len(reads) == 5
    assert rows() == [False, True, True] and len(reads) == 5


def test_bad_rows_are_left_out_listed_and_known_without_reading(tmp_path, reads):
    rows = [{"image": "a.png", "caption": f"犬{number}"} for number in range(9)]
    rows[2] = rows[5] = {"image": "a.png", "caption": 3}
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(ValueError, match="line 3: `caption` must be a valid string, got 3"):
        open_table(as_source(path), refuse)
    table = open_table(as_source(path))
    assert (
        len(table) == 7
        and [bad.place for bad in table.bad] == ["line 3", "line 6"]
        and table.bad[-1].place == "line 6"
    )
    assert len(reads) == 2
    with pytest.raises(ValueError, match="line 3: `caption` must be a valid string, got 3"):
        open_table(as_source(path), refuse)
    assert len(open_table(as_source(path)).bad) == 2 and len(reads) == 2


def test_nothing_of_an_aborted_reading_is_taken_for_a_table(tmp_path, folder, monkeypatch):
    path = captions(tmp_path / "rows.jsonl", 20)
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"image": "a.png"}\n')
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    with pytest.raises(ValueError, match="line 21"):
        open_table(as_source(path), refuse)
    (home,) = folder.iterdir()
    assert list(home.iterdir()) == []
    empty = write(tmp_path / "empty.jsonl", {"image": "a.png", "caption": 3})
    with pytest.raises(
        ValueError,
        match="no rows that can be used; the first of 1 bad ones: .*line 1: `caption`",
    ):
        open_table(as_source(empty))


def test_a_process_that_is_killed_leaves_no_table(tmp_path, folder, killed_at, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    source = as_source(captions(tmp_path / "rows.jsonl", 20))
    _, operations = killed_at(lambda: open_table(source), folder)
    for last in range(1, operations + 1, 2):
        for home in folder.iterdir():
            for leftover in home.rglob("*"):
                if leftover.name == "table.json":
                    leftover.unlink()  # it was not there
        status, _ = killed_at(lambda: open_table(source), folder, last)
        assert status == -signal.SIGKILL
        assert [row.answer for row in open_table(source)] == [f"犬{number}" for number in range(20)]
    (home,) = folder.iterdir()
    assert len(list(home.iterdir())) == 1


def _open(source, counted, started):
    def rows_of(*given):
        with counted.get_lock():
            counted.value += 1
        time.sleep(0.3)
        return rows(*given)

    rows, tables.rows_of = tables.rows_of, rows_of
    started.wait()
    assert len(open_table(source)) == 50


def test_processes_that_start_together_read_once(tmp_path):
    context = multiprocessing.get_context("fork")
    source, counted, started = (
        as_source(captions(tmp_path / "rows.jsonl", 50)),
        context.Value("q", 0),
        context.Barrier(3),
    )
    processes = [context.Process(target=_open, args=(source, counted, started)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0] and counted.value == 1


def test_a_folder_that_cannot_be_written_is_named_with_its_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JMINIGPT4_ROWS", str(tmp_path / "file"))
    with pytest.raises(OSError, match="JMINIGPT4_ROWS names another folder"):
        open_table(as_source(captions(tmp_path / "rows.jsonl", 5)))


def test_rows_are_found_by_the_names_of_their_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    table = open_table(as_source(captions(tmp_path / "rows.jsonl", 20)))
    assert table.rows_about({str(tmp_path / "1.png"), "nothing"}).tolist() == list(range(1, 20, 3))
    assert table.rows_about(set()).dtype == np.int64 and len(table.rows_about({"x"})) == 0


def test_a_table_without_its_facts_is_none(tmp_path):
    table = open_table(as_source(captions(tmp_path / "rows.jsonl", 5)))
    (table.folder / "table.json").unlink()
    with pytest.raises(FileNotFoundError):
        RowTable(table.folder, "s")
    assert len(open_table(as_source(tmp_path / "rows.jsonl"))) == 5
