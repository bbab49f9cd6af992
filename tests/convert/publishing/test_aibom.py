"""The bill of materials: valid CycloneDX 1.6, true of the folder, and the same bytes every time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors.torch import load_file

from jminigpt4 import DEMO
from jminigpt4.checkpoint import AIBOM, MANIFEST, read_manifest, write_manifest
from jminigpt4.convert import assemble, publish_folder, verify_folder
from jminigpt4.convert.account import Account
from jminigpt4.convert.aibom import part_digests
from jminigpt4.convert.sealing import seal
from jminigpt4.train.export import export

RINNA = {"repo": "rinna/bilingual-gpt-neox-4b", "commit": "0123456789abcdef0123456789abcdef01234567", "license": "mit"}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder(), tmp_path / "checkpoint"))


def bill(folder, name="me/model", **options):
    """The validated content of the bill that a folder gets."""
    write_manifest(folder)
    seal(folder, aibom=name, **options)
    text = (folder / AIBOM).read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)


def by_ref(content):
    return {each["bom-ref"]: each for each in content["components"]}


def properties(component):
    return {each["name"].removeprefix("jminigpt4:"): each["value"] for each in component["properties"]}


def test_the_validator_finds_faults(folder):
    content = bill(folder)
    content["components"][0]["licence"] = "MIT"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(content)) is not None


def test_the_bill_of_a_folder_with_all_that_can_be_known(folder):
    account = Account.read(folder)
    account.sources |= {"language": {**RINNA, "name": RINNA["repo"], "layout": "causal language model"}}
    account.sources["vision"] = {"name": "eva_vit_g.pth", "layout": "EVA", "license": None}
    account.sources["qformer"] = {
        "name": "q",
        "license": "other",
        "license_name": "Own",
        "license_link": "https://x.y/z",
    }
    account.sources["projection"] = {
        "name": "trained with jminigpt4 on stair",
        "trained": True,
        "trained_on": ["stair"],
    }
    account.datasets = ["maker/captions"]
    account.proof = [{"stage": "image encoder", "max_abs_difference": 1.5e-7, "tolerance": 1e-5, "passed": True}]
    account.write(folder)
    content = bill(folder, datasets=["maker/pictures"])
    parts = by_ref(content)
    kinds = [parts[f"part:{part}"]["type"] for part in ("vision", "qformer", "projection", "language", "tokenizer")]
    assert kinds == ["machine-learning-model"] * 5

    language = parts["part:language"]
    assert language["version"] == RINNA["commit"] and language["licenses"] == [{"license": {"id": "MIT"}}]
    assert language["purl"] == f"pkg:huggingface/rinna/bilingual-gpt-neox-4b@{RINNA['commit']}"
    url = f"https://huggingface.co/rinna/bilingual-gpt-neox-4b/tree/{RINNA['commit']}"
    assert language["externalReferences"] == [{"type": "distribution", "url": url}]
    assert parts["part:tokenizer"]["licenses"] == language["licenses"]
    eva = "https://github.com/baaivision/EVA/blob/master/LICENSE"
    assert parts["part:vision"]["licenses"] == [{"license": {"id": "MIT", "url": eva}}]
    assert parts["part:qformer"]["licenses"] == [{"license": {"name": "Own", "url": "https://x.y/z"}}]
    assert parts["part:projection"]["licenses"] == [{"license": {"name": "the publisher's own work"}}]

    names = ["maker/captions", "maker/pictures", "stair"]
    data = {ref: each["data"][0] for ref, each in parts.items() if each["type"] == "data"}
    assert sorted(data) == [f"dataset:{name}" for name in names]
    assert data["dataset:maker/captions"]["contents"] == {"url": "https://huggingface.co/datasets/maker/captions"}
    assert "contents" not in data["dataset:stair"]  # which is a file's name, not one of the Hub
    learnt = parts["part:projection"]["modelCard"]["modelParameters"]["datasets"]
    assert [each["ref"] for each in learnt] == [f"dataset:{name}" for name in names]

    whole = content["metadata"]["component"]
    assert whole["name"] == "me/model" and whole["modelCard"]["modelParameters"]["task"] == "image-text-to-text"
    said = properties(whole)
    assert said["proof"] == "each stage beside its source's own module"
    assert said["proof:image encoder"] == "max abs difference 1.50e-07, tolerance 1.00e-05"
    assert [each["name"] for each in content["metadata"]["tools"]["components"]] == ["jminigpt4"]


def test_files_and_parts_are_those_of_the_folder(folder):
    content = bill(folder)
    parts, listed = by_ref(content), read_manifest(folder / MANIFEST)
    files = {each["name"]: each["hashes"][0]["content"] for each in parts.values() if each["type"] == "file"}
    may_change = {"README.md", AIBOM}
    assert files == {name: digest for name, digest in listed.items() if name not in may_change}
    assert parts["part:tokenizer"]["hashes"] == [{"alg": "SHA-256", "content": listed["tokenizer.json"]}]
    assert parts["part:vision"]["hashes"][0]["content"] == part_digests(folder)["vision"]
    assert "licenses" not in parts["part:vision"]  # where nothing is known, nothing is said
    assert properties(content["metadata"]["component"])["proof"] == "not asked for"


def test_the_demo_has_a_licence_for_every_part(tmp_path):
    demo = Path(shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("__pycache__")))
    parts = by_ref(bill(demo))
    licences = {ref: each["licenses"][0]["license"] for ref, each in parts.items() if ref.startswith("part:")}
    assert licences["part:vision"] == {"id": "Apache-2.0"} and licences["part:language"] == {"id": "CC-BY-4.0"}
    assert licences.keys() == {f"part:{each}" for each in ("vision", "qformer", "projection", "language", "tokenizer")}
    assert verify_folder(demo) == []


def test_the_same_folder_gives_the_same_bytes_and_another_one_another_number(folder, tmp_path):
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    first, again = bill(folder), bill(moved)
    assert (folder / AIBOM).read_bytes() == (moved / AIBOM).read_bytes() and "timestamp" not in first["metadata"]
    (moved / "README.md").write_text("another card")
    assert bill(moved)["serialNumber"] == first["serialNumber"] == again["serialNumber"]
    (moved / "notes.txt").write_text("one file more")
    assert bill(moved)["serialNumber"] != first["serialNumber"]


def test_a_parts_digest_does_not_depend_on_its_files(originals, save_run, tmp_path):
    """Shards, an export, and what was trained: only the projection differs."""
    fast = {"prove_equal": False, "progress": False}
    assemble(**originals | fast, out=tmp_path / "single")
    assemble(**originals | fast, out=tmp_path / "shards", shard_bytes=60_000)
    export(tmp_path / "single", save_run(tmp_path / "single", 1), tmp_path / "trained")
    single, shards, trained = (part_digests(tmp_path / name) for name in ("single", "shards", "trained"))
    assert single == shards and len(set(single.values())) == 4
    assert {part for part in single if single[part] != trained[part]} == {"projection"}


def test_every_tensor_belongs_to_a_part(folder, tmp_path):
    """One bit of any tensor changes the digest of one part."""
    from safetensors.torch import save_file

    tensors, before = load_file(folder / "model.safetensors"), part_digests(folder)
    for name in list(tensors):
        changed = tensors[name].clone()
        changed.view(torch.uint8).reshape(-1)[0] ^= 1
        save_file(tensors | {name: changed}, folder / "model.safetensors", metadata={"format": "pt"})
        after = part_digests(folder)
        assert sum(before[part] != after[part] for part in before) == 1, name


def test_a_stale_or_foreign_bill_is_found(folder, hub):
    bill(folder)
    assert verify_folder(folder) == []
    (folder / "generation_config.json").write_text((folder / "generation_config.json").read_text() + "\n")
    write_manifest(folder)
    assert verify_folder(folder) == ["aibom.cdx.json lists another generation_config.json than is here."]
    with pytest.raises(ValueError, match="not published: aibom"):
        publish_folder(folder, "tester/bill")
    publish_folder(folder, "tester/bill", aibom=True)
    assert json.loads(hub.repos["tester/bill"][AIBOM])["metadata"]["component"]["name"] == "tester/bill"
    for text in ("", "[]", '{"components": [{"type": "file", "name": "a", "hashes": []}]}'):
        (folder / AIBOM).write_text(text)
        write_manifest(folder)
        assert verify_folder(folder) == ["aibom.cdx.json is no bill of materials of this package."]
