"""A folder goes to the Hub and comes back in the hands of a stranger, against a stand-in on this machine."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    GPTNeoXConfig,
)

from jminigpt4.convert.card import licence_of_parts, write_card

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"initializer_range": 0.3}


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks for to create, upload and download a model repository: one branch, in memory."""

    protocol_version = "HTTP/1.1"
    repos: dict[str, dict[str, bytes]] = {}
    private: dict[str, bool] = {}
    fetched: set[str] = set()

    def log_message(self, *args):
        pass

    def answer(self, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": len(body), **dict(headers)}.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code):
        self.answer({"error": code}, 404, {"X-Error-Code": code})

    def commit(self, repo):
        names = sorted(self.repos[repo].items())
        return hashlib.sha1(b"".join(name.encode() + content for name, content in names)).hexdigest()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path).split("/")
        if self.path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given.get('organization') or 'tester'}/{given['name']}"
            self.repos.setdefault(repo, {})
            self.private[repo] = bool(given.get("private")) or given.get("visibility") == "private"
            return self.answer({"url": f"http://{self.headers['Host']}/{repo}", "name": repo, "id": repo})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        repo = "/".join(path[3:5])
        if path[5] == "preupload":
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": file["path"], **mode} for file in json.loads(body)["files"]]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                self.repos[repo].pop(line["value"]["path"], None)
        oid = self.commit(repo)
        url = f"http://{self.headers['Host']}/{repo}/commit/{oid}"
        return self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        if path[:2] == ["api", "whoami-v2"]:
            auth = {"accessToken": {"role": "write"}}
            return self.answer({"type": "user", "name": "tester", "orgs": [], "auth": auth})
        start = {"api": 2, "spaces": 1}.get(path[0], 0)
        repo = "/".join(path[start : start + 2])
        if repo not in self.repos:
            return self.missing("RepoNotFound")
        files, oid = self.repos[repo], self.commit(repo)
        if path[0] != "api":  # [spaces/]USER/NAME/resolve/REVISION/FILE
            name = "/".join(path[start + 4 :])
            if name not in files:
                return self.missing("EntryNotFound")
            if self.command == "GET":
                self.fetched.add(f"{repo}/{name}")
            tag = hashlib.sha256(files[name]).hexdigest()
            return self.answer(
                files[name],
                headers={"ETag": f'"{tag}"', "X-Repo-Commit": oid, "Content-Type": "application/octet-stream"},
            )
        if "tree" in path:  # api/models/USER/NAME/tree/REVISION[/FOLDER]
            folder = "".join(f"{part}/" for part in path[6:])
            listed = {name: content for name, content in files.items() if name.startswith(folder)}
            if folder and not listed:
                return self.missing("EntryNotFound")
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in listed.items()
                ]
            )
        card = ModelCard(files["README.md"].decode()).data.to_dict() if "README.md" in files else {}
        return self.answer(
            {
                "id": repo,
                "modelId": repo,
                "sha": oid,
                "private": self.private[repo],
                "siblings": [{"rfilename": name} for name in files],
                "tags": card.get("tags", []),
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "cardData": card,
            }
        )

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(program, hub, home, *arguments):
    """A fresh process that knows of no other Hub."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_test", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MAKER = """
    import json, pathlib, sys
    from typer.testing import CliRunner
    from typer import Typer
    from jminigpt4.convert.commands import convert, publish
    from jminigpt4.convert.sources import open_source
    from transformers import AutoModelForImageTextToText, AutoProcessor

    app = Typer(pretty_exceptions_enable=False)
    app.command()(convert)
    app.command()(publish)

    def run(*arguments):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (done.output, done.exception)
        print(done.output)

    out = sys.argv[1]
    sources = ["--vision", "maker/blip2", "--language", "maker/llm@main"]
    sources += ["--projection", "maker/release/checkpoint.pth"]
    run("convert", out, *sources, "--format", "article-3.6b")
    row = {"name": "JA-VLM-Bench", "metric": "rouge_l", "value": 40.5, "low": None, "high": None, "n": None}
    pathlib.Path(out, "scores.json").write_text(json.dumps({"benchmarks": [row]}))
    run("publish", out, "tester/published", "--private", "--dataset", "maker/pictures")
    AutoModelForImageTextToText.from_pretrained(out).push_to_hub("tester/pushed")
    AutoProcessor.from_pretrained(out).push_to_hub("tester/pushed")
    assert open_source("spaces/maker/room/checkpoint.pth").layout.name == "LAVIS"
