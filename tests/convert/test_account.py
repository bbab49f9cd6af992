"""`conversion.json`: read and written in one place, and what it says of the projection."""

import json

import pytest

from jminigpt4 import DEMO
from jminigpt4.convert.account import FRESH, TRAINED, Account
from jminigpt4.convert.card import write_card

PROJECTION = {"name": "checkpoint.pth", "layout": "LAVIS", "license": None}
LANGUAGE = {"name": "llm", "layout": "causal language model", "license": "mit"}


def test_what_is_written_is_read(tmp_path):
    account = Account(prompt_format="plain", sources={"language": LANGUAGE}, fresh_projection=True, notes=["長い"])
    assert "長い" in account.write(tmp_path).read_text(encoding="utf-8")
    assert Account.read(tmp_path) == account


def test_a_folder_without_one_has_an_empty_account(tmp_path):
    account = Account.read(tmp_path)
    assert account == Account() and account.all_notes(tmp_path) == []


@pytest.mark.parametrize("text", ["", "[]", '"x"', '{"sources": 3}', '{"notes": "x"}'])
def test_another_file_of_that_name_is_refused(text, tmp_path):
    (tmp_path / "conversion.json").write_text(text)
    with pytest.raises(ValueError, match=r"conversion\.json is not the account of a conversion"):
        Account.read(tmp_path)


def test_keys_of_a_later_version_are_passed_over(tmp_path):
    (tmp_path / "conversion.json").write_text(json.dumps({"prompt_format": "plain", "later": 1}))
    assert Account.read(tmp_path).prompt_format == "plain"


@pytest.mark.parametrize("fresh", [True, False])
def test_an_account_of_version_0_1(fresh, tmp_path):
    """It had no mark of a fresh projection, but a sentence among its notes; the card says it once."""
    sources = {"language": LANGUAGE} | ({} if fresh else {"projection": PROJECTION})
    old = {"jminigpt4": "0.1.0", "prompt_format": "plain", "sources": sources, "datasets": [], "proof": None}
    old["notes"] = ["The table is full.", *([FRESH] if fresh else [])]
    (tmp_path / "conversion.json").write_text(json.dumps(old), encoding="utf-8")
    account = Account.read(tmp_path)
    assert account.fresh_projection == fresh and account.notes == ["The table is full."]
    assert write_card(tmp_path).read_text(encoding="utf-8").count(FRESH) == fresh


def test_the_demo_has_one():
    account = Account.read(DEMO)
    assert account.prompt_format == "article-3.6b" and not account.fresh_projection


def test_a_projection_trained_since_is_not_called_fresh(tmp_path):
    Account(sources={"language": LANGUAGE}, fresh_projection=True, notes=["Another note."]).write(tmp_path)
    card = write_card(tmp_path).read_text(encoding="utf-8")
    assert FRESH in card and TRAINED not in card
    (tmp_path / "model-projection.safetensors").write_bytes(b"")
    card = write_card(tmp_path).read_text(encoding="utf-8")
    assert FRESH not in card and "Another note." in card and TRAINED in card


def test_a_trained_projection_does_not_come_from_where_the_first_did(tmp_path):
    Account(sources={"language": LANGUAGE, "projection": PROJECTION}).write(tmp_path)
    assert "| projection | checkpoint.pth |" in write_card(tmp_path).read_text(encoding="utf-8")
    (tmp_path / "model-projection.safetensors").write_bytes(b"")
    assert "checkpoint.pth" not in write_card(tmp_path).read_text(encoding="utf-8")
