"""The verb `chat`: one question, pipes, a conversation; what goes wrong is one line."""

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from jminigpt4 import cli
from jminigpt4.chat import ChatSession, commands, line_editor, terminal
from jminigpt4.chat.commands import model_and_question
from jminigpt4.chat.line_editor import LineEditor
from jminigpt4.chat.settings import Settings
from jminigpt4.chat.texts import NO_PICTURE
from jminigpt4.chat.transcript import load_transcript, save_transcript


@pytest.fixture
def conversation(chat_model, processor):
    return terminal.Conversation(ChatSession(chat_model, processor), Settings())


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], (None, None)),
        (["何色?"], (None, "何色?")),
        (["犬/猫"], (None, "犬/猫")),
        (["rinna/bilingual-gpt-neox-4b-minigpt4"], ("rinna/bilingual-gpt-neox-4b-minigpt4", None)),
        (["./missing"], ("./missing", None)),
        (["/missing"], ("/missing", None)),
        (["demo", "何色?"], ("demo", "何色?")),
        (["what is this?"], (None, "what is this?")),
        (["何" * 100], (None, "何" * 100)),
    ],
)
def test_model_and_question(words, expected):
    assert model_and_question(words) == expected


def test_an_existing_folder_is_the_model(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_and_question(["mine"]) == ("mine", None)
    assert model_and_question(["yours"]) == (None, "yours")
    with pytest.raises(ValueError, match="3 words"):
        model_and_question(["a", "b", "c"])


def run(monkeypatch, capsys, settings, lines=""):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    terminal.converse(settings)
    return capsys.readouterr()


def command_line(monkeypatch, capsys, *arguments):
    """Exit status, and what was printed."""
    monkeypatch.setattr(sys, "argv", ["jminigpt4", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr()


def test_one_question(checkpoint, picture_files, chat_model, processor, pictures, monkeypatch, capsys):
    """Through the command line: nothing but the answer is printed."""
    status, printed = command_line(monkeypatch, capsys, "chat", str(checkpoint), "何色?", "-i", str(picture_files[0]))
    assert status == 0
    assert printed.out == ChatSession(chat_model, processor).ask("何色?", pictures[:1]) + "\n"
    assert printed.err == ""


def test_one_question_as_json(checkpoint, picture_files, monkeypatch, capsys):
    settings = Settings(str(checkpoint), "何色?", [str(picture_files[0])], as_json=True, options={"max_new_tokens": 3})
    facts = json.loads(run(monkeypatch, capsys, settings).out)
    assert facts["question"] == "何色?" and facts["tokens"] <= 3 and len(facts["pictures"]) == 1
    assert facts["prefilled_tokens"] > 4 and isinstance(facts["answer"], str)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("chat CHECKPOINT ? --device nosuch", "There is no device 'nosuch' on this machine"),
        ("chat CHECKPOINT ? --dtype float31", "dtype 'float31' is not one of float32, float16, bfloat16"),
        ("chat CHECKPOINT ? --quantize int3", "no quantisation 'int3': choose one of int8, 8bit, nf4"),
        ("chat CHECKPOINT ? --quantize int8 --gguf a.gguf", "Choose --quantize or --gguf"),
        ("chat CHECKPOINT ? --temperature inf", "--temperature must be a finite number, got inf"),
        ("chat CHECKPOINT --web --port 99999", "--port must be from 0 to 65535, got 99999"),
        ("chat CHECKPOINT ? -i http://127.0.0.1/a.png", "fetched with --allow-addresses only"),
        ("serve CHECKPOINT --port -1", "--port must be from 0 to 65535, got -1"),
        ("serve CHECKPOINT --device nosuch", "There is no device 'nosuch' on this machine"),
        ("serve CHECKPOINT --dtype float31", "dtype 'float31' is not one of float32, float16, bfloat16"),
        ("serve ./nofolder", "No folder nofolder"),
        ("serve-command CHECKPOINT --port 99999", "--port must be from 0 to 65535, got 99999"),
    ],
)
def test_a_mistyped_option_is_one_line(arguments, message, checkpoint, monkeypatch, capsys):
    words = arguments.replace("CHECKPOINT", str(checkpoint)).split()
    status, printed = command_line(monkeypatch, capsys, *words)
    assert status == 2 and printed.out == ""
    assert printed.err.startswith("jminigpt4: ") and message in printed.err and printed.err.count("\n") == 1


def test_closed_standard_input(checkpoint, monkeypatch, capsys):
    """As under cron: a question on the command line is answered all the same."""
    script = f"exec <&-; exec '{sys.executable}' -m jminigpt4.cli chat '{checkpoint}' 何色? --max-new-tokens 2"
    done = subprocess.run(["sh", "-c", script], capture_output=True, timeout=100)
    assert done.returncode == 0 and done.stdout.endswith(b"\n"), done.stderr.decode()
    monkeypatch.setattr(sys, "stdin", None)
    status, printed = command_line(monkeypatch, capsys, "chat", str(checkpoint))
    assert status == 2 and printed.err == (
        "jminigpt4: Standard input is closed, so nothing can be asked there: give a QUESTION.\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["犬\udc82"], r"The question is not UTF-8 but '\u72ac\udc82'"),
        (["何?", "--persona", "\udc82"], "The persona is not UTF-8"),
        (["何?", "-i", "~nosuchuser/a.png"], "names the home of a user whom this machine does not know"),
        (["何?", "--load", "/no/such.json"], "No such file"),
    ],
)
def test_words_that_cannot_be_used(words, message, checkpoint, monkeypatch, capsys):
    status, printed = command_line(monkeypatch, capsys, "chat", str(checkpoint), *words)
    assert status == 2 and message in printed.err and printed.err.count("\n") == 1