"""
STRANGER = """
    import importlib.util, json, pathlib, sys
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    sys.path = [path for path in sys.path if not path.startswith("__editable__")]
    sys.path = [path for path in sys.path if not pathlib.Path(path, "jminigpt4").exists()]
    assert importlib.util.find_spec("jminigpt4") is None
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    picture = Image.new("RGB", (224, 224), "red")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "何が写っていますか?"}]
    messages = [{"role": "user", "content": content}]
    answers = []
    for name in ("tester/published", "tester/pushed"):
        model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        answers.append(answer[0].tolist())
    pipe = pipeline(model="tester/published", trust_remote_code=True)  # the task comes from the card
    answers.append(pipe.task)
    print(json.dumps(answers))
"""


def small_blip2(folder):
    """A BLIP-2 in shards, as the large ones are published."""
    config = Blip2Config(
        vision_config={**SIZES, "image_size": 28, "patch_size": 14},
        qformer_config={**SIZES, "encoder_hidden_size": 32, "vocab_size": 8, "max_position_embeddings": 16},
        text_config=GPTNeoXConfig(**SIZES, vocab_size=50).to_dict(),
        num_query_tokens=4,
    )
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(config).save_pretrained(folder, max_shard_size="20KB")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")


@pytest.fixture(scope="module")
def published(hub, reference, tmp_path_factory):
    """Parts fetched from the Hub, made into one folder and published, all by a fresh process; the folder."""
    blip2 = tmp_path_factory.mktemp("blip2")
    small_blip2(blip2)
    card = "---\nlicense: apache-2.0\ndatasets:\n- maker/captions\n---\n"
    projection = io.BytesIO()
    torch.manual_seed(0)
    state = {"llama_proj.weight": torch.randn(48, 32), "llama_proj.bias": torch.randn(48)}
    torch.save({"model": state, "optimizer": {}, "epoch": 3}, projection)
    Hub.repos |= {
        "maker/blip2": {path.name: path.read_bytes() for path in blip2.iterdir()},
        "maker/llm": {path.name: path.read_bytes() for path in (reference / "llm").iterdir()},
        "maker/release": {"checkpoint.pth": projection.getvalue(), "README.md": card.encode()},
        "maker/room": {"checkpoint.pth": projection.getvalue()},
    }
    Hub.private |= dict.fromkeys(Hub.repos, False)
    home = tmp_path_factory.mktemp("home")
    output = run(MAKER, hub, home, home / "checkpoint")
    assert "/tester/published/commit/" in output, output
    assert "image encoder" in output and "whole prompt" in output  # the proof
    return home / "checkpoint"


def test_only_what_is_needed_is_fetched(published):
    weight_map = json.loads(Hub.repos["maker/blip2"]["model.safetensors.index.json"])["weight_map"]
    used = {file for key, file in weight_map.items() if not key.startswith("language_")}
    shards = {f"maker/blip2/{file}" for file in weight_map.values()}
    assert {f"maker/blip2/{file}" for file in used} == Hub.fetched & shards < shards
    assert "maker/llm/model.safetensors" in Hub.fetched and "maker/llm/pytorch_model.bin" not in Hub.fetched


def test_the_account_of_hub_sources(published):
    account = json.loads((published / "conversion.json").read_text(encoding="utf-8"))
    sources = account["sources"]
    assert [sources[part]["repo"] for part in sources] == ["maker/blip2", "maker/blip2", "maker/llm", "maker/release"]
    assert all(len(source["commit"]) == 40 for source in sources.values())
    data = ModelCard(Hub.repos["tester/published"]["README.md"].decode()).data.to_dict()
    assert data["base_model"] == ["maker/blip2", "maker/llm", "maker/release"]
    assert data["datasets"] == ["maker/captions", "maker/pictures"]
    assert data["license"] == "other"  # maker/llm has no card
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 40.5


def test_published_files(published):
    files = Hub.repos["tester/published"]
    assert Hub.private["tester/published"]
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "processor_config.json"}
    needed |= {"chat_template.jinja", "modeling_jminigpt4.py", "configuration_jminigpt4.py", "processing_jminigpt4.py"}
    assert needed | {"README.md", "SHA256SUMS"} <= files.keys()
    for line in files["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(files[name]).hexdigest() == digest
    assert b'name = "tester/published"' in files["README.md"]


def test_a_stranger_loads_it_and_gets_the_same_answer(published, hub, tmp_path):
    answers = json.loads(run(STRANGER, hub, tmp_path).splitlines()[-1])
    assert answers[2] == "image-text-to-text"
    model = AutoModelForImageTextToText.from_pretrained(published)
    content = [{"type": "image", "image": Image.new("RGB", (224, 224), "red")}]
    content.append({"type": "text", "text": "何が写っていますか?"})
    inputs = AutoProcessor.from_pretrained(published).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    own = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert answers[0] == answers[1] == own[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_damaged_folder_is_not_published(folder):
    from jminigpt4.convert import publish_folder

    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ValueError, match="not published: config.json has changed"):
        publish_folder(folder, "tester/damaged")


def test_the_card(folder):
    account = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    rinna = {"name": "rinna/japanese-gpt-neox-3.6b", "repo": "rinna/japanese-gpt-neox-3.6b", "license": "mit"}
    account["sources"]["language"] |= {**rinna, "commit": "0123456789abcdef"}
    (folder / "conversion.json").write_text(json.dumps(account), encoding="utf-8")
    row = {"name": "JA-VG-VQA-500", "dataset": "SakanaAI/JA-VG-VQA-500", "metric": "rouge_l", "value": 12.5}
    scores = {"model": "me", "benchmarks": [{**row, "low": 11, "high": 14.25, "n": 500}, {"name": "broken"}, 3]}
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    card = ModelCard.load(write_card(folder, "me/japanese-minigpt4"))
    data = card.data.to_dict()
    assert data["language"] == "ja" and data["pipeline_tag"] == "image-text-to-text"
    assert data["library_name"] == "transformers" and "custom_code" in data["tags"]
    assert data["base_model"] == ["rinna/japanese-gpt-neox-3.6b"]
    assert data["license"] == "other"  # what trained the projection is not known
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"] == {"type": "SakanaAI/JA-VG-VQA-500", "name": "JA-VG-VQA-500"}
    assert result["metrics"][0] == {"type": "rouge_l", "value": 12.5}
    assert "| JA-VG-VQA-500 | rouge_l | 12.5 | 11 – 14.25 | 500 |" in card.text
    assert "| image encoder |" in card.text and "code_revision" in card.text


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["mit", "apache-2.0"], "mit"),
        (["mit", "bsd-3-clause"], "bsd-3-clause"),
        (["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["mit", None], "other"),
        (["mit", "llama2"], "other"),
    ],
)
def test_licence_is_that_of_the_strictest_part(licences, expected):
    sources = {str(i): {"license": licence, "layout": "causal language model"} for i, licence in enumerate(licences)}
    assert licence_of_parts(sources) == expected


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"benchmarks": 3}', '{"benchmarks": [{"name": "a", "metric": "b"}]}']
)
def test_scores_of_another_form_give_none(folder, text):
    (folder / "scores.json").write_text(text, encoding="utf-8")
    card = ModelCard.load(write_card(folder))
    assert "model-index" not in card.data.to_dict() and "## Scores" not in card.text
