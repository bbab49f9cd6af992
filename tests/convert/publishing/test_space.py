"""A Space: its folder starts by itself, offline, and answers; and it goes to the Hub as a Space."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import textwrap

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from jminigpt4 import DEMO
from jminigpt4.cli import app
from jminigpt4.convert import push_space, verify_folder, write_space
from jminigpt4.convert.card import is_generated

REPO = "tester/room"
# `python app.py` where no jminigpt4 is installed, and nothing can be fetched.
START = """
    import importlib.util, pathlib, runpy, sys
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    sys.path = [path for path in sys.path if not path.startswith("__editable__")]
    sys.path = [path for path in sys.path if not pathlib.Path(path or ".", "jminigpt4").exists()]
    assert importlib.util.find_spec("jminigpt4") is None
    sys.path.insert(0, sys.argv[1])
    runpy.run_path(sys.argv[1] + "/app.py", run_name="__main__")
"""


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return write_space("demo", tmp_path_factory.mktemp("space") / "room")


def run(*arguments):
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    return done.exit_code, done.output, str(done.exception or "")


def serving(room, home, **environment):
    """The process and the address of its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(START), str(room)]
    process = subprocess.Popen(command, env=environment, cwd=home, stderr=subprocess.PIPE, text=True)
    said = ""
    while not (line := process.stderr.readline()).startswith("http"):
        assert line, f"the page did not start: {said}"
        said += line
    return process, f"http://127.0.0.1:{port}"


def ask(client, picture, question):
    """What the page does for a visitor who sends a picture with a question."""
    config = client.get("config").json()
    kinds = {each["id"]: each["type"] for each in config["components"]}
    values = {each["id"]: each["props"].get("value") for each in config["components"]}
    answering = next(
        each
        for each in config["dependencies"]
        if each["types"]["generator"] and {"multimodaltextbox", "chatbot"} & {kinds[one] for one in each["inputs"]}
    )
    path = client.post("gradio_api/upload", files={"files": ("a.png", picture)}).json()[0]
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    message, seen = {"text": question, "files": [file]}, []
    for each in answering["inputs"]:
        if kinds[each] == "chatbot":
            seen.append([])
        elif kinds[each] in ("state", "multimodaltextbox"):
            seen.append(message if message is not None else [])
            message = None
        else:
            seen.append(values[each])
    body = {"data": seen, "fn_index": answering["id"], "session_hash": "visitor"}
    client.post("gradio_api/queue/join", json=body).raise_for_status()
    stream = client.get("gradio_api/queue/data", params={"session_hash": "visitor"}).text
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    return json.dumps([each for each in events if each["msg"] == "process_completed"], ensure_ascii=False)


def test_the_folder_starts_by_itself_and_answers_about_a_picture(room, tmp_path):
    process, address = serving(room, tmp_path)
    try:
        with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
            page = client.get("")
            assert "MiniGPT-4" in page.text and page.headers["x-frame-options"] == "DENY"
            said = ask(client, (DEMO / "samples" / "hamburger.png").read_bytes(), "何が写ってる?")
            assert "ハンバーガーが写っています。" in said and '"success": true' in said, said
    finally:
        process.kill()
        process.wait()
    assert not list(room.rglob("__pycache__"))


def test_on_the_hub_its_page_may_stand_in_the_hubs_frame_and_in_no_other(room, tmp_path):
    process, address = serving(room, tmp_path, SPACE_ID=REPO)
    try:
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            headers = client.get("", headers={"host": "tester-room.hf.space"}).headers
    finally:
        process.kill()
        process.wait()
    assert "frame-ancestors https://huggingface.co" in headers["content-security-policy"]
    assert "x-frame-options" not in headers  # which knows no sites


def test_what_is_in_the_folder(room, tmp_path):
    card = (room / "README.md").read_text(encoding="utf-8")
    stated = front_matter(card)
    assert stated["sdk"] == "gradio" and stated["sdk_version"] == importlib.metadata.version("gradio")
    assert stated["app_file"] == "app.py" and stated["license"] == "cc-by-4.0" and "models" not in stated
    assert is_generated(card.encode()) and len((room / "app.py").read_text().splitlines()) <= 10
    assert (room / "LICENSE").read_text().startswith("MIT") and (room / "jminigpt4" / "demo" / "config.json").is_file()
    needed = [Requirement(line) for line in (room / "requirements.txt").read_text().splitlines()]
    names = {each.name for each in needed}
    assert {"gradio", "torch", "transformers", "timm"} <= names and not {"pytest", "datasets", "jminigpt4"} & names
    assert all(each.marker is None or "extra" not in str(each.marker) for each in needed)

    other = write_space("rinna/model", tmp_path / "other")
    stated = front_matter((other / "README.md").read_text(encoding="utf-8"))
    assert stated["models"] == ["rinna/model"] and stated["license"] == "mit" and stated["title"] == "model"
    assert "Settings(model='rinna/model')" in (other / "app.py").read_text()
    assert not (other / "jminigpt4" / "demo").exists()


def test_the_demo_by_its_path_is_the_demo(tmp_path):
    write_space(str(DEMO), tmp_path / "room")
    assert "model=None" in (tmp_path / "room" / "app.py").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}", "--space", "{out}"], "is a folder, and a Space loads its model from the Hub: publish it"),
        (["nothing", "--space", "{out}"], "is neither a model on the Hub, USER/NAME, nor `demo`"),
        (["demo", REPO, "--space", "{out}", "--sign", "k.pem"], "--space takes no --sign"),
        (["demo", "--space", "{folder}"], "exists already"),
        (["{folder}"], "Give the repository too"),
    ],
)
def test_mistakes(tiny_folder, tmp_path, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    code, _, said = run("publish", *(word.format(folder=tiny_folder(), out=out) for word in words))
    assert code and message in said and not out.exists()


def test_it_goes_to_the_hub_as_a_space(hub, tmp_path):
    code, output, error = run("publish", "rinna/model", REPO, "--space", tmp_path / "room", "--private")
    assert code == 0, error
    assert "is a Space. Try it" in output and f"{REPO} is private." in output and hub.private[REPO]
    folder = tmp_path / "room"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert hub.repos[REPO].keys() == {".gitattributes", *names}
    (made,) = (each for each in hub.made if each["name"] == "room")
    assert made["type"] == "space" and made["sdk"] == "gradio"
    assert f"POST api/spaces/{REPO}/commit/main" in hub.received
    assert not any(each.startswith(("GET api/models", "POST api/models")) for each in hub.received)

    hub.repos[REPO]["old.py"] = b"old"
    assert push_space(folder, REPO).deleted == ["old.py"]
    hub.repos[REPO]["README.md"] += b"edited\n"
    with pytest.raises(ValueError, match=r"README\.md of tester/room was edited on the Hub"):
        push_space(folder, REPO)
    push_space(folder, REPO, replace_card=True)
    assert is_generated(hub.repos[REPO]["README.md"])


def test_a_space_is_no_checkpoint(room):
    assert verify_folder(room)
