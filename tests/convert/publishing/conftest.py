"""A stand-in for the Hub on this machine, and strangers who load from it in processes of their own."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import _http
from huggingface_hub.utils.sha import git_hash

from jminigpt4 import JMiniGPT4Processor
from jminigpt4.checkpoint import CODE_FILES, write_manifest
from jminigpt4.convert.account import Account
from jminigpt4.convert.card import write_card


class Hub(ThreadingHTTPServer):
    """Repositories of one branch in memory, with all that `huggingface_hub` asks for to create, upload, delete
    and download them.

    Attributes:
        repos: Files of each repository.
        private: Whether it is private.
        objects: Large files that were uploaded, by SHA-256, committed or not.
        fetched: Files that were downloaded.
        received: Names of requests: method and path, in order.
        made: What repositories were asked for.
        fault: Called with the number of a request, its method and path; says what befalls it: a status to answer with,
            `cut` before or `cut after` it has its effect, or `kill` the `victim` before or `kill after`.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.fetched: set[str] = set()
        self.received: list[str] = []
        self.made: list[dict] = []
        self.fault = None
        self.victim = 0
        self.role = "write"

    def add(self, repo, files, private=False):
        self.repos[repo], self.private[repo] = dict(files), private

    def commit(self, repo):
        names = sorted(self.repos[repo].items())
        return hashlib.sha1(b"".join(name.encode() + content for name, content in names)).hexdigest()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # clients that were killed are no news
            super().handle_error(request, client_address)


def is_large(name):
    return name.endswith((".safetensors", ".png", ".gguf"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A header and a body in two packets would wait for each other.
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Hub

    def log_message(self, *args):
        pass

    def answer(self, value, status=200, headers=()):
        if self.mute:
            return
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": len(body), **dict(headers)}.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def missing(self, code):
        self.answer({"error": code}, 404, {"X-Error-Code": code})

    def serve(self):
        hub = self.server
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        hub.received.append(f"{self.command} {'/'.join(self.parts)}")
        fate = hub.fault(len(hub.received), self.command, "/".join(self.parts)) if hub.fault else None
        if isinstance(fate, int):
            return self.answer({"error": "as the test wants it"}, fate)
        self.mute = fate is not None
        if fate in (None, "cut after", "kill after"):
            getattr(self, f"do_{self.command.lower()}")()
        if fate is not None and fate.startswith("kill"):
            os.kill(hub.victim, 9)
        if self.mute:
            self.close_connection = True

    mute = False
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def do_put(self):
        if self.parts[0] == "objects":
            self.server.objects[self.parts[1]] = self.body
        else:  # api/models/USER/NAME/settings
            given = json.loads(self.body)
            self.server.private["/".join(self.parts[2:4])] = given.get("private", given.get("visibility") == "private")
        self.answer({})

    def do_delete(self):
        given = json.loads(self.body)
        repo = f"{given['organization']}/{given['name']}"
        if self.server.repos.pop(repo, None) is None:
            return self.missing("RepoNotFound")
        return self.answer({})

    def do_post(self):
        hub = self.server
        if self.parts == ["api", "repos", "create"]:
            given = json.loads(self.body)
            hub.made.append(given)
            repo = f"{given.get('organization') or 'tester'}/{given['name']}"
            if repo in hub.repos:
                return self.answer({"error": "exists", "url": f"{hub.url}/{repo}"}, 409)
            private = bool(given.get("private")) or given.get("visibility") == "private"
            hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"}, private)
            return self.answer({"url": f"{hub.url}/{repo}", "name": repo, "id": repo})
        if self.parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if self.parts[-1] == "batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/objects/{each['oid']}"}}}
                if each["oid"] not in hub.objects
                else each
                for each in json.loads(self.body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        repo = "/".join(self.parts[2:4])
        if repo not in hub.repos:
            return self.missing("RepoNotFound")
        if self.parts[4] == "preupload":
            return self.answer(
                {"files": [self.upload_mode(repo, each["path"]) for each in json.loads(self.body)["files"]]}
            )
        return self.take_commit(repo, [json.loads(line) for line in self.body.splitlines()])

    def upload_mode(self, repo, name):
        found = {"path": name, "uploadMode": "lfs" if is_large(name) else "regular", "shouldIgnore": False}
        content = self.server.repos[repo].get(name)
        if content is not None:
            found["oid"] = hashlib.sha256(content).hexdigest() if is_large(name) else git_hash(content)
        return found

    def take_commit(self, repo, lines):
        hub = self.server
        files = dict(hub.repos[repo])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, hub.commit(repo)):
                return self.answer({"error": "the branch has moved on"}, 412)
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        hub.repos[repo] = files
        oid = hub.commit(repo)
        url = f"{hub.url}/{repo}/commit/{oid}"
        return self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def do_head(self):
        self.do_get()

    def do_get(self):
        hub, parts = self.server, self.parts
        if parts[:2] == ["api", "whoami-v2"]:
            auth = {"accessToken": {"role": hub.role}}
            return self.answer({"type": "user", "name": "tester", "orgs": [{"name": "maker"}], "auth": auth})
        start = {"api": 2, "spaces": 1}.get(parts[0], 0)
        repo = "/".join(parts[start : start + 2])
        if repo not in hub.repos:
            return self.missing("RepoNotFound")
        files, oid = hub.repos[repo], hub.commit(repo)
        if parts[0] != "api":  # [spaces/]USER/NAME/resolve/REVISION/FILE
            name = "/".join(parts[start + 4 :])
            if name not in files:
                return self.missing("EntryNotFound")
            if self.command == "GET":
                hub.fetched.add(f"{repo}/{name}")
            tag = hashlib.sha256(files[name]).hexdigest()
            return self.answer(
                files[name],
                headers={"ETag": f'"{tag}"', "X-Repo-Commit": oid, "Content-Type": "application/octet-stream"},
            )
        if "tree" in parts:  # api/models/USER/NAME/tree/REVISION[/FOLDER]
            folder = "".join(f"{part}/" for part in parts[6:])
            listed = {name: content for name, content in files.items() if name.startswith(folder)}
            if folder and not listed:
                return self.missing("EntryNotFound")
            return self.answer([self.tree_entry(name, content) for name, content in listed.items()])
        card = ModelCard(files["README.md"].decode()).data.to_dict() if "README.md" in files else {}
        return self.answer(
            {
                "id": repo,
                "modelId": repo,
                "sha": oid,
                "private": hub.private[repo],
                "siblings": [{"rfilename": name} for name in files],
                "tags": card.get("tags", []),
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "cardData": card,
            }
        )

    def tree_entry(self, name, content):
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
        if is_large(name):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 128}
        return entry