def test_a_pipe_of_another_encoding(checkpoint, chat_model, processor, monkeypatch, capsys):
    lines = "何色?\n".encode() + "鳥?\n".encode("shift_jis")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    with pytest.raises(ValueError, match="Line 2 of standard input is not UTF-8"):
        terminal.converse(Settings(str(checkpoint)))
    assert capsys.readouterr().out == ChatSession(chat_model, processor).ask("何色?") + "\n"


def test_an_answer_goes_on_where_the_terminal_lacks_a_character(conversation, monkeypatch, capsys):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="shift_jis")
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(conversation.session, "stream", lambda *given, **options: (each for each in "犬🐕。"))
    terminal._prepare_streams()
    conversation.answer("何?")
    assert screen.buffer.getvalue().decode("shift_jis") == "犬?。\n"


def test_pipe(checkpoint, picture_files, chat_model, processor, pictures, monkeypatch, capsys):
    lines = f"/image '{picture_files[0]}'\n何が写ってる?\n\n何色?\n/exit\n鳥?\n"
    printed = run(monkeypatch, capsys, Settings(str(checkpoint)), lines)
    session = ChatSession(chat_model, processor)
    expected = [session.ask("何が写ってる?", pictures[:1]), session.ask("何色?")]
    assert printed.out == "".join(answer + "\n" for answer in expected)


def test_examples_and_transcripts_from_files(checkpoint, conversation, pictures, tmp_path, monkeypatch, capsys):
    conversation.session.ask("何色?", pictures[:1])
    save_transcript(conversation.session, tmp_path / "talk.json")
    for settings in (
        Settings(str(checkpoint), "鳥?", examples=tmp_path / "talk.json"),
        Settings(str(checkpoint), "鳥?", transcript=tmp_path / "talk.json"),
    ):
        run(monkeypatch, capsys, settings)
    conversation.answer("鳥?")
    assert len(conversation.session.turns) == 2


