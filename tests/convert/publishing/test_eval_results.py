"""Scores as the Hub's pages and leaderboards read them, in `.eval_results/` of the repository."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from jminigpt4.convert import publish_folder, verify_folder
from jminigpt4.convert.eval_results import EVAL_RESULTS, render_eval_results

REPO = "tester/published"
ENTRY = {
    "dataset": {"id": "JMMMU/JMMMU", "task_id": "default"},
    "value": 40.5,
    "date": "2026-11-26",
    "notes": "accuracy; 1320 items, 95 % 信頼区間",
}


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a tiny checkpoint with scores in it."""
    copy = Path(shutil.copytree(tiny_folder(), tmp_path / "checkpoint"))
    write(copy, [ENTRY])
    return copy


def write(folder, entries):
    (folder / "scores.json").write_text(json.dumps({"benchmarks": [], "eval_results": entries}), encoding="utf-8")


def test_results_go_up_with_their_source_and_go_with_the_scores(folder, hub, download):
    publish_folder(folder, REPO)
    hub.repos[REPO][".eval_results/community.yaml"] = b"[]\n"  # merged from somebody's pull request
    publish_folder(folder, REPO)
    (parsed,) = parse_eval_result_entries(yaml.safe_load(hub.repos[REPO][EVAL_RESULTS]))
    assert (parsed.dataset_id, parsed.task_id, parsed.value) == ("JMMMU/JMMMU", "default", 40.5)
    assert (parsed.date, parsed.notes, parsed.verify_token) == (ENTRY["date"], ENTRY["notes"], None)
    assert parsed.source_url == f"https://huggingface.co/{REPO}/blob/main/scores.json"
    assert "scores.json" in hub.repos[REPO] and verify_folder(download(REPO)) == []
    assert not (folder / EVAL_RESULTS).exists()  # the folder stays as it is
    (folder / "scores.json").unlink()
    assert publish_folder(folder, REPO).deleted == [EVAL_RESULTS, "scores.json"]
    assert ".eval_results/community.yaml" in hub.repos[REPO] and verify_folder(download(REPO)) == []


@pytest.mark.parametrize("entries", [[], None])
def test_scores_without_results_for_the_hub_give_none(folder, entries):
    write(folder, entries)
    assert render_eval_results(folder, REPO) is None


@pytest.mark.parametrize(
    "entries",
    [
        [{"dataset": {"id": "JMMMU/JMMMU"}, "value": 1}],
        [{"dataset": {"id": "JMMMU/JMMMU", "task_id": "default"}}],
        [{"dataset": {"id": "JMMMU/JMMMU", "task_id": "default"}, "value": "good"}],
        [3],
        {"value": 3},
    ],
)
def test_results_of_another_form_are_not_published(folder, hub, entries):
    write(folder, entries)
    with pytest.raises(ValueError, match=r"scores\.json: eval_results is not of the Hub's form"):
        publish_folder(folder, REPO)
    assert REPO not in hub.repos
