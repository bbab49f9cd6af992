"""A folder goes to the Hub, again and again, and comes back in the hands of a stranger."""

import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.auto import CONFIG_MAPPING
from typer.testing import CliRunner

from jminigpt4.checkpoint import write_manifest
from jminigpt4.cli import app
from jminigpt4.convert import assemble, publish_folder, swap, verify_folder
from jminigpt4.convert.card import is_generated
from jminigpt4.convert.sources import open_source
from jminigpt4.train.export import export

REPO = "tester/published"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"initializer_range": 0.3}


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
    (folder / "LICENSE").write_text("of BLIP-2")


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_sources_of_the_hub_become_a_repository_of_the_hub(hub, reference, tmp_path, monkeypatch, stranger, download):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    small_blip2(tmp_path / "blip2")
    card = "---\nlicense: apache-2.0\ndatasets:\n- maker/captions\n---\n"
    projection = io.BytesIO()
    torch.manual_seed(0)
    state = {"llama_proj.weight": torch.randn(48, 32), "llama_proj.bias": torch.randn(48)}
    torch.save({"model": state, "optimizer": {}, "epoch": 3}, projection)
    hub.add("maker/blip2", {path.name: path.read_bytes() for path in (tmp_path / "blip2").iterdir()})
    hub.add("maker/llm", {path.name: path.read_bytes() for path in (reference / "llm").iterdir()})
    hub.add("maker/release", {"checkpoint.pth": projection.getvalue(), "README.md": card.encode()})
    hub.add("maker/room", {"checkpoint.pth": projection.getvalue()})
    out = tmp_path / "checkpoint"
    sources = ["--vision", "maker/blip2", "--language", "maker/llm@main"]
    sources += ["--projection", "maker/release/checkpoint.pth", "--format", "article-3.6b"]
    output = invoke("convert", out, *sources)
    assert "image encoder" in output and "whole prompt" in output  # the proof
    assert open_source("spaces/maker/room/checkpoint.pth").layout.name == "LAVIS"

    # Only what is needed was fetched.
    weight_map = json.loads(hub.repos["maker/blip2"]["model.safetensors.index.json"])["weight_map"]
    used = {file for key, file in weight_map.items() if not key.startswith("language_")}
    shards = {f"maker/blip2/{file}" for file in weight_map.values()}
    assert {f"maker/blip2/{file}" for file in used} == hub.fetched & shards < shards
    assert "maker/llm/model.safetensors" in hub.fetched and "maker/llm/pytorch_model.bin" not in hub.fetched

    # The account names every source with its commit.
    stated = json.loads((out / "conversion.json").read_text(encoding="utf-8"))["sources"]
    assert [stated[part]["repo"] for part in stated] == ["maker/blip2", "maker/blip2", "maker/llm", "maker/release"]
    assert all(len(source["commit"]) == 40 for source in stated.values())

    row = {"name": "JA-VLM-Bench", "metric": "rouge_l", "value": 40.5, "low": None, "high": None, "n": None}
    result = {"dataset": {"id": "SakanaAI/JA-VLM-Bench-In-the-Wild", "task_id": "default"}, "value": 40.5}
    (out / "scores.json").write_text(json.dumps({"benchmarks": [row], "eval_results": [result]}))
    output = invoke("publish", out, REPO, "--private", "--dataset", "maker/pictures")
    assert f"/{REPO}/commit/" in output and f"{REPO} is private." in output and hub.private[REPO]
    files = hub.repos[REPO]
    assert files["licenses/vision/LICENSE"] == files["licenses/qformer/LICENSE"] == b"of BLIP-2"
    assert b'name = "tester/published"' in files["README.md"] and is_generated(files["README.md"])
    data = ModelCard(files["README.md"].decode()).data.to_dict()
    assert data["base_model"] == ["maker/blip2", "maker/llm", "maker/release"]
    assert data["datasets"] == ["maker/captions", "maker/pictures"]
    assert (data["license"], data["license_name"]) == ("other", "not-stated-and-mit-and-apache-2.0")  # llm has no card
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 40.5
    source = {"url": f"https://huggingface.co/{REPO}/blob/main/scores.json", "name": "jminigpt4 evaluate"}
    assert yaml.safe_load(files[".eval_results/jminigpt4.yaml"]) == [result | {"source": source}]
    assert verify_folder(download(REPO)) == []
    assert stranger(REPO) == stranger(out)
    assert stranger(f"pipeline:{REPO}") == "image-text-to-text"  # the task comes from the card