def test_commands_of_a_conversation(conversation, picture_files, pictures, tmp_path, capsys):
    session = conversation.session
    assert conversation.take(f"/image {picture_files[0]} ")
    assert conversation.take("何が写ってる?")
    assert conversation.take("/image " + " ".join(f"'{file}'" for file in picture_files[1:]))
    assert conversation.take("何色?")
    assert [len(turn.pictures) for turn in session.turns] == [1, 2]
    assert conversation.take("/undo") and len(session.turns) == 1
    assert conversation.take(f"/save {tmp_path / 'talk.json'}")
    assert conversation.take("/persona あなたは猫です。") and session.persona == "あなたは猫です。"
    assert conversation.take("/persona") and session.persona is None
    assert conversation.take("/reset") and not session.turns
    assert conversation.take(f"/load {tmp_path / 'talk.json'}")
    assert [turn.question for turn in session.turns] == ["何が写ってる?"]
    assert session.turns[0].pictures[0].image.tobytes() == pictures[0].tobytes()
    assert conversation.take("/help") and "/undo" in capsys.readouterr().err
    assert not conversation.take("/exit")


@pytest.mark.parametrize(
    "line, message",
    [
        ("/image", "Name a file"),
        ("/image ~nosuchuser/a.png", "names the home of a user whom this machine does not know"),
        ("/load ~nosuchuser/a.json", "names the home of a user whom this machine does not know"),
        ("犬\udc82", r"not UTF-8 but '\\u72ac\\udc82'"),
        ("/persona \udc82", "not UTF-8"),
        ("/image /no/such.png", "No picture at /no/such.png"),
        ("/image https://example.com/a.png", "fetched with --allow-addresses only"),
        ("/save", "Name a file"),
        ("/load /no/such.json", "No such file"),
        ("/undo", "nothing to undo"),
        ("/frobnicate", "no command /frobnicate"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(conversation, line, message):
    with pytest.raises((ValueError, OSError), match=message) as raised:
        conversation.take(line)
    assert "\n" not in str(raised.value)
    assert not conversation.session.turns


def test_pictures_stay_for_the_next_try(conversation, picture_files, monkeypatch):
    conversation.take(f"/image {picture_files[0]}")
    with pytest.raises(ValueError, match="context window"):
        conversation.take("長" * 2000)
    conversation.take("何色?")
    assert len(conversation.session.turns[0].pictures) == 1


def test_ctrl_c_stops_the_answer_only(conversation, picture_files, monkeypatch, capsys):
    lines = iter([f"/image {picture_files[0]}", "何色?", "鳥?", "/exit"])
    editor = LineEditor()
    monkeypatch.setattr(editor, "read", lambda prompt: next(lines))
    printed = print
    interrupted = []

    def interrupt_once(text="", **options):
        printed(text, **options)
        if not interrupted and options.get("end") == "":
            interrupted.append(text)
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "print", interrupt_once, raising=False)
    conversation.settings.options = {"max_new_tokens": 300, "eos_token_id": None}
    terminal._converse(conversation, editor)
    first, second = conversation.session.turns
    assert first.answer.startswith(interrupted[0]) and len(first.answer_ids) < 300
    assert [len(first.pictures), len(second.pictures)] == [1, 0]  # it is shown once, though its answer was stopped
    assert second.question == "鳥?" and len(second.answer_ids) > len(first.answer_ids)
    assert "(stopped)" in capsys.readouterr().err


def test_preview(pictures, monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    lines = terminal.preview(pictures[0]).split("\n")
    assert len(lines) == 12 and all(line.count("▀") == 32 for line in lines)
    monkeypatch.delenv("COLORTERM")
    assert terminal.preview(pictures[0]) == ""


@pytest.mark.parametrize(
    "message, spoil",
    [
        ("is not a transcript", lambda path, folder: path.write_text("{}")),
        ("is not a transcript", lambda path, folder: path.write_text("[1, 2]")),
        ("is not a transcript", lambda path, folder: path.write_text("[" * 100_000)),
        ("is not a transcript", lambda path, folder: path.write_bytes("犬".encode("shift_jis"))),
        ("`messages.0.role`", lambda path, folder: path.write_text(path.read_text().replace('"user"', "7"))),
        ("text` must be", lambda path, folder: path.write_text(path.read_text().replace('"何色?"', "null"))),
        ("is not a transcript", lambda path, folder: path.write_text(path.read_text().replace("何", "\\ud83d"))),
        ("No picture at", lambda path, folder: next(folder.iterdir()).unlink()),
        ("is not the picture", lambda path, folder: make_white(next(folder.iterdir()))),
        (
            "sha256",
            lambda path, folder: path.write_text(path.read_text().replace('"sha256": "', '"sha256": "../')),
        ),
    ],
)
def test_spoilt_transcripts(conversation, pictures, tmp_path, message, spoil):
    session = conversation.session
    session.ask("何色?", pictures[:1])
    path = save_transcript(session, tmp_path / "talk.json")
    spoil(path, tmp_path / "talk.json.pictures")
    before = session.token_ids()
    with pytest.raises((ValueError, OSError), match=message):
        load_transcript(session, path)
    assert session.token_ids() == before


def make_white(file):
    from PIL import Image

    Image.new("RGB", (3, 3), "white").save(file)


def test_transcripts_keep_pictures_once_and_bytes_exactly(conversation, pictures, tmp_path):
    session = conversation.session
    session.ask("何色?", [pictures[0], pictures[1]])
    session.ask("もう一度。\n何色?", [pictures[0]])
    path = save_transcript(session, tmp_path / "会話.json")
    assert len(list((tmp_path / "会話.json.pictures").iterdir())) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["会話.json", "会話.json.pictures"]
    before = [(turn.question, turn.answer, [picture.sha256 for picture in turn.pictures]) for turn in session.turns]
    session.reset()
    load_transcript(session, path)
    after = [(turn.question, turn.answer, [picture.sha256 for picture in turn.pictures]) for turn in session.turns]
    assert after == before
    session.ask("鳥?")


@pytest.mark.parametrize(
    "model, message",
    [("/no/such", "No folder /no/such"), ("EMPTY", "no config.json"), ("BERT", "is a bert checkpoint")],
)
def test_models_that_are_none(tmp_path, model, message, monkeypatch, capsys):
    if model == "BERT":
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    name = model if model.startswith("/") else str(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        run(monkeypatch, capsys, Settings(name, "?"))


def test_verb_reads_its_options(monkeypatch):
    import typer

    seen = []
    monkeypatch.setattr(terminal, "converse", seen.append)
    app = typer.Typer()
    app.command()(commands.chat)
    words = [
        "demo",
        "何色?",
        "-i",
        "a.png",
        "-i",
        "b.png",
        "--json",
        "--sample",
        "--max-new-tokens",
        "5",
        "--seed",
        "3",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert seen[0] == Settings(
        "demo", "何色?", ["a.png", "b.png"], True, options={"do_sample": True, "max_new_tokens": 5}, seed=3
    )


class Answering(LineEditor):
    """A person who answers every question the same way, and is remembered to have been asked."""

    def __init__(self, answer: str):
        self.answer = answer
        self.asked = []

    def _read_answer(self, question: str) -> str:
        self.asked.append(question)
        return self.answer


@pytest.fixture
def person(chat_model, processor):
    """A conversation on a terminal."""
    session = ChatSession(chat_model, processor)
    return terminal.Conversation(session, Settings(options={"max_new_tokens": 4}), "en", Answering("y"))


def test_files_dragged_in_are_pictures(person, picture_files, pictures, capsys):
    assert person.take(f"'{picture_files[0]}' ")
    assert capsys.readouterr().err == f"For the next question (1):\n  1  {picture_files[0]}  (40 x 30)\n"
    assert person.take(f"{picture_files[1].as_uri()} 何色?")
    turn = person.session.turns[0]
    assert turn.question == "何色?" and len(turn.pictures) == 2
    assert [shown.image.tobytes() for shown in turn.pictures] == [picture.tobytes() for picture in pictures[:2]]
    with pytest.raises(ValueError, match=r"No picture at /nowhere/絵.png\."):
        person.take("/nowhere/絵.png 何色?")
    assert len(person.session.turns) == 1
    assert person.take("/ は何の記号?") and person.session.turns[1].question == "/ は何の記号?"


def test_pictures_are_listed_and_taken_back(person, picture_files, capsys):
    person.take("/pictures")
    assert capsys.readouterr().err == "No pictures wait for the next question.\n"
    for file in picture_files:
        person.take(f"/image {file}")  # its name holds a space
    lines = [f"  {number}  {file}  (40 x 30)" for number, file in enumerate(picture_files, 1)]
    # The second and third `/image` before a question say what is waiting already.
    expected = [["For the next question (1):", lines[0]]]
    expected += [["For the next question (2):", *lines[:2]], ["For the next question (3):", *lines]]
    assert capsys.readouterr().err.splitlines() == [line for each in expected for line in each]
    person.take("/drop 3 1")
    assert capsys.readouterr().err == f"For the next question (1):\n  1  {picture_files[1]}  (40 x 30)\n"
    for wrong in ("2", "0", "-1", "x", "1 2", "１"):
        with pytest.raises(ValueError, match=r"There is no picture .*: /pictures lists them"):
            person.take(f"/drop {wrong}")
    person.take(f"/image {picture_files[0]}")
    person.take("/drop")
    assert capsys.readouterr().err.endswith("No pictures wait for the next question.\n")
    person.take("何色?")
    assert person.session.turns[0].pictures == []


def test_saving_asks_before_it_overwrites(person, conversation, tmp_path, capsys):
    path = tmp_path / "会話.json"
    person.take("何色?")
    person.take(f"/save {path}")
    assert person._editor.asked == [] and path.exists()
    before = path.read_bytes()
    person.take("鳥?")
    person._editor.answer = ""
    person.take(f"/save {path}")
    assert person._editor.asked == [f"{path} exists. Overwrite it? [y/N] "] and path.read_bytes() == before
    assert capsys.readouterr().err.endswith("not saved\n")
    for answer in ("y", " YES ", "はい"):
        person._editor.answer = answer
        person.take(f"/save {path}")
        assert path.read_bytes() != before and path.write_bytes(before)
    conversation.take("何色?")
    with pytest.raises(ValueError, match="exists already, and nobody can be asked here"):  # in a pipe
        conversation.take(f"/save {path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize("leaving", [EOFError, KeyboardInterrupt])
def test_leaving_a_question_is_a_no(leaving, monkeypatch):
    def leave(question):
        raise leaving

    editor = LineEditor()
    monkeypatch.setattr(editor, "_read_answer", leave)
    assert editor.confirm("?") is False


def test_an_answer_without_a_picture_says_so(person, picture_files, pictures, checkpoint, monkeypatch, capsys):
    """Wherever no picture stands in the conversation, and nowhere else; the answer itself is alone on its stream."""
    person.take("何色?")
    printed = capsys.readouterr()
    assert printed.err == NO_PICTURE + "\n" and NO_PICTURE not in printed.out
    person.take(f"{picture_files[0]} 何色?")
    person.take("鳥?")  # about the picture of the turn before
    assert NO_PICTURE not in capsys.readouterr().err
    person.take("/reset")
    person.take("鳥?")
    assert NO_PICTURE in capsys.readouterr().err
    examples = [
        {"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "何?"}]}
    ]
    examples += [{"role": "assistant", "content": "赤"}]
    session = ChatSession(person.session.model, person.session.processor, examples=examples)
    assert (
        session.ask("何色?", max_new_tokens=2) is not None and not session.has_pictures
    )  # the examples' are not shown
    options = {"max_new_tokens": 2}
    assert run(monkeypatch, capsys, Settings(str(checkpoint), "何色?", options=options)).err.endswith(
        NO_PICTURE + "\n"
    )
    assert run(monkeypatch, capsys, Settings(str(checkpoint), options=options), "何色?\n").err.endswith(
        NO_PICTURE + "\n"
    )
    quiet = run(monkeypatch, capsys, Settings(str(checkpoint), "何色?", as_json=True, options=options))
    assert NO_PICTURE not in quiet.err and json.loads(quiet.out)["pictures"] == []


def test_a_japanese_terminal_speaks_japanese(person, picture_files, tmp_path, monkeypatch, capsys):
    """Everything but commands, options and the names of files: no English word."""
    person.language = "ja"
    lines = ["何色?", "/help", "/pictures", f"/image {picture_files[0]}", "/drop", "/undo", "/persona 猫", "/persona"]
    lines += ["何色?", f"/save {tmp_path / '1'}", f"/save {tmp_path / '1'}", f"/load {tmp_path / '1'}", "/reset"]
    lines += ["/undo", "/frobnicate", "/image", "/drop 3", "/nowhere/1.png", "/load /no/1", "/load /", "/save /"]
    lines += ["/image https://1.png", "長" * 2000, "~nosuch/1.png", f"/load {picture_files[0]}", "\\udc82", "/exit"]
    typed = iter(lines)
    monkeypatch.setattr(person._editor, "read", lambda prompt: next(typed).replace("\\udc82", "犬\udc82"))
    terminal._converse(person, person._editor)
    said = capsys.readouterr().err
    for allowed in (str(tmp_path), *(str(file) for file in picture_files), "--allow-addresses", "https://1.png"):
        said = said.replace(allowed, "")
    words = set(re.findall(r"(?<![/~\w])[A-Za-z]{2,}", re.sub(r"(/|~)[\w./]+", "", said, flags=re.ASCII)))
    assert words <= {"FILE", "TEXT", "MiniGPT", "Ctrl", "Tab", "UTF", "iconv", "udc"}
    assert len(said.splitlines()) > len(lines)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("/", {*terminal.COMMANDS}),
        ("/p", {"/pictures", "/persona"}),
        ("/image k", {"key.png"}),
        ("/image key.png m", {"my cat.png"}),
        ("/image my c", {"my cat.png"}),
        ("/image 'my c", {"my cat.png"}),
        ("/image my\\ c", {"my cat.png"}),
        ("/image ", {"key.png", "my cat.png", "folder/"}),
        ("/image f", {"folder/"}),
        ("/load ", {"talk.json", "folder/"}),
        ("/save t", {"talk.json"}),
        ("./k", {"key.png"}),
        ("./key.png ./m", {"my cat.png"}),
        ("./folder/", {"inner.jpg"}),
        ("HERE/k", {"key.png"}),
        ("~/k", {"key.png"}),
        ("k", set()),  # a question
        ("key.png 何", set()),
        ("/persona k", set()),
        ("/undo k", set()),
        ("/image key.png", set()),
        ("/image nowhere.png", set()),
    ],
)
def test_tab_completes_commands_and_files(line, offered, tmp_path, monkeypatch):
    completion = pytest.importorskip("prompt_toolkit.completion")
    from prompt_toolkit.document import Document

    (tmp_path / "folder").mkdir()
    for name in ("key.png", "my cat.png", "talk.json", "notes.txt", "folder/inner.jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    completer = line_editor.line_completer(terminal.command_list("ja"))
    line = line.replace("HERE", str(tmp_path))
    found = list(completer.get_completions(Document(line), completion.CompleteEvent()))
    assert {each.display_text for each in found} == offered
    for each in found:
        assert (line.replace("\\", "") + each.text).endswith(each.display_text) or each.start_position == -len(line)
        if each.display_text in terminal.COMMANDS:
            assert each.text == each.display_text and each.display_meta_text


def test_the_editor_remembers_and_completes(tmp_path, monkeypatch):
    """Through prompt_toolkit: Tab finishes a command; lines are remembered, answers to questions are not."""
    input_module = pytest.importorskip("prompt_toolkit.input")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.output import DummyOutput

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with (
        input_module.create_pipe_input() as keys,
        create_app_session(input=keys, output=DummyOutput()),
    ):
        editor = line_editor.open_line_editor(terminal.command_list("en"))
        keys.send_text("/und\t")

        def enter_when_completed():
            while editor._lines.default_buffer.text != "/undo":
                time.sleep(0.01)
            keys.send_text("\r")

        threading.Thread(target=enter_when_completed, daemon=True).start()
        assert editor.read("> ") == "/undo"
        keys.send_text("\x1b[200~'/絵/鍵 1.png' \x1b[201~何色?\r")  # a file dragged in is a bracketed paste
        assert editor.read("> ") == "'/絵/鍵 1.png' 何色?"
        keys.send_text("y\r")
        assert editor.confirm("?")
        keys.send_text("\x04")
        assert not editor.confirm("?")
    history = (tmp_path / "jminigpt4" / "history").read_text()
    assert "何色?" in history and "+y" not in history


def test_without_prompt_toolkit_lines_are_read_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    editor = line_editor.open_line_editor({})
    monkeypatch.setattr("builtins.input", lambda prompt: f"{prompt}y")
    assert type(editor) is LineEditor and editor.read("") == "y" and not editor.confirm("> ") and editor.confirm("")


WEB_ALONE = {"--host": "::1", "--port": "0", "--auth": "a:b"}
TERMINAL_ALONE = {"QUESTION": "何?", "--image": "a.png", "--load": "a.json", "--json": None, "--allow-addresses": None}
OF_SAMPLING = {"--temperature": "0.5", "--top-p": "0.5", "--seed": "0"}
ANYWHERE = {"--persona": "猫", "--examples": "e.json", "--sample": None, "--max-new-tokens": "5", "--device": "cpu"}
ANYWHERE |= {"--dtype": "float32", "--quantize": "int8", "--gguf": "a.gguf", "--greedy": None, "--web": None}
OPTIONS = {**WEB_ALONE, **TERMINAL_ALONE, **OF_SAMPLING, **ANYWHERE}


def refusal(given: set[str]) -> str | None:
    if "--web" in given and (wrong := [each for each in TERMINAL_ALONE if each in given]):
        return f"--web takes no {wrong[0].replace('QUESTION', 'a QUESTION')}."
    if "--web" not in given and (wrong := [each for each in WEB_ALONE if each in given]):
        return f"Only --web takes {wrong[0]}."
    if "--greedy" in given and (wrong := [each for each in OF_SAMPLING if each in given]):
        return f"--greedy takes no {wrong[0]}."
    return None


@pytest.mark.parametrize("first", OPTIONS)
def test_every_pair_of_options_is_obeyed_or_refused(first, monkeypatch, capsys):
    """`--quantize` with `--gguf` is refused where the model is loaded; `--sample --greedy` are one option."""
    from jminigpt4.chat import web

    seen = []
    monkeypatch.setattr(web, "serve_page", lambda *given: seen.append(given))
    monkeypatch.setattr(terminal, "converse", lambda *given: seen.append(given))
    monkeypatch.delenv("JMINIGPT4_AUTH", raising=False)
    for second in OPTIONS:
        if {first, second} == {"--sample", "--greedy"}:
            continue
        words = ["demo"]
        for option in dict.fromkeys((first, second)):
            words += [value for value in (option, OPTIONS[option]) if value is not None and value != "QUESTION"]
        words.sort(key=lambda word: word not in ("demo", "何?"))
        seen.clear()
        status, printed = command_line(monkeypatch, capsys, "chat", *words)
        if (message := refusal({first, second})) is not None:
            assert (status, printed.err, seen) == (2, f"jminigpt4: {message}\n", []), words
            continue
        assert status == 0, (words, printed.err)
        settings, *page = seen[0]
        carried = {
            "QUESTION": settings.question == "何?",
            "--image": settings.images == ["a.png"],
            "--load": str(settings.transcript) == "a.json",
            "--json": settings.as_json,
            "--allow-addresses": settings.allow_addresses,
            "--persona": settings.persona == "猫",
            "--examples": str(settings.examples) == "e.json",
            "--sample": settings.options.get("do_sample") is True,
            "--greedy": settings.options.get("do_sample") is False,
            "--temperature": settings.options.get("temperature") == 0.5 and settings.options["do_sample"],
            "--top-p": settings.options.get("top_p") == 0.5 and settings.options["do_sample"],
            "--seed": settings.seed == 0,
            "--max-new-tokens": settings.options.get("max_new_tokens") == 5,
            "--device": settings.device == "cpu",
            "--dtype": settings.dtype == "float32",
            "--quantize": settings.quantize == "int8",
            "--gguf": str(settings.gguf) == "a.gguf",
            "--web": bool(page),
            "--host": page[:1] == ["::1"],
            "--port": page[1:2] == [0],
            "--auth": page[2:] == [("a", "b")],
        }
        assert carried.keys() == OPTIONS.keys()
        assert all(carried[option] for option in (first, second)), words


def test_the_persona_that_was_asked_for_outlives_a_transcript(checkpoint, conversation, tmp_path):
    conversation.session.persona = "犬"
    conversation.session.ask("何色?", max_new_tokens=2)
    path = save_transcript(conversation.session, tmp_path / "talk.json")
    settings = Settings(str(checkpoint), transcript=path)
    assert settings.open_session().persona == "犬"
    settings.persona = "猫"
    session = settings.open_session()
    assert session.persona == "猫" and [turn.question for turn in session.turns] == ["何色?"]


@pytest.mark.parametrize("auth", ["", "me", ":", "me:", ":secret", " :secret"])
def test_a_login_that_is_none(auth, monkeypatch, capsys):
    status, printed = command_line(monkeypatch, capsys, "chat", "--web", "--auth", auth or "x")
    assert status == 2 and printed.err == "jminigpt4: --auth is USER:PASSWORD, and one of them is missing.\n"


def test_a_login_from_the_environment(monkeypatch):
    """It is in no list of processes, and means nothing to the terminal."""
    from jminigpt4.chat import web

    seen = []
    monkeypatch.setenv("JMINIGPT4_AUTH", "わたし:se:cret")
    monkeypatch.setattr(web, "serve_page", lambda *given: seen.append(given[1:]))
    monkeypatch.setattr(terminal, "converse", lambda *given: seen.append(given[1:]))
    commands.chat(web=True)
    commands.chat(["何?"])
    assert seen == [("127.0.0.1", 7860, ("わたし", "se:cret")), ()]


def test_errors_of_the_command_line_in_japanese(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("LC_ALL", "ja_JP.UTF-8")
    for words, message in (
        (["何?", "--web"], "--web では質問は使えません。"),
        (["何?", "--port", "1"], "--port は --web のときだけ使えます。"),
        (["何?", "--greedy", "--seed", "1"], "--greedy のとき --seed は使えません。"),
        (["何?", "-i", "/no/絵.png"], "/no/絵.png に絵がありません。"),
        (["何?", "--load", "/no/talk.json"], "/no/talk.json が見つかりません。"),
    ):
        status, printed = command_line(monkeypatch, capsys, "chat", str(checkpoint), *words)
        assert (status, printed.err) == (2, f"jminigpt4: {message}\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and pseudo-terminals")
def test_in_a_real_terminal(checkpoint, picture_files, chat_model, processor, pictures, tmp_path, monkeypatch):
    """Typed into a pseudo-terminal: picture, question, Ctrl-C in the middle of a long answer, and what was said."""
    import pty

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("COLORTERM", raising=False)
    first = ChatSession(chat_model, processor).ask("何色?", pictures[:1])[0]
    assert first not in "何色? >"
    child, master = pty.fork()
    if child == 0:
        status = 1
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            terminal.converse(Settings(str(checkpoint), options={"max_new_tokens": 900, "min_new_tokens": 900}))
            status = 0
        finally:
            os._exit(status)
    seen = b""

    def expect(text: str):
        nonlocal seen
        while text.encode() not in seen:
            ready, _, _ = select.select([master], [], [], 60)
            assert ready, f"waited for {text!r}, saw {seen.decode(errors='replace')!r}"
            seen += os.read(master, 65536)
        seen = seen.partition(text.encode())[2]

    try:
        expect("> ")
        os.write(master, f"/image '{picture_files[0]}'\r".encode())
        expect("(40 x 30)")
        expect("> ")
        os.write(master, "何色?\r".encode())
        expect(first)  # until the answer has begun, Ctrl-C is a key of the line editor
        os.write(master, b"\x03")
        expect("(stopped)")
        os.write(master, f"/save {tmp_path / 'talk.json'}\r".encode())
        expect("saved")
        os.write(master, b"/exit\r")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.close(master)
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"][0]["type"] == "image"
    assert "何色?" in (tmp_path / "jminigpt4" / "history").read_text()
