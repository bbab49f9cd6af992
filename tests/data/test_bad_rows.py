"""Rows that are wrong: found, named by file, line and field, or left out and counted; never changed in silence."""

import copy
import io
import json
import os
import random
import resource
import tarfile
import time

import pytest
from typer.testing import CliRunner

from jminigpt4.cli import app
from jminigpt4.data.id_lists import read_ids
from jminigpt4.data.pictures import FilePicture
from jminigpt4.data.readers import DataSource, as_source, read_source
from jminigpt4.data.rows import PICTURE
from jminigpt4.train.recipe import Recipe
from jminigpt4.train.selection import CocoTwins
from jminigpt4.train.sources import read_data


def conversation(row) -> list:
    return [["@" if part is PICTURE else part for part in message.parts] for message in row.conversation]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def ask(content, answer="犬"):
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def turns(*values):
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


READ = {
    "a place in a text": (
        {"images": ["a.png", "b.png"], "messages": ask("<image>\n<image> 違いは?")},
        [["@", "@", "違いは?"], ["犬"]],
    ),
    "a place between texts": (
        {"image": "a.png", "messages": ask([{"type": "text", "text": "この<image>は?"}])},
        [["この", "@", "は?"], ["犬"]],
    ),
    "a place in a question": ({"image": "a.png", "question": "何? <image>", "answer": "犬"}, [["何?", "@"], ["犬"]]),
    "one picture, not its letters": ({"images": "0.png", "caption": "犬"}, [["@"], ["犬"]]),
    "answers that are numbers": ({"image": "a.png", "question": "何匹?", "answer": 3}, [["@", "何匹?"], ["3"]]),
    "answers that are booleans": ({"image": "a.png", "question": "犬?", "answer": True}, [["@", "犬?"], ["true"]]),
    "llava: images": ({"images": ["a.png"], "conversations": turns("何?", "犬")}, [["@", "何?"], ["犬"]]),
    "text that parts lines elsewhere": (
        {"image": "a.png", "caption": "一\u2028二\u2029三\x85四\x0c五"},
        [["@"], ["一\u2028二\u2029三\x85四\x0c五"]],
    ),
}


@pytest.mark.parametrize(("row", "expected"), READ.values(), ids=READ)
def test_what_is_meant_is_read(tmp_path, row, expected):
    (read,) = read_source(as_source(lines(tmp_path / "rows.jsonl", row)))
    assert conversation(read) == expected