CODE = {
    "configuration_mystery.py": """
from transformers import LlamaConfig


class MysteryConfig(LlamaConfig):
    model_type = "mystery"
""",
    "modeling_mystery.py": """
from transformers import LlamaForCausalLM, LlamaModel

from .configuration_mystery import MysteryConfig


class MysteryModel(LlamaModel):
    config_class = MysteryConfig


class MysteryForCausalLM(LlamaForCausalLM):
    config_class = MysteryConfig
""",
}


@pytest.fixture
def mystery(tmp_path):
    """A language model of a type that comes with its own code."""
    folder = tmp_path / "mystery"
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**SIZES, **sizes)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_mystery.MysteryConfig"}
    auto_map |= {"AutoModel": "modeling_mystery.MysteryModel"}
    auto_map |= {"AutoModelForCausalLM": "modeling_mystery.MysteryForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mystery", "auto_map": auto_map}))
    for name, code in CODE.items():
        (folder / name).write_text(code)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {chr(0x3042 + i): 4 + i for i in range(36)}
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    yield folder
    CONFIG_MAPPING._extra_content.pop("mystery", None)


def test_a_stranger_always_gets_what_was_published_last(
    originals, mystery, hub, stranger, download, save_run, tmp_path
):
    """One file of weights, shards, an export, another dtype, another language model with code of its own, and back."""
    fast = {"prove_equal": False, "progress": False}
    single = tmp_path / "single"
    assemble(**originals | fast, out=single)
    of_single = {"vision": single, "language": single, **fast}
    assemble(
        **of_single,
        projection=save_run(single, 1) / "projection.safetensors",
        out=tmp_path / "shards",
        shard_bytes=60_000,
    )
    export(tmp_path / "shards", save_run(single, 2), tmp_path / "export of shards")
    export(single, save_run(single, 3), tmp_path / "export")
    exported = {"vision": tmp_path / "export", "language": tmp_path / "export", **fast}
    assemble(**exported, projection=tmp_path / "export", dtype="bfloat16", out=tmp_path / "dtype")
    options = {"prompt_format": "article-3.6b", "trust_language_code": str(mystery), **fast}
    swap(tmp_path / "export", language=mystery, out=tmp_path / "code", **options)

    seen = []
    for step in ("single", "shards", "export of shards", "export", "dtype", "code", "single"):
        publication = publish_folder(tmp_path / step, REPO)
        weights = {path.name for path in (tmp_path / step).glob("*.safetensors")}
        assert {name for name in hub.repos[REPO] if name.endswith(".safetensors")} == weights, step
        assert hub.repos[REPO].keys() == {".gitattributes", *all_files(tmp_path / step)}, step
        assert not set(publication.deleted) & hub.repos[REPO].keys()
        assert verify_folder(download(REPO)) == [], step
        found = stranger(REPO)
        assert found == stranger(tmp_path / step), step
        assert found not in seen[-1:], f"the test could not tell {step} from the step before"
        seen.append(found)
    assert seen[0] == seen[-1]
    assert [found["dtype"] for found in seen[3:6]] == ["torch.float32", "torch.bfloat16", "torch.float32"]
    assert seen[5]["language"] == "MysteryModel"
    assert sum("commit/main" in request for request in hub.received) == 7  # one commit each time


def all_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_folder(), tmp_path / "checkpoint"))


