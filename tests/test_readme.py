"""The READMEs keep their word: every block of code in them is run, and the two languages say the same."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README_ja.md"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_both_languages_have_the_same_code_and_sections(blocks):
    english, japanese = (read(name) for name in READMES)
    for language in ("bash", "sh", "python", "text"):
        assert blocks(english, language) == blocks(japanese, language)
    depths = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in (english, japanese)]
    assert depths[0] == depths[1]


def test_the_first_two_blocks_are_the_two_commands(blocks):
    run, test = blocks(read("README.md"), "bash")[:2]
    for command in (run, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
        assert len(command.splitlines()) == 1
    assert "jminigpt4 chat --image demo/samples/" in run
    assert "-m pytest" in test


def answer(command: str) -> str:
    """Output of a `jminigpt4` command, run with this interpreter from the root of the repository."""
    words = shlex.split(command)
    child = subprocess.run(
        [sys.executable, "-m", "jminigpt4.cli", *words[1:]],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stderr == ""
    return child.stdout


def test_the_first_command_answers_quietly(blocks):
    command = blocks(read("README.md"), "bash")[0].rpartition(".venv/bin/")[2]
    assert answer(command) == "りんごと猫が写っています。\n"


@pytest.mark.parametrize("name", READMES[:1])
def test_python_blocks(name, blocks, run_blocks):
    text = read(name)
    run_blocks(name, zip(blocks(text, "python"), blocks(text, "text"), strict=True))


def test_links_lead_somewhere():
    for name in READMES:
        for target in re.findall(r"\]\(([^)#:]+)\)", read(name)):
            assert (ROOT / target).exists(), f"{name}: {target}"