REFUSED = {
    "a place too many": (
        {"image": "a.png", "messages": ask("<image><image>何?")},
        "2 places for pictures, 1 pictures",
    ),
    "a place too few": (
        {"images": ["a.png", "b.png"], "messages": ask("<image>何?")},
        "1 places for pictures, 2 pict",
    ),
    "a place in an answer": (
        {"image": "a.png", "messages": ask("何?", "<image>犬")},
        "<image> stands in a text of the",
    ),
    "a place in a caption": ({"image": "a.png", "caption": "<image>"}, "<image> stands in a text of the assistant"),
    "llava: a place too many": (
        {"image": "a.png", "conversations": turns("<image><image>", "犬")},
        "2 places for pictures, 1 pict",
    ),
    "llava: a place too few": (
        {"image": ["a", "b"], "conversations": turns("<image>", "犬")},
        "1 places for pictures, 2 pict",
    ),
    "llava: a place and no picture": ({"conversations": turns("<image>何?", "犬")}, "1 places for pictures, 0 pict"),
    "llava: null": ({"image": "a.png", "conversations": turns("何?", None)}, "`value` is missing"),
    "llava: a number": (
        {"conversations": turns("何?", 3)},
        r"`conversations\.1\.value` must be a valid string, got 3",
    ),
    "null": ({"image": "a.png", "messages": ask(None)}, r"`messages\.0\.content` must be a valid list, got None"),
    "a text of null": ({"image": "a.png", "messages": ask([{"type": "text", "text": None}])}, "there is no `text`"),
    "a number": ({"image": "a.png", "caption": 3}, "`caption` must be a valid string, got 3"),
    "a list": ({"image": "a.png", "question": ["何?"], "answer": "犬"}, "`question` must be a valid string"),
    "an object": ({"image": {"path": "a.png"}, "caption": "犬"}, "`image` must be a valid list"),
    "a picture that is a number": ({"image": 5, "caption": "犬"}, r"`image\.0` must be a valid string, got 5"),
    "a picture without a name": ({"images": [" "], "caption": "犬"}, r"`images\.0`: is no name of a picture"),
    "a picture with NUL": ({"image": "a\0.png", "caption": "犬"}, r"`image\.0`: is no name of a picture"),
    "two kinds of pictures": ({"image": "a.png", "images": ["b.png"], "caption": "犬"}, "name different pictures"),
    "white space": ({"image": "a.png", "caption": " \u3000\n"}, "an answer is empty or only white space"),
    "an id that is true": (
        {"image": "a.png", "caption": "犬", "image_id": True},
        r"`image_id\.0`: is neither a text nor",
    ),
    "messages of text": ({"messages": "こんにちは"}, "`messages` must be a valid list"),
    "a part of another kind": ({"messages": ask([{"type": "audio"}])}, r"`messages\.0\.content\.0\.type` must be"),
}


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_named_and_can_be_skipped(tmp_path, row, message):
    good = {"image": "a.png", "caption": "猫"} if "conversations" not in row else {"conversations": turns("a", "b")}
    path = lines(tmp_path / "rows.jsonl", good, row)
    with pytest.raises(ValueError, match=rf"^{path}, line 2: .*{message}"):
        read_source(as_source(path))
    bad = []
    assert len(read_source(as_source(path), bad.append)) == 1
    assert [(each.file, each.place) for each in bad] == [(str(path), "line 2")]


@pytest.mark.parametrize("coding", ["cp932", "utf-16", "utf-16-le", "euc-jp"])
def test_other_encodings_are_named_with_file_and_line(tmp_path, coding):
    text = json.dumps({"image": "a.png", "caption": "表示ソフト"}, ensure_ascii=False) + "\n"
    path = tmp_path / "rows.jsonl"
    path.write_bytes((text * 2).encode(coding))
    with pytest.raises(ValueError, match=rf"{path}, line 1.*(not UTF-8|not JSON)"):
        read_source(as_source(path))
    path.write_bytes(b'{"image": "a.png", "caption": "a"}\n' + text.encode(coding))
    with pytest.raises(ValueError, match=rf"{path}, line 2.*(not UTF-8|not JSON)"):
        read_source(as_source(path))
    path = tmp_path / "rows.json"
    path.write_bytes(('{"images": [], \n"annotations": [{"caption": "表示ソフト"}]}').encode(coding))
    with pytest.raises(ValueError, match=rf"{path} is not (UTF-8( but UTF-16| in line 2)|JSON)"):
        read_source(as_source(path))
    (tmp_path / "ids.txt").write_bytes("9\n表示.jpg\n".encode(coding))
    with pytest.raises(ValueError, match=r"ids.txt, line \d"):
        read_ids(tmp_path / "ids.txt")


def test_a_byte_order_mark_is_dropped(tmp_path, draw):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"image": "a.png", "caption": "犬"}).encode() + b"\n")
    assert read_source(as_source(path))[0].answer == "犬"
    shard(tmp_path / "0.tar", ("a.png", png(draw)), ("a.txt", b"\xef\xbb\xbf" + "犬".encode()))
    assert read_source(as_source(tmp_path / "0.tar"))[0].answer == "犬"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"image": "a.png", "caption": "\\ud83d"}', r"line 2: holds \\ud83d alone, half of a surrogate pair"),
        (b"[" * 100_000, "line 2: is nested too deeply"),
        (b'{"image": "a.png", "caption": ' + b"9" * 5000 + b"}", "line 2: is not JSON"),
        (b'{"image": "a.png", "question": "q", "answer": NaN}', "line 2: `answer` must be a valid string, got nan"),
        (b"\x80", r"line 2: is not UTF-8 \(byte 0x80\): save it as UTF-8"),
    ],
)
def test_json_that_is_none(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"image": "a.png", "caption": "\\ud83d\\udc36"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message):
        read_source(as_source(path))


