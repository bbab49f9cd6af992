"""The model of `llm`, with the real package and the demo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llm")

import llm

from jminigpt4 import DEMO
from jminigpt4.chat import ChatSession, llm_plugin
from jminigpt4.inference.loading import load_checkpoint

QUESTION = "何が写っていますか?"


@pytest.fixture(scope="module")
def model() -> llm.Model:
    registered = []
    llm_plugin.register_models(registered.append)
    return registered[0]


@pytest.fixture(scope="module")
def session() -> ChatSession:
    return ChatSession(*load_checkpoint(DEMO))


def sample(name: str) -> llm.Attachment:
    return llm.Attachment(path=str(DEMO / "samples" / f"{name}.png"))


def ask(session: ChatSession, question: str, *names: str) -> str:
    return session.ask(question, [(DEMO / "samples" / f"{name}.png").read_bytes() for name in names])


def test_a_picture_and_a_question_after_it(model, session):
    session.reset()
    conversation = model.conversation()
    first = conversation.prompt(QUESTION, attachments=[sample("apple")])
    pieces = list(first)
    assert "".join(pieces) == ask(session, QUESTION, "apple")
    assert len(pieces) > 1
    assert first.usage().output == len(session.turns[0].answer_ids)
    assert first.usage().input == len(session.turns[0].prompt_ids)
    assert conversation.prompt("何色ですか?").text() == ask(session, "何色ですか?")


def test_pictures_by_path_and_by_bytes_are_seen_in_order(model, session):
    answers = []
    for names in (("apple", "cat"), ("cat", "apple")):
        content = (DEMO / "samples" / f"{names[1]}.png").read_bytes()
        response = model.prompt(QUESTION, attachments=[sample(names[0]), llm.Attachment(content=content)])
        answers.append(response.text())
        session.reset()
        assert answers[-1] == ask(session, QUESTION, *names)
    assert answers[0] != answers[1]


def test_settings_reach_generate(model):
    def spoken(**options) -> str:
        return model.prompt(QUESTION, attachments=[sample("key")], **options).text()

    assert len(spoken(max_new_tokens=1)) < len(spoken(temperature=0)) and spoken(temperature=0) == spoken()
    assert spoken(temperature=5.0, seed=1) == spoken(temperature=5.0, seed=1)
    assert len({spoken(temperature=5.0, seed=seed) for seed in range(4)}) > 1


def test_mistakes_are_named(model, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="broken.png"):
        model.prompt("何?", attachments=[llm.Attachment(path=str(broken), type="image/png")]).text()
    with pytest.raises(ValueError, match="Ask something"):
        model.prompt("").text()
    with pytest.raises(FileNotFoundError, match="No folder"):
        model.prompt("何?", checkpoint=str(tmp_path / "missing")).text()


def test_the_command(session, tmp_path):
    program = Path(sys.executable).parent / "llm"
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    command = [program, "-m", "jminigpt4", QUESTION, "-a", DEMO / "samples" / "cat.png"]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    session.reset()
    assert printed.stdout.strip() == ask(session, QUESTION, "cat")
    assert all(line.startswith("jminigpt4: ") for line in printed.stderr.splitlines())  # no noise of libraries
    again = subprocess.run([program, "-c", "何色ですか?"], env=environment, check=True, capture_output=True, text=True)
    assert again.stdout.strip() == ask(session, "何色ですか?")


def test_other_commands_of_llm_do_not_wait_for_torch():
    program = "import sys; sys.argv[0] = 'llm'; import jminigpt4.chat.llm_plugin; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "False"
