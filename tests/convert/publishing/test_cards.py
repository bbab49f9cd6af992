"""The card: true of every kind of checkpoint, and valid for the Hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from jminigpt4.checkpoint import MANIFEST, read_manifest
from jminigpt4.convert import assemble, verify_folder
from jminigpt4.convert.account import TRAINED, Account
from jminigpt4.convert.card import is_generated, write_card
from jminigpt4.convert.licences import Licence, licence_metadata, stated_licence, stated_list
from jminigpt4.convert.plan import plan_conversion
from jminigpt4.train.export import export

EVA = {"name": "eva_vit_g.pth", "layout": "EVA", "license": None}
LAVIS = {"name": "blip2_pretrained_flant5xxl.pth", "layout": "LAVIS", "license": None}
BLIP2 = {"name": "Salesforce/blip2-flan-t5-xxl", "repo": "Salesforce/blip2-flan-t5-xxl", "license": "mit"}
RINNA = {"name": "rinna/bilingual-gpt-neox-4b", "repo": "rinna/bilingual-gpt-neox-4b", "license": "mit"}
RINNA |= {"languages": ["ja", "en"], "layout": "causal language model", "commit": "0123456789abcdef"}
VICUNA = {"name": "vicuna-7b", "license": None, "layout": "causal language model"}
QWEN = {"name": "Qwen/Qwen2.5-3B-Instruct", "repo": "Qwen/Qwen2.5-3B-Instruct", "license": "other"}
QWEN |= {"license_name": "Qwen-Research", "license_link": "LICENSE", "languages": ["en"]}
CHECKPOINT = {"name": "checkpoint.pth", "layout": "LAVIS", "license": "mit"}

# Account of four kinds of checkpoint, and what their cards state.
KINDS = {
    "rinna": (
        Account(
            prompt_format="rinna-4b",
            sources={"vision": EVA, "qformer": LAVIS, "language": RINNA, "projection": CHECKPOINT},
        ),
        {"license": "bsd-3-clause", "language": ["ja", "en"], "base_model": ["rinna/bilingual-gpt-neox-4b"]},
        ["何が写っていますか?", "Japanese MiniGPT-4: a frozen", "LAVIS/blob/main/LICENSE.txt) (LAVIS) |", "(EVA) |"],
    ),
    "vicuna": (
        Account(
            prompt_format="minigpt4",
            sources={"vision": EVA, "qformer": LAVIS, "language": VICUNA, "projection": CHECKPOINT},
        ),
        {"license": "other", "language": ["en"], "license_name": "not-stated-and-mit-and-bsd-3-clause"},
        ["What is in this picture?", "\nMiniGPT-4: a frozen", "| language | vicuna-7b | not stated |"],
    ),
    "swapped": (
        Account(
            prompt_format="chatml",
            sources={"vision": BLIP2, "qformer": BLIP2, "language": QWEN},
            fresh_projection=True,
        ),
        {
            "license": "other",
            "language": ["en"],
            "license_name": "qwen-research-and-mit",
            "license_link": "https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
        },
        ["What is in this picture?", "[Qwen-Research](https://huggingface.co/Qwen/", "freshly initialised"],
    ),
    "trained": (
        Account(
            prompt_format="article-3.6b",
            sources={"vision": BLIP2, "qformer": BLIP2, "language": RINNA},
            fresh_projection=True,
        ),
        {"license": "mit", "language": ["ja", "en"]},
        ["| projection | trained with jminigpt4 on stair, ja-vg-vqa | the publisher's own work |", TRAINED],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_of_four_kinds_of_checkpoint(kind, tmp_path):
    account, metadata, sentences = KINDS[kind]
    account.write(tmp_path)
    if kind == "trained":
        stated = {"format": "pt", "trained_on": "stair, ja-vg-vqa"}
        save_file({"w": torch.zeros(1)}, tmp_path / "model-projection.safetensors", metadata=stated)
    text = write_card(tmp_path, "me/model").read_text(encoding="utf-8")
    card = ModelCard(text)  # raises where the Hub's own reader would
    data = card.data.to_dict()
    assert {key: data.get(key) for key in metadata} == metadata
    assert data["pipeline_tag"] == "image-text-to-text" and data["library_name"] == "transformers"
    assert all(sentence in text for sentence in sentences), text
    check_as_the_hub_does(text)


def check_as_the_hub_does(text):
    """The Hub's rules for the metadata of a model, as its documentation states them."""
    data = yaml.safe_load(text.split("---\n")[1])
    strings = {"license", "license_name", "license_link", "library_name", "pipeline_tag"}
    assert all(isinstance(data[key], str) for key in strings & data.keys())
    assert ("license_name" in data) == (data["license"] == "other")
    assert data["license"] == data["license"].lower() and data.get("license_name", "").replace("-", "").replace(
        ".", ""
    ).isalnum() == ("license_name" in data)
    assert data.get("license_link", "LICENSE").startswith(("https://", "LICENSE"))
    assert all(len(code) in (2, 3) for code in data.get("language", []))
    assert all(name.count("/") == 1 for name in data.get("base_model", []))