def png(draw) -> bytes:
    draw(0).save(buffer := io.BytesIO(), format="PNG")
    return buffer.getvalue()


def shard(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            information = tarfile.TarInfo(name)
            information.size = len(content)
            tar.addfile(information, io.BytesIO(content))


def sparse(path, name: str, size: int):
    """A tar of 1 KB with a GNU sparse file that unpacks to `size` bytes."""
    header = tarfile.TarInfo(name)
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:398], block[398:410] = b"%011o\0" % size, b"%011o\0" % 0  # one piece: at the end, of no bytes
    block[483:495] = b"%011o\0" % size
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(1024))


@pytest.mark.parametrize("name", ["a.txt", "a.png"])
def test_a_tar_is_read_by_its_real_size(tmp_path, draw, name):
    sparse(tmp_path / "0.tar", name, 7_000_000_000)
    shard(tmp_path / "1.tar", ("b.png", png(draw)), ("b.txt", "犬".encode()))
    with pytest.raises(ValueError, match=f"0.tar, '{name}': a sparse file, which unpacks to 7,000,000,000 bytes"):
        read_source(as_source(tmp_path))
    bad = []
    assert len(read_source(as_source(tmp_path), bad.append)) == len(bad) == 1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", bytes(1_000_001))], "its text has 1,000,001 bytes"),
        ([("a.txt", "表示".encode("cp932"))], r"'a.txt': is not UTF-8 \(byte 0x95\)"),
        ([("a.json", b'{"caption": 3}')], "'a.json': `caption` must be a valid string, got 3"),
        ([("a.json", b"{")], "'a.json': is not JSON"),
        ([("a.json", b"[1]")], "'a.json': is not a JSON object"),
        ([("a.txt", b" \n")], "an answer is empty or only white space"),
        ([("\udc95.txt", b"x")], "its name is not UTF-8"),
    ],
)
def test_what_is_wrong_in_a_tar_is_named(tmp_path, draw, members, message):
    shard(tmp_path / "0.tar", ("a.png", png(draw)), *members)
    with pytest.raises(ValueError, match=f"0.tar, .*{message}"):
        read_source(as_source(tmp_path / "0.tar"))


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "large", "nowhere", "nul"])
def test_only_regular_files_of_a_pictures_size_are_read(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    name = {"device": "/dev/zero", "nul": "a\0b"}.get(kind, str(path))
    start = time.process_time()
    with pytest.raises(OSError, match="no regular file|at most 200,000,000|No such file|cannot be the name"):
        FilePicture(name).read()
    assert time.process_time() - start < 1


def test_a_data_file_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(OSError, match="no regular file"):
        read_source(as_source(tmp_path / "rows.jsonl"))


@pytest.fixture
def mixed(tmp_path, draw):
    """Twenty rows, of which the third lacks its caption."""
    draw(0).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "caption": f"犬{number}"} for number in range(20)]
    rows[2] = {"image": "a.png", "caption": 3}
    return lines(tmp_path / "mixed.jsonl", *rows)


def test_bad_rows_are_counted_listed_and_limited(mixed, capsys):
    with pytest.raises(ValueError, match=r"mixed.jsonl, line 3: `caption` must"):
        read_data(str(mixed), Recipe(), CocoTwins())
    (source,) = read_data(str(mixed), Recipe(on_bad_row="skip"), CocoTwins())
    assert sum(len(group.rows) for group in source.training) == 19
    assert [bad.place for bad in source.bad_rows] == ["line 3"]
    assert "1 of 20 rows of mixed are left out, the first: " in capsys.readouterr().out
    lines(mixed, {"image": "a.png", "caption": "犬"}, *[{"image": "a.png"}] * 3)
    with pytest.raises(
        ValueError, match="3 of 4 rows of mixed are bad, more than max_bad_share 0.05. The first: .*line 2"
    ):
        read_data(str(mixed), Recipe(on_bad_row="skip"), CocoTwins())
    with pytest.raises(ValueError, match="`on_bad_row` must be 'skip' or 'raise'"):
        Recipe(on_bad_row="ignore")


