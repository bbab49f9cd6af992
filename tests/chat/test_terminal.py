"""The verb `chat`: one question, pipes, a conversation; what goes wrong is one line."""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from jminigpt4 import cli
from jminigpt4.chat import ChatSession, commands, terminal
from jminigpt4.chat.commands import model_and_question
from jminigpt4.chat.settings import Settings
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
    monkeypatch.setattr(conversation.session, "stream", lambda *given, **options: iter(["犬", "\U0001f415", "。"]))
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


def test_ctrl_c_stops_the_answer_only(conversation, monkeypatch, capsys):
    lines = iter(["何色?", "鳥?", "/exit"])
    monkeypatch.setattr(terminal, "_line_reader", lambda: lambda prompt: next(lines))
    printed = print
    interrupted = []

    def interrupt_once(text="", **options):
        printed(text, **options)
        if not interrupted and options.get("end") == "":
            interrupted.append(text)
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "print", interrupt_once, raising=False)
    conversation.settings.options = {"max_new_tokens": 300, "eos_token_id": None}
    terminal._converse(conversation)
    first, second = conversation.session.turns
    assert first.answer.startswith(interrupted[0]) and len(first.answer_ids) < 300
    assert second.question == "鳥?" and len(second.answer_ids) > len(first.answer_ids)
    assert "(stopped)" in capsys.readouterr().err


def test_preview(pictures, monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    lines = terminal.preview(pictures[0]).split("\n")
    assert len(lines) == 12 and all(line.count("▀") == 32 for line in lines)
    monkeypatch.delenv("COLORTERM")
    assert terminal.preview(pictures[0]) == "(40 x 30)"


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
        "--greedy",
        "--max-new-tokens",
        "5",
        "--seed",
        "3",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert seen[0] == Settings(
        "demo", "何色?", ["a.png", "b.png"], True, options={"do_sample": False, "max_new_tokens": 5}, seed=3
    )


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
