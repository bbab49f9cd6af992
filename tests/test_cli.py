"""The command line as a program: how it starts, and how it answers mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jminigpt4

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


def test_a_verb_has_the_classes(tmp_path):
    """The program registers late, but before the verb: the folder is read with this package's classes."""
    (tmp_path / "config.json").write_text('{"model_type": "jminigpt4", "num_query_tokens": 0}')
    done = call("chat", str(tmp_path), "何?")
    assert done.returncode == 2 and "num_query_tokens must be at least 1" in done.stderr


def test_completion():
    done = call(_JMINIGPT4_COMPLETE="complete_bash", COMP_WORDS="jminigpt4 ev", COMP_CWORD="1")
    assert done.stdout.split() == ["evaluate"]
