"""What a user is told to install can be installed as things are: the package is on no index."""

import re
from pathlib import Path

import pytest

import jminigpt4
from jminigpt4 import extras

ROOT = Path(jminigpt4.__file__).parent
# `pip install 'jminigpt4[…]'`, unless an address follows.
BARE = re.compile(r"pip install [^\n`]*?(?<![/\w-])jminigpt4(\[[\w,-]+\])?['\"]?(?! @)(?=[\s`'\".;]|$)")


def test_the_command_names_this_folder(monkeypatch, tmp_path):
    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    assert extras.install_command("gguf", "llama") == f'pip install -e "{tmp_path}[gguf,llama]"'
    (tmp_path / "setup.py").unlink()  # an installed copy lies where nothing can be installed from
    assert extras.install_command("train") == 'pip install ".[train]" in the folder that was cloned'


def test_what_is_missing_is_named_with_its_command():
    extras.require("train", "json", "pathlib")
    with pytest.raises(ImportError, match=r"The package no_such is needed: pip install .*\[train\]"):
        extras.require("train", "json", "no_such")


@pytest.mark.parametrize(
    ("text", "is_bare"),
    [
        ("pip install 'jminigpt4[train]'", True),
        ("pip install jminigpt4", True),
        ('pip install -U "jminigpt4[chat,serve]".', True),
        ("pip install -e '.[train]'", False),
        ("pip install 'jminigpt4[train] @ git+https://example.org/jminigpt4'", False),
        ("pip install llm-jminigpt4-extras", False),
    ],
)
def test_the_bare_form_is_known(text, is_bare):
    assert bool(BARE.search(text)) == is_bare


def test_nobody_is_told_to_install_from_an_index():
    files = [*ROOT.rglob("*.py"), *ROOT.rglob("*.md"), *ROOT.rglob("*.yaml"), *ROOT.rglob("*.html")]
    files = [file for file in files if not {"tests", ".venv", ".venv-oldest"} & set(file.relative_to(ROOT).parts)]
    assert len(files) > 100
    bare = [f"{file}: {found[0]}" for file in files for found in BARE.finditer(file.read_text(encoding="utf-8"))]
    assert bare == []


def test_extras_that_messages_name_are_there():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    called = re.compile(r"(?:install_command|require)\(['\"](\w+)['\"]")
    elsewhere = {"tests", ".venv", ".venv-oldest"}
    files = [file for file in ROOT.rglob("*.py") if not elsewhere & set(file.relative_to(ROOT).parts)]
    named = {found[1] for file in files for found in called.finditer(file.read_text(encoding="utf-8"))}
    assert named >= {"train", "chat", "evaluate", "gguf", "llama", "serve"}
    assert all(f'"{name}": [' in text for name in named)
