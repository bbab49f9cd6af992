"""A server is examined as a checkpoint is: the same items, settings, resumption and scores."""

import json

import pytest
from typer.testing import CliRunner

from jminigpt4.cli import app
from jminigpt4.evaluate import endpoint_answers
from jminigpt4.evaluate.benchmarks import parse_request
from jminigpt4.evaluate.running import EvaluationPlan, run


def plan_for(server, own, output, **options) -> EvaluationPlan:
    options = {"controls": 0, "generation": {"max_new_tokens": 8, "batch_size": 4}, **options}
    return EvaluationPlan(
        [parse_request(str(own))], output, model="rival", endpoint=server.url, progress=False, **options
    )


def text_of(body: dict) -> str:
    return "".join(part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text")


def pictures_in(body: dict) -> list[str]:
    return [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]


def test_the_same_items_by_the_same_protocol(tmp_path, own, scripted_server):
    with scripted_server(lambda body: "犬が写っています。") as server:
        sheet = run(plan_for(server, own, tmp_path / "out"))
    assert sheet.model == "rival" and sheet.results[0].scores[0].value == pytest.approx(400 / 12)
    assert len(server.requests) == 12
    for body in server.requests:
        assert body["temperature"] == 0 and body["max_tokens"] == 8 and body["model"] == "rival"
        assert len(pictures_in(body)) == 1 and text_of(body)
    settings = json.loads((tmp_path / "out/held_out/settings.json").read_text())
    assert settings["endpoint"] == server.url and "checkpoint" not in settings


def test_a_stopped_run_asks_only_what_is_missing(tmp_path, own, scripted_server):
    with scripted_server(lambda body: "犬") as server:
        whole = run(plan_for(server, own, tmp_path / "whole"))
        server.requests.clear()
        server.answer = lambda body: "犬" if len(server.requests) < 6 else (401, {}, "no more")
        with pytest.raises(ValueError, match="401"):
            run(plan_for(server, own, tmp_path / "out"))
        done = (tmp_path / "out/held_out/predictions.jsonl").read_text().count("\n")
        assert 0 < done < 12
        server.requests.clear()
        server.answer = lambda body: "犬"
        resumed = run(plan_for(server, own, tmp_path / "out"))
        assert len(server.requests) == 12 - done
    assert resumed.as_dict()["benchmarks"] == whole.as_dict()["benchmarks"]


def test_a_refused_question_counts_as_unanswered_and_is_told(tmp_path, own, scripted_server):
    def answer(body):
        return (400, {}, '{"error": {"message": "filtered"}}') if "色" in text_of(body) else "犬が写っています。"

    with scripted_server(answer) as server:
        sheet = run(plan_for(server, own, tmp_path / "out", generation={"batch_size": 1}))
    refused = [each for each in sheet.results[0].predictions if each.refused]
    assert len(refused) == 4 and all(each.answer == "" for each in refused)
    assert any("4 questions were refused" in note and "filtered" in note for note in sheet.results[0].notes)


def test_a_model_that_takes_nothing_stops_the_run(tmp_path, own, scripted_server):
    stopped = pytest.raises(ValueError, match="400: no pictures here")
    with scripted_server(lambda body: (400, {}, "no pictures here")) as server, stopped:
        run(plan_for(server, own, tmp_path / "out"))
    assert not (tmp_path / "out/scores.json").exists()


def test_a_checkpoint_behind_serve_answers_and_scores_as_here(tmp_path, checkpoint, own, serve_checkpoint):
    generation = {"max_new_tokens": 8, "batch_size": 4}
    here = EvaluationPlan(
        [parse_request(str(own))], tmp_path / "here", model=str(checkpoint), generation=generation, progress=False,
        dtype="float32", controls=4,
    )  # fmt: skip
    there = EvaluationPlan(
        [parse_request(str(own))], tmp_path / "there", model="tiny", generation=generation, progress=False, controls=4,
        endpoint=serve_checkpoint(checkpoint),
    )  # fmt: skip
    here, there = run(here), run(there)
    answers = [[each.answer for each in sheet.results[0].predictions] for sheet in (here, there)]
    assert answers[0] == answers[1] and len(set(answers[0])) > 1
    for part in ("benchmarks", "controls"):
        assert here.as_dict()[part] == there.as_dict()[part]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--endpoint", "http://127.0.0.1:9"], "--endpoint URL and --model NAME"),
        (["--model", "rival"], "--endpoint URL and --model NAME"),
        (["demo", "--endpoint", "http://127.0.0.1:9", "--model", "rival"], "--endpoint URL and --model NAME"),
        (["--endpoint", "http://127.0.0.1:9", "--model", "rival"], "No server answers at http://127.0.0.1:9/v1"),
        (["--endpoint", "http://127.0.0.1:9", "--model", "r", "--device", "cpu"], "leave --device and --dtype out"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_written(tmp_path, own, options, said):
    result = CliRunner().invoke(app, ["evaluate", *options, "-b", str(own), "-o", str(tmp_path / "out")])
    assert said in (str(result.exception) + result.output) and not (tmp_path / "out").exists()


def test_beams_are_none_of_a_server(tmp_path, own, scripted_server):
    with scripted_server(lambda body: "犬") as server, pytest.raises(ValueError, match="--num-beams"):
        run(plan_for(server, own, tmp_path / "out", generation={"num_beams": 2}))


def test_a_picture_is_encoded_once_for_all_questions_about_it(tmp_path, own, scripted_server, monkeypatch):
    encoded = []
    original = endpoint_answers.image_part
    monkeypatch.setattr(endpoint_answers, "image_part", lambda *given: encoded.append(given[1]) or original(*given))
    with scripted_server(lambda body: "犬") as server:
        run(plan_for(server, own, tmp_path / "out", generation={"batch_size": 1}))
    assert len(server.requests) == 12 and len(encoded) == len(set(encoded)) == 4
    assert len({picture for body in server.requests for picture in pictures_in(body)}) == 4