def test_what_does_not_belong_is_deleted_and_what_is_kept_is_listed(folder, hub, download):
    publish_folder(folder, REPO)
    hub.repos[REPO] |= {"old.txt": b"old", "onnx/model.onnx": b"1", "figure.png": b"2", ".gitignore": b"3"}
    hub.repos[REPO] |= {"pytorch_model.bin": b"4"}
    publication = publish_folder(folder, REPO, keep=["onnx/*", "*.png"])
    assert publication.deleted == ["old.txt", "pytorch_model.bin"]
    kept = {"onnx/model.onnx", "figure.png", ".gitignore", ".gitattributes"}
    assert hub.repos[REPO].keys() == {*all_files(folder), *kept}
    assert f"{REPO}/figure.png" not in hub.fetched  # the Hub states the digest of a large file
    assert verify_folder(download(REPO)) == []


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model-00001-of-00002.safetensors", "old_code.py", "adapter_config.json", "vocab.json"],
)
def test_what_would_be_loaded_cannot_be_kept(folder, hub, name):
    publish_folder(folder, REPO)
    hub.repos[REPO][name] = b""
    before = dict(hub.repos[REPO])
    with pytest.raises(ValueError, match=f"{name} of {REPO} cannot be kept"):
        publish_folder(folder, REPO, keep=["*"])
    assert hub.repos[REPO] == before


def test_publishing_twice_changes_nothing(folder, hub):
    first = publish_folder(folder, REPO)
    hub.received.clear()
    assert publish_folder(folder, REPO) == first
    assert not any("commit/main" in each or each.startswith("PUT") for each in hub.received)


def test_private_onto_a_public_repository_stops(folder, hub):
    assert not publish_folder(folder, REPO).private
    before = dict(hub.repos[REPO])
    with pytest.raises(ValueError, match=f"{REPO} is public"):
        publish_folder(folder, REPO, private=True)
    assert hub.repos[REPO] == before and not hub.private[REPO]
    hub.private[REPO] = True
    assert publish_folder(folder, REPO).private  # nor is a private one made public unasked


def edit(path, more="\nA sentence of mine.\n"):
    path.write_text(path.read_text(encoding="utf-8") + more, encoding="utf-8")


def test_a_card_edited_on_the_hub_is_not_overwritten_in_silence(folder, hub, download):
    publish_folder(folder, REPO)
    hub.repos[REPO]["README.md"] += b"\nEdited on the Hub.\n"
    before = dict(hub.repos[REPO])
    with pytest.raises(ValueError, match=r"README\.md of tester/published was edited on the Hub: keep .* --keep READ"):
        publish_folder(folder, REPO)
    assert hub.repos[REPO] == before
    publish_folder(folder, REPO, keep=["README.md"])
    assert hub.repos[REPO]["README.md"] == before["README.md"]
    assert verify_folder(download(REPO)) == []
    publish_folder(folder, REPO, replace_card=True)
    assert is_generated(hub.repos[REPO]["README.md"])


def test_documents_edited_in_the_folder_are_renewed_and_published(folder, hub, download):
    edit(folder / "README.md")
    (folder / "LICENSE").write_text("mine")
    with pytest.raises(ValueError, match=r"README\.md has changed"):
        publish_folder(folder, REPO)
    invoke("verify", folder, "--renew", "README.md", "--renew", "LICENSE")
    publish_folder(folder, REPO)
    assert hub.repos[REPO]["README.md"].endswith(b"A sentence of mine.\n") and hub.repos[REPO]["LICENSE"] == b"mine"
    edit(folder / "README.md", "Another.\n")
    invoke("verify", folder, "--renew", "README.md")
    publish_folder(folder, REPO)  # the card there is the one that was published, edited by nobody since
    assert hub.repos[REPO]["README.md"].endswith(b"Another.\n")
    (folder / "LICENSE").unlink()
    invoke("verify", folder, "--renew", "LICENSE")
    assert publish_folder(folder, REPO).deleted == ["LICENSE"]
    assert verify_folder(download(REPO)) == []


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "modeling_jminigpt4.py",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE.py",
        "licenses/../config.json",
        "conversion.json",
    ],
)
def test_weights_code_and_settings_are_not_renewed(folder, name):
    path = folder / name
    (folder / "licenses").mkdir()
    path.write_bytes((path.read_bytes() if path.is_file() else b"") + b" ")
    before = (folder / "SHA256SUMS").read_bytes()
    done = CliRunner().invoke(app, ["verify", str(folder), "--renew", "README.md", "--renew", name])
    assert isinstance(done.exception, ValueError) and "cannot be renewed" in str(done.exception)
    assert (folder / "SHA256SUMS").read_bytes() == before