@pytest.fixture(scope="session")
def loopback():
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


@pytest.fixture
def hub(loopback, monkeypatch):
    """The Hub, as this process sees it; empty at first, as far as publishing goes, and without faults."""
    monkeypatch.setattr(constants, "ENDPOINT", loopback.url)
    template = loopback.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # The client of huggingface_hub waits for seconds before it tries again.
    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
    huggingface_hub.close_session()
    for repo in [repo for repo in loopback.repos if repo.startswith("tester/")]:
        del loopback.repos[repo]
    loopback.fault, loopback.role = None, "write"
    huggingface_hub.HfApi().whoami()  # what the client asks once in a process is asked
    loopback.objects.clear()
    loopback.received.clear()
    loopback.made.clear()
    yield loopback
    loopback.fault = None
    huggingface_hub.close_session()


@pytest.fixture(scope="session")
def tiny_folder(make_model, make_processor, tmp_path_factory):
    """`tiny_folder(seed)`: a whole checkpoint folder of the smallest model, made once for each seed."""
    made = {}

    def make(seed=0):
        if seed not in made:
            folder = made[seed] = tmp_path_factory.mktemp("tiny") / "checkpoint"
            model = make_model(seed=seed)
            processor: JMiniGPT4Processor = make_processor()
            model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            assert all((folder / name).is_file() for name in CODE_FILES)
            language = {"name": "llm", "layout": "causal language model", "license": "mit"}
            Account(prompt_format="article-3.6b", sources={"language": language}, fresh_projection=True).write(folder)
            write_card(folder)
            write_manifest(folder)
        return made[seed]

    return make


# Answers to requests, a line of JSON each, in a process of its own for each: a copy of one that has imported torch and
# transformers, and nothing of this package.
STRANGER = """
    import importlib.util, json, os, pathlib, sys, traceback
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    sys.path = [path for path in sys.path if not path.startswith("__editable__")]
    sys.path = [path for path in sys.path if not pathlib.Path(path, "jminigpt4").exists()]
    assert importlib.util.find_spec("jminigpt4") is None
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
    from transformers.models.blip_2 import modeling_blip_2
    from transformers.models.gpt_neox import modeling_gpt_neox
    torch.set_num_threads(1)

    def answer(name):
        if name.startswith("pipeline:"):
            return pipeline(model=name.removeprefix("pipeline:"), trust_remote_code=True).task
        model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        picture = Image.new("RGB", (224, 224), "red")
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "何が写っていますか?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )
        new = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        logits = model(**inputs).logits[0, -1, :16].float()
        return {"answer": new.tolist(), "logits": logits.tolist(), "dtype": str(model.dtype),
                "language": type(model.model.language_model).__name__}

    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            try:
                print(json.dumps(answer(json.loads(line))), flush=True)
            except BaseException:
                print(json.dumps({"error": traceback.format_exc()}), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
"""


def of_a_stranger(hub, home):
    """Environment of a process that knows of no other Hub."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return environment | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@pytest.fixture(scope="session")
def stranger(loopback, tmp_path_factory):
    """`stranger(name)`: what a fresh process gets from a repository or folder: answer, first logits, dtype, class."""
    home = tmp_path_factory.mktemp("stranger")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STRANGER)],
        env=of_a_stranger(loopback, home),
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(name):
        process.stdin.write(json.dumps(str(name)) + "\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline())
        assert "error" not in found, found
        return found

    yield ask
    process.stdin.close()
    process.wait()


@pytest.fixture
def download(hub, tmp_path):
    """`download(repo)`: a folder with all that is in a repository."""

    def fetch(repo):
        folder = tmp_path / f"download-{hub.commit(repo)[:8]}"
        return huggingface_hub.snapshot_download(repo, local_dir=folder) and folder

    return fetch


@pytest.fixture
def save_run(tmp_path):
    """`save_run(folder, seed)`: output of a training run: another projection for a checkpoint."""

    def save(folder, seed):
        from jminigpt4 import JMiniGPT4ForConditionalGeneration
        from jminigpt4.checkpoint import save_projection

        model = JMiniGPT4ForConditionalGeneration.from_pretrained(folder)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.model.language_projection.weight)
        run = tmp_path / f"run-{seed}"
        run.mkdir()
        save_projection(model, run, {"text_model_type": model.config.text_config.model_type})
        return run

    return save
