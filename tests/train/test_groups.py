"""Groups of rows on columns: what a plain loop over the rows gives, for any choice of them."""

import pickle
import random
from collections import Counter

import numpy as np
import pytest

from jminigpt4.data import columns
from jminigpt4.data import table as tables
from jminigpt4.data.pictures import FilePicture
from jminigpt4.data.readers import as_source
from jminigpt4.data.rows import Message, Row
from jminigpt4.data.table import RowList, open_table
from jminigpt4.train import groups as grouping_module
from jminigpt4.train.groups import distinct_pictures, group, split
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.selection import CocoTwins
from jminigpt4.train.sources import pictures_of, read_data, without_pictures_called

NONE = np.empty(0, np.int64)


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows about none, one or two of a few pictures, in no order."""
    generator, rows = random.Random(seed), []
    for number in range(count):
        names = [f"{generator.randrange(9)}.png" for _ in range(generator.choice((0, 1, 1, 1, 2)))]
        conversation = (Message("user", (columns.PICTURE,) * len(names)), Message("assistant", (f"犬{number}",)))
        ids = tuple(f"own:{name}" for name in names)
        rows.append(Row(conversation, tuple(map(FilePicture, names)), ids, "s"))
    return rows


def expected(rows: list[Row], most: int | None = None) -> list[list[Row]]:
    together: dict = {}
    for number, row in enumerate(rows):
        together.setdefault(row.pictures or number, []).append(row)
    size = most or len(rows)
    return [each[start : start + size] for each in together.values() for start in range(0, len(each), size)]


@pytest.fixture(params=["list", "table"])
def make_table(request, tmp_path, monkeypatch):
    """A table in memory, and one on disk in batches of seven rows."""

    def make(rows: list[Row]):
        if request.param == "list":
            return RowList(rows)
        monkeypatch.setenv("JMINIGPT4_ROWS", str(tmp_path / "tables"))
        monkeypatch.setattr(tables, "BATCH_ROWS", 7)
        monkeypatch.setattr(tables, "rows_of", lambda *given: iter(rows))
        (tmp_path / "s.jsonl").write_text('{"image": "a", "caption": "b"}')
        return open_table(as_source(tmp_path / "s.jsonl"))

    monkeypatch.setattr(grouping_module, "CHUNK", 5)
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    return make


@pytest.mark.parametrize("most", [None, 1, 2, 3])
def test_groups_are_those_of_a_loop(make_table, most):
    rows = make_rows(60)
    found, nothing = split(group(make_table(rows), NONE, CocoTwins(), most), 0.0)
    wanted = expected(rows, most)
    assert [list(each.rows) for each in found] == wanted and len(nothing) == 0
    assert [list(each.rows) for each in found[::-3]] == wanted[::-3] and list(found[-1].rows) == wanted[-1]
    assert [list(each.rows) for each in found[2:9][1:3]] == wanted[3:5]
    again = pickle.loads(pickle.dumps(found))
    assert [list(each.rows) for each in again] == wanted
    grouping = found.grouping
    assert [int(each) for each in grouping.pictures[:]] == [len(rows[0].pictures) for rows in wanted]
    assert [int(each) for each in grouping.longest[:]] == [max(map(columns.text_bytes, rows)) for rows in wanted]
    with pytest.raises(IndexError):
        found[len(found)]
    with pytest.raises(ValueError, match="rows_per_picture must be at least 1, got 0"):
        group(found.grouping.table, NONE, CocoTwins(), 0)


def test_rows_are_left_out_before_they_are_grouped(make_table):
    rows = make_rows(40)
    table, chosen = make_table(rows), [row for number, row in enumerate(rows) if number not in (0, 7, 39)]
    found, _ = split(group(table, np.array([0, 7, 39]), CocoTwins()), 0.0)
    assert [list(each.rows) for each in found] == expected(chosen)
    shown, _ = split(group(table, NONE, CocoTwins(), without_pictures=False), 0.0)
    assert [list(each.rows) for each in shown] == expected([row for row in rows if row.pictures])
    nothing, _ = split(group(table, np.arange(40), CocoTwins()), 0.0)
    assert len(nothing) == 0 and list(distinct_pictures([nothing])) == []


def test_groups_go_without_some_of_them_and_of_their_rows(make_table):
    rows = make_rows(60)
    training, validation = split(group(make_table(rows), NONE, CocoTwins()), 0.4)
    assert len(validation) > 2 and not any(not each.pictures for each in validation)
    both = Counter(row.answer for groups in (training, validation) for each in groups for row in each.rows)
    assert both == Counter(row.answer for row in rows)
    for groups in (training, validation):
        numbers = np.concatenate(list(groups.chunks()))
        left = groups.drop(numbers[1:3])
        assert [each.rows for each in left] == [
            each.rows for number, each in enumerate(groups) if number not in (1, 2)
        ]
        again = left.drop(numbers[:1])
        assert [each.rows for each in again] == [each.rows for each in groups[3:]]
        members = groups.grouping.rows_of(int(numbers[0]))
        fewer = groups.drop(NONE, members[:1].astype(np.int64))
        assert fewer[0].rows == groups[0].rows[1:] and fewer[1:][0].rows == groups[1].rows
        assert len({groups.digest(), left.digest(), again.digest(), fewer.digest()}) == 4


def test_pictures_come_once(make_table):
    """Of one grouping, of rows that share pictures, and of two sources."""
    rows = make_rows(60)
    wanted = list(dict.fromkeys(picture for row in rows for picture in row.pictures))
    for most in (None, 1):
        halves = split(group(make_table(rows), NONE, CocoTwins(), most), 0.0)
        assert sorted(map(str, distinct_pictures(halves))) == sorted(map(str, wanted))
        assert halves[0].grouping.meta["pictures"] == len(wanted)
    other = split(group(RowList(make_rows(30, seed=1)), NONE, CocoTwins()), 0.5)
    third = split(group(RowList([*make_rows(3, seed=2), rows[5]]), NONE, CocoTwins()), 0.0)
    found = list(distinct_pictures([*halves, *other, *third]))
    assert len(found) == len(set(found)) and set(found) >= set(wanted)
    chosen = halves[0][3:8]
    assert list(distinct_pictures([chosen])) == list(dict.fromkeys(each for one in chosen for each in one.pictures))


def test_what_a_grouping_teaches_is_in_its_digest():
    rows = make_rows(20)
    other = [*rows[:-1], Row((*rows[-1].conversation[:-1], Message("assistant", ("猫",))), *_rest(rows[-1]))]

    def digest(rows, **options):
        return split(group(RowList(rows), NONE, CocoTwins(), **options), 0.0)[0].digest()

    moved = [Row(row.conversation, tuple(FilePicture(f"x/{each.path}") for each in row.pictures), *_rest(row)[1:])
             for row in rows]  # fmt: skip
    assert digest(rows) == digest(moved)
    assert (
        len({digest(rows), digest(other), digest(rows[:-1]), digest(rows[::-1]), digest(rows, rows_per_picture=1)})
        == 5
    )


def _rest(row: Row) -> tuple:
    return row.pictures, row.image_ids, row.source


def test_a_grouping_is_made_once_and_mapped_afterwards(captions, monkeypatch):
    recipe = Recipe(validation=0.3)
    (first,) = read_data(str(captions), recipe, CocoTwins())
    monkeypatch.setattr(grouping_module, "_arrays", lambda *given: pytest.fail("it was made again"))
    (again,) = read_data(str(captions), recipe, CocoTwins())
    assert [each.rows for each in again.training] == [each.rows for each in first.training]
    assert again.training.digest() == first.training.digest()
    monkeypatch.undo()
    (other,) = read_data(str(captions), recipe.with_(rows_per_picture=1), CocoTwins())
    assert len(other.training) + len(other.validation) == 24


def test_a_bad_picture_takes_all_its_groups_along(captions):
    (source,) = read_data(str(captions), Recipe(validation=0.3, rows_per_picture=2), CocoTwins())
    names = sorted({each.pictures[0].name for groups in (source.training, source.validation) for each in groups})
    assert len(names) == 8
    (left,) = without_pictures_called({names[0], names[5]}, [source])
    assert sorted(picture.name for picture in pictures_of([left])) == sorted({*names} - {names[0], names[5]})
    assert len(left.training) + len(left.validation) == 12
    with pytest.raises(ValueError, match="No picture of captions can be read"):
        without_pictures_called(set(names), [source])