def test_nothing_hidden_is_published(folder, hub):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "evil.py").write_text("x")
    with pytest.raises(ValueError, match=r"not published: \.cache/evil\.py is not listed"):
        publish_folder(folder, REPO)


def test_what_is_no_folder_is_not_published(tmp_path):
    for name in ("nofolder", "nofolder/", "~/nofolder"):
        for refuse in (verify_folder, lambda name: publish_folder(name, REPO)):
            with pytest.raises(FileNotFoundError, match="nofolder is not a folder"):
                refuse(tmp_path / name if name[0] != "~" else name)
    with pytest.raises(ValueError, match="~nosuchuser/x names the home"):
        verify_folder("~nosuchuser/x")


def test_a_damaged_folder_is_not_published(folder, hub):
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ValueError, match=r"not published: config\.json has changed"):
        publish_folder(folder, REPO)
    assert REPO not in hub.repos


def test_each_file_is_read_for_its_digest_once(folder, hub, monkeypatch):
    read = []

    def count(path):
        read.append(Path(path).name)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    monkeypatch.setattr("jminigpt4.checkpoint.sha256", count)
    monkeypatch.setattr("jminigpt4.convert.publishing.sha256", count)
    monkeypatch.setattr("huggingface_hub.lfs.sha_fileobj", lambda *args: pytest.fail("hashed once more"))
    publish_folder(folder, REPO)
    assert read.count("model.safetensors") == 1


def test_a_repository_that_was_pushed_before_becomes_equal_too(folder, hub, download):
    hub.add(REPO, {"README.md": b"---\ntags: []\n---\n", "model-00001-of-00002.safetensors": b"half"})
    with pytest.raises(ValueError, match="was edited on the Hub"):
        publish_folder(folder, REPO)
    publish_folder(folder, REPO, replace_card=True)
    assert hub.repos[REPO].keys() == all_files(folder)
    assert verify_folder(download(REPO)) == []


def test_a_folder_without_an_account_goes_up_as_it_is(folder, hub):
    (folder / "conversion.json").unlink()
    (folder / "README.md").write_text("mine")
    write_manifest(folder)
    publish_folder(folder, REPO)
    assert hub.repos[REPO]["README.md"] == b"mine"


def test_what_is_pushed_has_the_same_card_and_manifest(folder, hub, download, stranger):
    """By the installed package, model and processor in either order."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    for pushed in ((model, processor), (processor, model)):
        hub.repos.pop(REPO, None)
        for each in pushed:
            each.push_to_hub(REPO)
            assert {"README.md", "SHA256SUMS", "conversion.json"} <= hub.repos[REPO].keys()
        assert verify_folder(download(REPO)) == []
        card = hub.repos[REPO]["README.md"]
        publish_folder(folder, "tester/other")
        assert card.replace(b"tester/published", b"").splitlines()[:-1] == without_name(hub.repos["tester/other"])
        assert stranger(REPO) == stranger(folder)
    hub.repos[REPO]["README.md"] += b"Edited.\n"
    processor.push_to_hub(REPO)
    assert hub.repos[REPO]["README.md"].endswith(b"Edited.\n") and verify_folder(download(REPO)) == []


def without_name(files):
    card = files["README.md"].replace(b"tester/other", b"").replace(b"# other", b"# published")
    return card.splitlines()[:-1]
