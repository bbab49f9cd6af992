"""Files dragged into a terminal, as terminals type them, and questions that are none."""

import os
import socket
from pathlib import Path

import pytest

from jminigpt4.chat.typed_files import local_name, typed_files, typed_pictures

FILES = (
    "鍵.png",
    "my cat.png",
    "it's.png",
    "a.jpg",
    "b.jpg",
    "犬　猫.png",
    'say "hi".png',
    "100%.png",
    "a#b.png",
    "notes",
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a space in its name and pictures in it, which is the current one."""
    folder = tmp_path / "絵 フォルダ"
    folder.mkdir()
    for name in FILES:
        (folder / name).touch()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def escaped(path: str) -> str:
    return "".join(f"\\{each}" if each in " '\"%#　" else each for each in path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "typed",
    [
        lambda path: path,
        lambda path: f"{path} ",
        lambda path: "'" + path.replace("'", "'\\''") + "' ",
        lambda path: '"' + path.replace('"', '\\"') + '"',
        escaped,
        lambda path: Path(path).as_uri(),
        lambda path: Path(path).as_uri().replace("file://", "file://localhost"),
        lambda path: Path(path).as_uri().replace("file://", "FILE:"),
        lambda path: f"file://{path.replace('%', '%25')}",
    ],
)
@pytest.mark.parametrize("question", ["", "何が写ってる?", "これは cat.png ですか?"])
def test_a_file_dragged_in(folder, name, typed, question):
    path = str(folder / name)
    assert typed_pictures(f"{typed(path)} {question}".rstrip(" ") if question else typed(path)) == ([path], question)
    assert typed_files(typed(path)) == [path]


@pytest.mark.parametrize(
    ("line", "names", "question"),
    [
        ("'D/鍵.png'何色?", ["D/鍵.png"], "何色?"),  # no space is typed in Japanese
        ("D/鍵.png　何色?", ["D/鍵.png"], "何色?"),
        ("D/a.jpg D/b.jpg 何が違う?", ["D/a.jpg", "D/b.jpg"], "何が違う?"),
        ("'D/a.jpg' 'D/my cat.png'", ["D/a.jpg", "D/my cat.png"], ""),
        ("D/my cat.png D/a.jpg", ["D/my cat.png", "D/a.jpg"], ""),
        ("file://D/a.jpg\r\nfile://D/b.jpg\r\n", ["D/a.jpg", "D/b.jpg"], ""),
        ("D/a.jpg D/a.jpg", ["D/a.jpg", "D/a.jpg"], ""),
        ("~/a.jpg 何?", ["~/a.jpg"], "何?"),
        ("./a.jpg", ["./a.jpg"], ""),
        ("a.jpg 何色?", ["a.jpg"], "何色?"),
        ("my cat.png", ["my cat.png"], ""),
        ("D/notes", ["D/notes"], ""),  # what it is, is found out by opening it
    ],
)
def test_several_files_and_questions(folder, line, names, question):
    (folder / "my").touch()  # the longest name that exists is meant
    expected = [name.replace("D", str(folder)) for name in names]
    assert typed_pictures(line.replace("D", str(folder))) == (expected, question)


@pytest.mark.parametrize(
    "question",
    [
        "何が写ってる?",
        "notes",  # a file of that name is here
        "notes は何?",
        "これはa.jpgですか",
        "a.jpgは何?",
        "missing.jpg とは何ですか",
        "この絵の名前はmissing.jpg",
        "'これ'は何?",
        '"missing.jpg" って何?',
        "/ は何の記号?",
        "/tmp は何?",
        "C:ドライブは何?",
        "~ は何?",
        "..。",
        "",
        "長" * 5000 + " a.jpg",
        "\0.png",
        "file: とは?",
    ],
)
def test_a_question_is_no_file(folder, question):
    assert typed_pictures(question) == ([], question)


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("D/nowhere.png", "D/nowhere.png"),
        ("D/nowhere.HEIC 何色?", "D/nowhere.HEIC"),
        ("'D/no where.png' 何色?", "D/no where.png"),
        ("D/no\\ where.png", "D/no where.png"),
        ("D/no where.png 何?", "D/no where.png"),
        ("D/a.jpg D/nowhere.png", "D/nowhere.png"),
        ("file://D/%E7%84%A1.png", "D/無.png"),
        ("C:\\Users\\me\\無.png 何?", "C:\\Users\\me\\無.png"),
        ("file:///C:/Users/me/no%20where.png", "C:/Users/me/no where.png"),
        ("\\\\server\\share\\無.png", "\\\\server\\share\\無.png"),
        ("~nosuchuser/a.png", "~nosuchuser/a.png"),
        ("nowhere.png", "nowhere.png"),
        ("photos/nowhere.png", "photos/nowhere.png"),
    ],
)
def test_a_picture_that_is_not_there_is_one_sentence(folder, line, missing):
    with pytest.raises(ValueError) as raised:
        typed_pictures(line.replace("D", str(folder)))
    assert str(raised.value) == f"No picture at {missing.replace('D', str(folder))}."


@pytest.mark.skipif(os.name == "nt", reason="there such names are paths")
def test_paths_of_windows(folder):
    """The same names as files of this system: backslashes are letters here, `C:` a folder."""
    (folder / "C:\\Users\\me\\鍵 1.png").touch()
    (folder / "\\\\server\\絵.png").touch()
    (folder / "C:" / "Users").mkdir(parents=True)
    (folder / "C:" / "Users" / "鍵 2.png").touch()
    for line, name in (
        ("C:\\Users\\me\\鍵 1.png", "C:\\Users\\me\\鍵 1.png"),
        ('"C:\\Users\\me\\鍵 1.png"', "C:\\Users\\me\\鍵 1.png"),
        ("\\\\server\\絵.png", "\\\\server\\絵.png"),
        ("C:/Users/鍵 2.png", "C:/Users/鍵 2.png"),
        ("file:///C:/Users/%E9%8D%B5%202.png", "C:/Users/鍵 2.png"),
        ("file:///C:\\Users\\鍵 2.png", "C:/Users/鍵 2.png"),
    ):
        assert typed_pictures(f"{line} 何色?") == ([name], "何色?")


def test_addresses_of_files():
    assert local_name("file:///a/%E9%8D%B5.png") == "/a/鍵.png"
    assert local_name(f"file://{socket.gethostname()}/a.png") == "/a.png"
    assert local_name("file://server/share/a.png") == "//server/share/a.png"
    assert local_name("file:/a.png") == "/a.png"
    assert local_name("file:///a/%FF.png") == "/a/\udcff.png"  # a name in another encoding is still a name
    assert local_name("https://example.com/a.png") == "https://example.com/a.png"
    assert local_name("file: とは?") == "file: とは?"


def test_names_alone(folder):
    assert typed_files("notes  a.jpg 'no such' https://example.com/a.png") == [
        *("notes", "a.jpg", "no such", "https://example.com/a.png")
    ]
    assert typed_files("'un closed") == ["un closed"]
    assert typed_files("C:\\none\\a.png") == ["C:\\none\\a.png"]
    assert typed_files("my cat.png a.jpg") == ["my cat.png", "a.jpg"]
    assert typed_files("") == []