def test_the_card_of_a_converted_folder(folder):
    account = Account.read(folder)
    account.sources["language"] |= RINNA
    account.write(folder)
    row = {"name": "JA-VG-VQA-500", "dataset": "SakanaAI/JA-VG-VQA-500", "metric": "rouge_l", "value": 12.5}
    scores = {"model": "me", "benchmarks": [{**row, "low": 11, "high": 14.25, "n": 500}, {"name": "broken"}, 3]}
    (folder / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    card = ModelCard.load(write_card(folder, "me/japanese-minigpt4"))
    data = card.data.to_dict()
    assert "custom_code" in data["tags"] and data["base_model"] == ["rinna/bilingual-gpt-neox-4b"]
    assert data["license"] == "other"  # what trained the projection is not known
    assert data["license_link"] == "https://huggingface.co/me/japanese-minigpt4#parts"
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"] == {"type": "SakanaAI/JA-VG-VQA-500", "name": "JA-VG-VQA-500"}
    assert result["metrics"][0] == {"type": "rouge_l", "value": 12.5}
    assert "| JA-VG-VQA-500 | rouge_l | 12.5 | 11 – 14.25 | 500 |" in card.text
    assert "| image encoder |" in card.text and "code_revision" in card.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["mit", "apache-2.0"], {"license": "mit"}),
        (["mit", "bsd-3-clause"], {"license": "bsd-3-clause"}),
        (["mit", "cc-by-nc-4.0"], {"license": "cc-by-nc-4.0"}),
        (["mit", None], {"license": "other", "license_name": "not-stated-and-mit"}),
        (["mit", "Llama 2"], {"license": "other", "license_name": "llama-2-and-mit"}),
        ([], {"license": "other", "license_name": "not-stated"}),
    ],
)
def test_licence_is_that_of_the_strictest_part(names, expected):
    assert licence_metadata([Licence(name) for name in names], None) == expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("license: Apache-2.0", {"license": "apache-2.0"}),
        ("license: [MIT]", {"license": "mit"}),
        (
            "license: other\nlicense_name: q\nlicense_link: L",
            {"license": "other", "license_name": "q", "license_link": "L"},
        ),
        ("tags: [a]", {"license": None}),
        ("license: [mit, gpl]", {"license": None}),
        (": : :", {"license": None}),
    ],
)
def test_what_a_card_states_of_its_licence(metadata, expected, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n")
    assert stated_licence(tmp_path / "README.md") == expected
    assert stated_licence(None) == {"license": None}


def test_languages_are_one_or_several(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\nlanguage: ja\n---\n")
    assert stated_list(card, "language") == ["ja"]
    card.write_text("---\nlanguage:\n- ja\n- en\n---\n")
    assert stated_list(card, "language") == ["ja", "en"]


def test_a_card_says_what_to_cite(tmp_path):
    """The article where it speaks Japanese, rinna's release where the projection is of theirs, the method always."""
    release = {**CHECKPOINT, "repo": "rinna/bilingual-gpt-neox-4b-minigpt4"}
    for name, prompt_format, projection in (("ja", "rinna-4b", release), ("en", "minigpt4", CHECKPOINT)):
        Account(prompt_format=prompt_format, sources={"language": VICUNA, "projection": projection}).write(tmp_path)
        card = write_card(tmp_path).read_text(encoding="utf-8")
        assert "2304.10592" in card and "2301.12597" in card
        assert ("zenn.dev/rinna/articles/5fad41e3f2a401" in card) == (name == "ja")
        assert ("@misc{rinna-bilingual-gpt-neox-4b-minigpt4" in card) == (name == "ja")


def test_a_card_is_known_from_one_that_was_edited(tmp_path):
    Account(prompt_format="plain").write(tmp_path)
    text = write_card(tmp_path).read_bytes()
    assert is_generated(text)
    assert not is_generated(text + b"more\n") and not is_generated(text.replace(b"MiniGPT-4", b"Mine", 1))
    assert not is_generated(b"") and not is_generated(b"mine\n")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"benchmarks": 3}', '{"benchmarks": [{"name": "a", "metric": "b"}]}']
)
def test_scores_of_another_form_give_none(tmp_path, text):
    (tmp_path / "scores.json").write_text(text, encoding="utf-8")
    card = ModelCard.load(write_card(tmp_path))
    assert "model-index" not in card.data.to_dict() and "## Scores" not in card.text


