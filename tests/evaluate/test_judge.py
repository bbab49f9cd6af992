"""A judge that is asked: votes, order, JSON in any wrapping, resumption, scores."""

import json

import pytest

from jminigpt4.evaluate.benchmarks import parse_request
from jminigpt4.evaluate.judge import VOTES
from jminigpt4.evaluate.running import EvaluationPlan, run


def judged_plan(server, request: str, path, output, **options) -> EvaluationPlan:
    return EvaluationPlan(
        [parse_request(request)],
        output,
        answered=[path],
        judge=server.url,
        judge_model="gpt",
        progress=False,
        **options,
    )


def asked(body: dict) -> str:
    return body["messages"][-1]["content"]


def said_first(body: dict) -> str:
    return asked(body).partition("Answer 1: ")[2].partition("\n")[0]


def test_heron_bench_is_compared_in_both_orders(tmp_path, heron, answers, scripted_server):
    """A judge that gives the first place two points more; the model 5 and GPT-4 7 but for that."""

    def answer(body):
        own_first = said_first(body).startswith("返事")
        scores = (5, 7) if own_first else (7, 5)
        return f"```json\n{json.dumps({'score_1': scores[0] + 2, 'score_2': scores[1]})}\n```"

    path = answers(tmp_path / "a.jsonl", {str(n): f"返事{n}" for n in range(4)})
    with scripted_server(answer) as server:
        result = run(judged_plan(server, f"heron-bench={heron}", path, tmp_path / "out")).results[0]
    # (5 + 2 + 5) / 2 and (7 + 7 + 2) / 2: without the second order it would be 7 / 7.
    assert result.scores[0].value == pytest.approx(100 * 6 / 8)
    assert len(server.requests) == 4 * VOTES * 2
    assert {body["seed"] for body in server.requests} == {0, 1, 2} and server.requests[0]["temperature"] > 0
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["score_1", "score_2"]
    assert any("Judged by gpt, 3 votes an answer" in note for note in result.notes)


def test_open_answers_are_right_where_most_votes_say_so(tmp_path, vg500, answers, scripted_server):
    def answer(body):
        if "赤い消防車です" in asked(body):
            return json.dumps({"right": body["seed"] != 0})  # two of three
        return json.dumps({"right": body["seed"] == 0})  # one of three

    said = {"101": "赤い消防車です", "102": "あか", "103": "あおい", "104": "わかりません"}
    path = answers(tmp_path / "a.jsonl", said)
    with scripted_server(answer) as server:
        sheet = run(judged_plan(server, f"ja-vg-vqa-500:llm-jp={vg500}", path, tmp_path / "out"))
    scores = {score.metric: score.value for score in sheet.results[0].scores}
    assert scores["judged right"] == 25 and len(server.requests) == 4 * VOTES
    assert any("agree on 0 % of the answers" in note for note in sheet.results[0].notes)
    assert all(reference in asked(server.requests[0]) for reference in ("Right answers:", "- "))


def test_votes_are_kept_and_only_missing_ones_asked_for(tmp_path, vg500, answers, scripted_server):
    said = {"101": "赤い消防車です", "102": "赤", "103": "青い", "104": "わかりません"}
    path = answers(tmp_path / "a.jsonl", said)
    request = f"ja-vg-vqa-500:llm-jp={vg500}"
    with scripted_server(lambda body: '{"right": true}') as server:
        run(judged_plan(server, request, path, tmp_path / "out"))
        server.requests.clear()
        votes = tmp_path / "out/ja-vg-vqa-500-llm-jp/judge_votes.jsonl"
        whole = votes.read_text()
        votes.write_text(whole[: whole.rindex('{"id"') + 20])  # a last line that was being written
        run(judged_plan(server, request, path, tmp_path / "out"))
        assert len(server.requests) == VOTES
        server.requests.clear()
        changed = answers(tmp_path / "b.jsonl", {**said, "103": "緑"})
        run(judged_plan(server, request, changed, tmp_path / "out"))
        assert len(server.requests) == VOTES and "緑" in asked(server.requests[0])


def test_a_judge_without_structured_output_is_asked_in_words(tmp_path, vg500, answers, scripted_server):
    def answer(body):
        return (400, {}, "response_format unknown") if "response_format" in body else 'Yes: {"right": true}'

    path = answers(tmp_path / "a.jsonl", {str(n): "赤" for n in (101, 102, 103, 104)})
    with scripted_server(answer) as server:
        sheet = run(judged_plan(server, f"ja-vg-vqa-500:llm-jp={vg500}", path, tmp_path / "out"))
    assert {score.metric: score.value for score in sheet.results[0].scores}["judged right"] == 100


@pytest.mark.parametrize("said", ["うーん", '{"right": "maybe"}', '{"score": 3}'])
def test_a_judge_that_gives_no_verdict_is_named(tmp_path, vg500, answers, scripted_server, said):
    path = answers(tmp_path / "a.jsonl", {str(n): "赤" for n in (101, 102, 103, 104)})
    with scripted_server(lambda body: said) as server, pytest.raises(ValueError, match="gpt gives no verdict on 10"):
        run(judged_plan(server, f"ja-vg-vqa-500:llm-jp={vg500}", path, tmp_path / "out"))


def test_a_score_out_of_range_is_no_verdict(tmp_path, heron, answers, scripted_server):
    path = answers(tmp_path / "a.jsonl", {str(n): "返事" for n in range(4)})
    refused = pytest.raises(ValueError, match="gives no verdict")
    with scripted_server(lambda body: '{"score_1": 11, "score_2": 3}') as server, refused:
        run(judged_plan(server, f"heron-bench={heron}", path, tmp_path / "out"))


def test_a_judged_model_compares_with_one_that_was_not(tmp_path, own, answers, scripted_server):
    names = [f"{n}-{kind}" for n in range(4) for kind in ("name", "colour", "edible")]
    first = answers(tmp_path / "a.jsonl", dict.fromkeys(names, "犬"))
    run(EvaluationPlan([parse_request(str(own))], tmp_path / "other", answered=[first]))
    (tmp_path / "other/held_out/predictions.jsonl").write_bytes(first.read_bytes())
    with scripted_server(lambda body: '{"right": true}') as server:
        sheet = run(judged_plan(server, str(own), first, tmp_path / "out", other=tmp_path / "other"))
    compared = [each.metric for each in sheet.results[0].differences]
    assert compared and "judged right" not in compared
