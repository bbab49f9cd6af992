"""Results in the Hub's form: what its documented schema asks for, and only what is a result of the whole benchmark."""

import datetime
import json
import re

import pytest
from huggingface_hub import parse_eval_result_entries

from jminigpt4.evaluate.benchmarks import BENCHMARKS, parse_request, read_items
from jminigpt4.evaluate.running import EvaluationPlan, run


def faults_by_the_documented_schema(entry: dict) -> list[str]:
    """What an entry of `.eval_results/*.yaml` lacks or has too much, by
    https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml (of 2026-08-22)."""
    known = {"dataset", "value", "verifyToken", "date", "source", "notes"}
    dataset, source = entry.get("dataset", {}), entry.get("source")
    checks = {
        "unknown keys": not set(entry) - known,
        "dataset.id is a data set of the Hub": re.fullmatch(r"[\w.-]+/[\w.-]+", dataset.get("id", "")) is not None,
        "dataset.task_id": isinstance(dataset.get("task_id"), str) and bool(dataset["task_id"]),
        "unknown keys of dataset": not set(dataset) - {"id", "task_id", "revision"},
        "value is a number": isinstance(entry.get("value"), int | float),
        "date is a text of ISO 8601": isinstance(entry.get("date"), str)
        and bool(datetime.date.fromisoformat(entry["date"])),
        "source has an address": source is None
        or ("url" in source and not set(source) - {"url", "name", "user", "org"}),
        "notes are a text": isinstance(entry.get("notes", ""), str),
    }
    return [name for name, kept in checks.items() if not kept]


@pytest.fixture
def evaluated(tmp_path, answers):
    """`evaluated(request)`: what `scores.json` holds for the Hub where every answer is the right one."""

    def evaluate(text: str, **options) -> list[dict]:
        request = parse_request(text, **options.pop("asked", {}))
        said = {item.id: (item.references or ("？",))[0] for item in read_items(request)}
        path = answers(tmp_path / "answers.jsonl", said)
        run(EvaluationPlan([request], tmp_path / "out", answered=[path], **options))
        return json.loads((tmp_path / "out/scores.json").read_text(encoding="utf-8"))["eval_results"]

    return evaluate


def test_a_result_is_as_the_hub_documents_it(evaluated, vg500):
    (entry,) = evaluated(f"ja-vg-vqa-500:sakana={vg500}")
    assert faults_by_the_documented_schema(entry) == []
    assert entry["dataset"] == {"id": "SakanaAI/JA-VG-VQA-500", "task_id": "default"} and entry["value"] == 100.0
    assert entry["notes"].startswith("ROUGE-L [neologdn") and "protocol sakana; 2 items, 95 %" in entry["notes"]
    assert parse_eval_result_entries([entry])[0].verify_token is None


def test_the_check_finds_what_the_schema_forbids(evaluated, jmmmu):
    (entry,) = evaluated(f"jmmmu={jmmmu}")
    assert faults_by_the_documented_schema(entry) == []
    assert faults_by_the_documented_schema(entry | {"metric": "accuracy"}) == ["unknown keys"]
    assert faults_by_the_documented_schema(entry | {"value": "40"}) == ["value is a number"]
    assert faults_by_the_documented_schema(entry | {"dataset": {"id": "JMMMU"}}) == [
        "dataset.id is a data set of the Hub", "dataset.task_id",
    ]  # fmt: skip
    assert faults_by_the_documented_schema(entry | {"source": {"name": "me"}}) == ["source has an address"]


def test_what_is_no_result_of_the_whole_set_is_left_out(evaluated, vg500, own, stair, tmp_path):
    assert evaluated(f"ja-vg-vqa-500:llm-jp={vg500}") == []  # another protocol than the owners'
    assert evaluated(f"ja-vg-vqa-500:sakana={vg500}", limit=1) == []
    ids = tmp_path / "ids.txt"
    ids.write_text("vg:11\n", encoding="utf-8")
    assert evaluated(f"ja-vg-vqa-500:sakana={vg500}", asked={"only": ids}) == []
    assert evaluated(str(own)) == [] and evaluated(f"stair-captions={stair}") == []


def test_the_limit_that_answers_were_made_with_counts(tmp_path, answers, vg500):
    settings = {"benchmark": "ja-vg-vqa-500", "protocol": "sakana", "path": str(vg500), "images": [], "prompt": ""}
    settings |= {"only": None, "limit": 1, "model": "m"}
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    answers(folder / "predictions.jsonl", {"101": "赤い消防車"})
    run(EvaluationPlan([], tmp_path / "out", answered=[folder / "predictions.jsonl"]))
    assert json.loads((tmp_path / "out/scores.json").read_text(encoding="utf-8"))["eval_results"] == []


def test_tasks_belong_to_data_sets_of_the_hub_and_to_protocols_that_there_are():
    named = {name: each for name, each in BENCHMARKS.items() if each.hub_tasks}
    assert all("/" in each.dataset and each.hub_tasks.keys() <= set(each.protocols) for each in named.values())
    assert set(BENCHMARKS) - set(named) == {
        "own", "stair-captions", "yj-captions", "ja-vg-vqa", "jgraphqa",  # no data set there
        "cvqa-ja", "cc-ocr-ja", "jammeval",  # a part of the set, or a score over several
        "heron-bench", "jawildtext-board-vqa", "business-slide-vqa", "hakusho-bench",  # a judge's
    }  # fmt: skip