def test_a_trained_projection_stays_so_through_export_conversion_and_renaming(originals, save_run, tmp_path):
    """Its origin, the licences of the sources, and no warning that it was trained for the very same language model."""
    fast = {"prove_equal": False, "progress": False}
    llm = Path(shutil.copytree(originals["language"], tmp_path / "llm"))
    (llm / "LICENSE").write_text("of the language model")
    (llm / "NOTICE.txt").write_text("a notice")
    (llm / "README.md").write_text("---\nlicense: MIT\nlanguage: ja\n---\n")
    assemble(**originals | fast | {"language": llm}, out=tmp_path / "base")
    assert (tmp_path / "base" / "licenses" / "language" / "LICENSE").read_text() == "of the language model"
    assert "licenses/language/NOTICE.txt" in read_manifest(tmp_path / "base" / MANIFEST)
    run = save_run(tmp_path / "base", 1)
    data = [{"path": "/home/me/rows.jsonl"}, {"path": ["/a/stair_train.json", "/a/b.json"], "name": "stair"}]
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
    export(tmp_path / "base", run, tmp_path / "trained")
    trained = tmp_path / "trained"
    assert "/home/me" not in (trained / "model-projection.safetensors").read_bytes().decode(errors="replace")
    write_card(trained)
    row = "| projection | trained with jminigpt4 on rows, stair | the publisher's own work |"
    assert row in (trained / "README.md").read_text(encoding="utf-8")

    assemble(vision=trained, language=trained, projection=trained, dtype="bfloat16", out=tmp_path / "again", **fast)
    account = Account.read(tmp_path / "again")
    assert account.sources["projection"]["trained_on"] == ["rows", "stair"] and account.all_notes("") == [TRAINED]
    card = (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert row in card and "checkpoint.pth" not in card and "was trained for" not in card
    assert {path.name for path in (tmp_path / "again" / "licenses" / "language").iterdir()} == {
        "LICENSE",
        "NOTICE.txt",
    }
    assert verify_folder(tmp_path / "again") == []

    names = {"vision": trained, "qformer": trained, "language": llm, "projection": tmp_path / "again"}
    heads = {"vision": None, "qformer": None}
    assert not any("trained for" in note for note in plan_conversion(names, None, "float32", heads).notes)
    other = Path(shutil.copytree(llm, tmp_path / "other"))
    change_weights(other)
    notes = plan_conversion(names | {"language": other}, None, "float32", heads).notes
    assert any("says it was trained for llm, not for other" in note for note in notes)


def change_weights(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(1.25)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for path in folder.glob("pytorch_model*"):
        path.unlink()
