"""The command line as a program: how it starts, and how it answers mistakes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import jminigpt4
from jminigpt4 import cli

# What `pip` writes for the entry point, with a list of the heavy modules that were imported behind it.
PROGRAM = """
import sys
sys.argv[0] = "bin/jminigpt4"
from jminigpt4.cli import main
try:
    main()
finally:
    print(sorted({"torch", "transformers", "numpy", "PIL"} & sys.modules.keys()), file=sys.stderr)
"""


def call(*words: str, **environment: str) -> subprocess.CompletedProcess:
    root = str(Path(jminigpt4.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root if Path(root, "jminigpt4").is_dir() else "", os.getenv("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **({"PYTHONPATH": path} if path else {}), **environment},
    )


@pytest.mark.parametrize("words", [["--version"], [], ["--help"], ["chat", "--help"], ["evaluate", "--help"]])
def test_help_waits_for_nothing(words):
    done = call(*words)
    assert done.returncode == 0 and done.stdout.strip()
    assert done.stderr.splitlines() == ["[]"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", "--nosuch"], "No such option: --nosuch"),
        (["chat", "--port", "x"], "Invalid value for '--port'"),
        (["nosuch"], "No such command 'nosuch'"),
        (["verify"], "Missing argument 'DIR'"),
    ],
)
def test_a_mistyped_word_is_one_line(words, message):
    done = call(*words)
    line, modules = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert line.startswith(f"jminigpt4: {message}") and modules == "[]"


def test_missing_pictures_are_named_before_a_library_is_loaded(tmp_path):
    """Which takes seconds; the model, whatever it is, takes minutes."""
    (tmp_path / "rows.jsonl").write_text('{"image": "nowhere/1.png", "caption": "x"}\n', encoding="utf-8")
    for words in (["train", "model", "rows.jsonl"], ["features", "model", "cache", "rows.jsonl"]):
        done = call(*words[:-1], str(tmp_path / words[-1]))
        line, modules = done.stderr.splitlines()
        assert done.returncode == 2 and done.stdout == "" and "torch" not in modules
        assert line.startswith(f"jminigpt4: {tmp_path / 'nowhere' / '1.png'} does not exist: 1 of 1 pictures of rows")


def test_no_word_of_a_help_text_is_swallowed(monkeypatch):
    """As `[by benchmark]` was, taken for markup."""
    monkeypatch.setenv("COLUMNS", "200")
    command = typer.main.get_command(cli.app)
    for name, verb in command.commands.items():
        shown = "".join(CliRunner().invoke(cli.app, [name, "--help"]).output.split())
        for text in [verb.help, *(option.help for option in verb.params if option.help)]:
            assert "".join(text.split()) in shown, (name, text)


RANGES = [
    "evaluate --limit 0",
    "evaluate --top-p 3",
    "chat --temperature 0",
    "chat --max-new-tokens x",
    "serve --port x",
]


@pytest.mark.parametrize("words", RANGES)
def test_a_number_out_of_range_is_one_line(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jminigpt4", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"jminigpt4: Invalid value for '{words.split()[1]}'")


def test_consoles_that_lack_characters(monkeypatch):
    """A tick and an emoji on a Japanese Windows: escaped as in JSON, and equal as JSON; what there is stays."""
    for encoding, shown in (("cp932", "犬 \\u2713 \\ud83d\\ude00"), ("ascii", "\\u72ac \\u2713 \\ud83d\\ude00")):
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
        cli._prepare_streams()
        text = "犬 \u2713 \U0001f600"
        print(json.dumps(text, ensure_ascii=False), flush=True)
        line = content.getvalue().decode(encoding).strip()
        assert line == f'"{shown}"' and json.loads(line) == text


def test_a_missing_package_is_named_with_its_command(monkeypatch, capsys):
    def verb():
        import no_such_package  # noqa: F401

    verb.__module__ = "jminigpt4.train.commands"
    monkeypatch.setattr(cli, "register", lambda: None)
    with pytest.raises(ImportError, match=r"The package no_such_package is needed: pip install .*\[train\]"):
        cli._beginning(verb)()


def test_a_verb_has_the_classes(tmp_path):
    """The program registers late, but before the verb: the folder is read with this package's classes."""
    (tmp_path / "config.json").write_text('{"model_type": "jminigpt4", "num_query_tokens": 0}')
    done = call("chat", str(tmp_path), "何?")
    assert done.returncode == 2 and "num_query_tokens must be at least 1" in done.stderr


def test_completion():
    done = call(_JMINIGPT4_COMPLETE="complete_bash", COMP_WORDS="jminigpt4 ev", COMP_CWORD="1")
    assert done.stdout.split() == ["evaluate"]
