"""Large JSON: arrays element by element, lines of any length, in bounded memory and with the place of a fault."""

import json
import random
import resource

import pytest

from jminigpt4.data import json_entries, json_files
from jminigpt4.data.json_entries import list_entries, lists_entries
from jminigpt4.data.json_files import numbered_lines
from jminigpt4.data.readers import as_source, read_source


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Files are read seven bytes at a time, so that every kind of value is cut somewhere."""
    monkeypatch.setattr(json_entries, "PIECE", 7)


VALUES = [
    None,
    True,
    False,
    0,
    -12345,
    2.5,
    1e300,
    "",
    '犬😀\n"\\',
    "x" * 99,
    [],
    [[]],
    {},
    {"a": {"b": [1, "]"]}},
    "}]",
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_elements_are_those_that_a_whole_parse_gives(tmp_path, indent, ascii_only):
    generator, path = random.Random(0), tmp_path / "a.json"
    for count in (*range(12), 200):
        values = [generator.choice(VALUES) for _ in range(count)]
        text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
        path.write_text(generator.choice(["", "\ufeff", " \n"]) + text + "\n ", encoding="utf-8")
        assert list(list_entries(path)) == values
        whole = {"info": values, "images": values[:3], "o": {"annotations": [9], "x": values}, "annotations": values}
        path.write_text(json.dumps(whole, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        assert [list(each) for each in lists_entries(path, "annotations", "images")] == [values, values[:3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"a": 2} {"a": 3}]', r"a.json is not JSON: Expecting ',' delimiter: line 2 column 11"),
        (b'[{"a": 1},\n\n {"a": nix}]', r"a.json is not JSON: Expecting value: line 3 column 8"),
        (b"[1, 2", "a.json is not JSON: Expecting ',' delimiter"),
        (b'["abc', "a.json is not JSON: Unterminated string"),
        (b"[1] 2", "a.json is not JSON: Extra data: line 1 column 5"),
        (b"", "a.json is not JSON: Expecting value"),
        (b'{"a": []}', "a.json is not a JSON array"),
        (b"7", "a.json is not a JSON array"),
        ('[1,\n"表示"]'.encode("cp932"), r"a.json is not UTF-8 in line 2 \(byte 0x95\): save it as UTF-8"),
        ("[1]".encode("utf-16"), "a.json is not UTF-8 but UTF-16"),
        (b'["\\ud83d"]', r"a.json holds \\ud83d alone"),
        (b"[" * 100_000, "a.json is nested too deeply"),
    ],
)
def test_what_is_wrong_with_an_array_is_named_with_its_place(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(list_entries(tmp_path / "a.json"))


@pytest.mark.parametrize("content", ['{"images": [1]}', '{"images": [1], "annotations": {}}', "[]", "{}"])
def test_a_list_that_is_missing_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="is not a JSON object with lists called images and annotations"):
        [list(each) for each in lists_entries(tmp_path / "a.json", "images", "annotations")]


def test_an_element_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_entries, "MAX_ELEMENT", 1000)
    (tmp_path / "a.json").write_text('[1,\n"' + "x" * 5000 + '"]')
    with pytest.raises(ValueError, match="a.json, line 2: an element has more than 1,000 characters"):
        list(list_entries(tmp_path / "a.json"))


def test_reading_goes_on_behind_a_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_LINE", 1000)
    good = json.dumps({"image": "a.png", "caption": "犬"})
    long = json.dumps({"image": "a.png", "caption": "x" * 5000})
    exact = good[:-1] + " " * (1000 - len(good)) + "}"
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([good, long, exact, "", long + "x", good, long]))
    assert [number for number, _ in numbered_lines(path)] == [1, 2, 3, 5, 6, 7]
    bad = []
    assert len(read_source(as_source(path), bad.append)) == 3
    assert [each.place for each in bad] == ["line 2", "line 5", "line 7"]
    size = len(long)
    assert bad[0].reason == f"{path}, line 2: has {size:,} bytes: a line of at most 1,000 is read."
    assert f"has {size + 1:,} bytes" in bad[1].reason and f"has {size:,} bytes" in bad[2].reason


def test_a_line_of_a_hundred_megabytes_takes_no_more_memory_than_its_limit(tmp_path):
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"image": "a.png", "caption": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"image": "a.png", "caption": "dog"}\n')
    before, bad = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    (row,) = read_source(as_source(path), bad.append)
    assert row.answer == "dog" and "has 100,000,033 bytes: a line of at most 16,777,216 is read" in bad[0].reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120 * 1024


def test_a_row_of_more_text_than_any_model_reads_is_bad(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": "a.png", "caption": "x" * 1_000_001}))
    with pytest.raises(ValueError, match="line 1: its texts have 1,000,001 characters; at most 1,000,000 are read"):
        read_source(as_source(path))
