"""What terminal and page say: every text in both languages, and the language that a person gets."""

import ast
import errno
import os
import re
import string
from pathlib import Path

import pytest

import jminigpt4
from jminigpt4.chat import page_texts, terminal, texts, web

PACKAGE = Path(jminigpt4.__file__).parent
FRONT_ENDS = ("commands", "line_editor", "pictures", "session", "settings", "terminal", "transcript", "turns")
FRONT_ENDS += ("typed_files", "web")
# Functions that pictures of the front ends pass on their way.
OF_PICTURES = {"open_picture", "_check_pieces", "_check_tags", "_check_size", "_decode", "_undecoded", "_eight_bits"}
# Raised to programmers only, or by `serve`; and the sentence of `_refuse`, which is tested with the options.
FOR_PROGRAMMERS = {
    "There is no turn 7: the conversation has 7.",
    "Ask at least one question.",
    "The chat template wrote 7 image tokens for 7 pictures.",
    "--timeout must be a finite number of seconds, got 7.",
    "7 7.",
}
# What the system says of files, and values inside other texts.
BY_THE_SYSTEM = {"No such file or directory", "Permission denied", "Is a directory", "Not a directory"}
BY_THE_SYSTEM |= {"No space left on device", "Read-only file system", "File name too long", "File exists"}


def filled_in(node: ast.AST) -> list[str]:
    """The texts that an expression can be, with 7 for every value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(each.value if isinstance(each, ast.Constant) else "7" for each in node.values)]
    if isinstance(node, ast.IfExp):
        return filled_in(node.body) + filled_in(node.orelse)
    return []


def raised(tree: ast.AST) -> list[str]:
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    return [text for call in calls for argument in call.args[:1] for text in filled_in(argument)]


def refusals() -> set[str]:
    """Everything that a person at the terminal or before the page can be refused with, found in the source."""
    found = set()
    for name in FRONT_ENDS:
        found |= set(raised(ast.parse((PACKAGE / "chat" / f"{name}.py").read_text(encoding="utf-8"))))
    hub_file = ast.parse((PACKAGE / "image_processing_jminigpt4.py").read_text(encoding="utf-8"))
    for node in ast.walk(hub_file):
        if isinstance(node, ast.FunctionDef) and node.name in OF_PICTURES:
            found |= set(raised(node))
    return {" ".join(text.split()) for text in found if text not in FOR_PROGRAMMERS and "AttributeError" not in text}


def test_every_refusal_has_its_japanese():
    found = refusals()
    assert len(found) > 45  # the search itself finds them
    assert [said for said in sorted(found) if texts.translated(said, "ja") == said] == []


def phrases() -> set[str]:
    """Texts that are said by name."""
    found = set(page_texts.LABELS.values()) | set(page_texts.GRADIO_TEXTS)
    found |= {description for _, description in terminal.COMMANDS.values()}
    for name in FRONT_ENDS:
        module = ast.parse((PACKAGE / "chat" / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(module):
            called = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if called in ("phrase", "_say"):
                argument = node.args[1 if called == "phrase" else 0]
                if isinstance(argument, ast.Name):
                    found.add(getattr(terminal if name == "terminal" else web, argument.id, argument.id))
                else:
                    found |= set(filled_in(argument))
    return found - {"english", "description"}


def test_every_phrase_stands_in_the_table_and_nothing_else_does():
    used = phrases() | {web.FORGOTTEN, web.EVICTED, web.WITHDRAWN, web.FAILED, web.BUSY}
    assert len(used) > 45 and [each for each in sorted(used) if each not in texts.JAPANESE] == []
    by_refusals = {
        english
        for english in texts.JAPANESE
        if any(re.fullmatch(pattern_of(english), said) for said in refusals())
        or any(english.endswith(f": {each}.") for each in BY_THE_SYSTEM)
    }
    transcript = {each for each in texts.JAPANESE if "is not a transcript" in each}  # pydantic's reason is added
    values = {"picture {number}", "picture", "The line", "The question", "The persona", "a QUESTION"}
    values |= {"Line {number} of standard input"}
    elsewhere = {"{name} names the home of a user whom this machine does not know."}
    elsewhere |= {f"{why} {{option}}." for why in ("--web takes no", "Only --web takes", "--greedy takes no")}
    assert set(texts.JAPANESE) - used - by_refusals - transcript - values - elsewhere == set()


def pattern_of(english: str) -> str:
    return "".join(
        re.escape(words) + (".+?" if name else "") for words, name, _, _ in string.Formatter().parse(english)
    )


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("english", texts.JAPANESE)
def test_both_languages_tell_the_same_and_neither_the_other(english):
    japanese = texts.JAPANESE[english]
    assert fields(japanese) <= fields(english)
    assert english.isascii() or "…" in english
    assert re.search("[\u3040-\u30ff\u4e00-\u9fff]", japanese)


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja"}, "ja"),
        ({"LANG": "ja_JP.eucJP"}, "ja"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "en_GB.UTF-8"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "", "LC_MESSAGES": ""}, "ja"),
        ({"LANG": "jam_JM"}, "en"),
        ({"LANG": "C.UTF-8", "LC_CTYPE": "ja_JP.UTF-8"}, "en"),
    ],
)
def test_the_language_of_the_terminal(environment, language):
    assert texts.terminal_language(environment) == language


@pytest.mark.parametrize(
    ("name", "language"), [("Japanese_Japan", "ja"), ("ja_JP", "ja"), ("English_United States", "en"), (None, "en")]
)
def test_the_language_of_a_system_without_such_variables(name, language, monkeypatch):
    monkeypatch.setattr(texts.locale, "getlocale", lambda: (name, None))
    assert texts.terminal_language({}) == language


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("ja", "ja"),
        ("ja-JP,ja;q=0.9,en;q=0.8", "ja"),
        ("en-US,en;q=0.9,ja;q=0.8", "en"),
        ("jam", "en"),
        (None, "en"),
        ("", "en"),
    ],
)
def test_the_language_of_a_browser(header, language):
    assert texts.browser_language(header) == language


@pytest.mark.parametrize(
    ("said", "japanese"),
    [
        ("picture 2 is empty (0 bytes).", "2 枚目の絵は空です（0 バイト）。"),
        (
            "picture 1 has 30 bytes; at most 20 are taken.",
            "1 枚目の絵が大きすぎます（30 バイト）。20 バイトまでです。",
        ),
        ("Line 3 of standard input is not UTF-8 but 'x': convert it, for instance with iconv.", "標準入力の 3 行目が"),
        ("/a/b: c.png is damaged: it cannot be decoded.", "/a/b: c.png は壊れていて開けません。".replace(" は", "は")),
        ("a.json is not a transcript written by this program: `messages.0.role` must be 'a'.", "messages.0.role"),
        ("Nobody has ever said this.", "Nobody has ever said this."),
    ],
)
def test_an_error_comes_by_its_japanese(said, japanese):
    assert japanese in texts.explained(ValueError(said), "ja")
    assert texts.explained(ValueError(said.replace(" ", "\n", 1)), "en") == said


def test_what_the_system_refuses_is_a_sentence():
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/no/絵.json")
    assert texts.explained(error, "en") == "/no/絵.json: No such file or directory."
    assert texts.explained(error, "ja") == "/no/絵.json が見つかりません。"
    for number in (errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG):
        assert not re.search("[A-Za-z]{4}", texts.explained(OSError(number, os.strerror(number), "/x"), "ja"))