def test_data_counts_bad_rows_and_shows_them(mixed):
    result = CliRunner().invoke(app, ["data", str(mixed)], catch_exceptions=False)
    assert "19 rows about 1 pictures" in result.stdout
    assert f"  bad rows: 1\n    {mixed}, line 3: `caption` must be a valid string, got 3." in result.stdout


QUESTION = {"qa_id": 1, "image_id": 7, "question": "何?", "answer": "犬"}
# Whole values of every layout that is JSON, and the name of a file that the reader knows it by.
LAYOUTS = {
    "jsonl": ("rows.jsonl", {"images": ["a.png"], "image_ids": ["coco:9"], "messages": ask([{"type": "image"}])}),
    "caption": ("rows.jsonl", {"image": "a.png", "caption": "犬", "image_id": 9, "coco_id": 3.0}),
    "question": ("rows.jsonl", {"file_name": "a.png", "question": "何?", "answer": 3}),
    "imagefolder": ("metadata.jsonl", {"file_name": "a.png", "text": "犬"}),
    "llava": ("rows.json", [{"id": 1, "image": "a.png", "conversations": turns("<image>何?", "犬")}]),
    "llava-lines": ("rows.jsonl", {"id": 1, "image": "a.png", "conversations": turns("<image>何?", "犬")}),
    "coco-captions": (
        "rows.json",
        {"images": [{"id": 9, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "犬"}]},
    ),
    "ja-vg-vqa": ("rows.json", [{"id": 7, "qas": [QUESTION, QUESTION]}]),
    "minigpt4-align": ("rows.json", {"annotations": [{"image_id": "2", "caption": "a cat"}]}),
}
FOREIGN = [None, True, 0, -1, 2.5, 10**30, float("nan"), "", " ", "<image>", "\ud83d", "\0", "a" * 5000, [], {}, [[]]]
FOREIGN += [["a.png"] * 2, {"type": "image"}, {"a": {"b": []}}, [None], [3], "../../etc/passwd", "\u2028", "\ufeff"]


def mutate(value, generator):
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
        if generator.random() < 0.15:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(generator.choice(FOREIGN))
    return value


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutated_rows_are_read_or_named(tmp_path, layout):
    """250 of each layout, and a few with bytes changed: nothing but rows and sentences with file and place."""
    generator = random.Random(layout)
    name, whole = LAYOUTS[layout]
    path = tmp_path / name
    before, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for number in range(250):
        content = bytearray(json.dumps(mutate(whole, generator)).encode())
        if number % 5 == 0:
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        source = DataSource(
            str(path), reader={"caption": "jsonl", "question": "jsonl"}.get(layout, layout.split("-lines")[0])
        )
        start = time.process_time()
        try:
            for row in read_source(source):
                json.dumps(row.messages(), ensure_ascii=False).encode()
                assert row.answer.strip() and all(isinstance(each, str) for each in row.image_ids)
                read += 1
        except ValueError as error:
            assert str(path) in str(error), error
        assert time.process_time() - start < 5
    assert read
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


def test_mutated_tars_are_read_or_named(tmp_path, draw):
    generator = random.Random(0)
    path = tmp_path / "0.tar"
    shard(path, ("a.png", png(draw)[:600]), ("a.txt", "犬".encode()), ("b.png", b"x"), ("b.json", b'{"caption": "a"}'))
    whole, read = path.read_bytes(), 0
    for _ in range(300):
        content = bytearray(whole[: generator.choice((len(whole), 5000, 2000))])
        for _ in range(generator.randint(1, 4)):
            header = generator.choice((0, 1536, 2560)) % (len(content) - 511)
            content[header + generator.randrange(512)] = generator.randrange(256)
        path.write_bytes(content)
        try:
            read += len(read_source(as_source(path)))
        except ValueError as error:
            assert str(path) in str(error), error
    assert read
