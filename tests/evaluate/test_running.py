"""Whole evaluations: each benchmark's answers to known scores, stops and resumptions, comparison, report, command."""

import json
import multiprocessing
import os
import re
import shutil
import signal

import pytest
from typer.testing import CliRunner

from jminigpt4.checkpoint import locked_folder
from jminigpt4.cli import app
from jminigpt4.evaluate import generation
from jminigpt4.evaluate.benchmarks import BENCHMARKS, parse_request
from jminigpt4.evaluate.running import EvaluationPlan, run


def scored(tmp_path, request: str, path, **plan) -> dict[str, float]:
    """Scores of given answers by the metric's bare name."""
    sheet = run(EvaluationPlan([parse_request(request)], tmp_path / "out", answered=[path], **plan))
    return {score.metric.split(" [")[0]: score.value for score in sheet.results[0].scores}


def test_stair_captions_score_what_coco_caption_gives(tmp_path, stair, answers):
    path = answers(tmp_path / "a.jsonl", {"42": "白い猫が寝ている", "73": "犬が芝生を走っている"})
    full = scored(tmp_path, f"stair-captions={stair}", path)
    assert [full[name] for name in ("BLEU-1", "BLEU-4", "ROUGE-L")] == pytest.approx([100, 100, 100])
    assert full["CIDEr-D"] > 300
    wrong = scored(
        tmp_path, f"stair-captions={stair}", answers(tmp_path / "b.jsonl", {"42": "犬", "73": "犬が走っている"})
    )
    assert all(wrong[name] < full[name] for name in full)


def test_ja_vg_vqa_500_scores_by_both_protocols(tmp_path, vg500, answers):
    said = {"101": "赤い消防車です", "102": "赤", "103": "青い", "104": "わかりません"}
    path = answers(tmp_path / "a.jsonl", said)
    first = scored(tmp_path, f"ja-vg-vqa-500:sakana={vg500}", path)
    every = scored(tmp_path, f"ja-vg-vqa-500:llm-jp={vg500}", path)
    # 赤い/消防/車 against 赤い/消防/車/です: F1 = 2 * 3/4 / (1 + 3/4) = 6/7; the others are whole or nothing.
    assert first["ROUGE-L"] == pytest.approx(100 * (6 / 7 + 1) / 2)
    assert every["ROUGE-L"] == pytest.approx(100 * (6 / 7 + 1 + 1 + 0) / 4)
    assert (first["exact match"], every["exact match"]) == (50, 50)


def test_ja_vg_vqa_scores_by_both_protocols(tmp_path, visual_genome, answers):
    path = answers(tmp_path / "a.jsonl", {"1": "赤", "2": "夜", "3": "犬です。", "4": "2人"})
    assert scored(tmp_path, f"ja-vg-vqa:sakana={visual_genome}", path)["ROUGE-L"] == 100
    assert scored(tmp_path, f"ja-vg-vqa:llm-jp={visual_genome}", path)["ROUGE-L"] == 75


def test_wild_bench_scores_long_answers(tmp_path, wild, answers):
    path = answers(
        tmp_path / "a.jsonl", {"0": "京都の金閣寺です。", "1": "わかりません", "2": "富士山と桜が写っています。"}
    )
    for protocol in ("sakana", "llm-jp"):
        assert 66 < scored(tmp_path, f"ja-vlm-bench-in-the-wild:{protocol}={wild}", path)["ROUGE-L"] < 80


def test_jmmmu_scores_accuracy(tmp_path, jmmmu, answers):
    said = {"validation_Japanese_Art_1": "B", "validation_Math_7": "12.5です", "validation_Math_8": "わかりません"}
    path = answers(tmp_path / "a.jsonl", said)
    sheet = run(EvaluationPlan([parse_request(f"jmmmu={jmmmu}")], tmp_path / "out", answered=[path]))
    accuracy, named = sheet.results[0].scores
    assert accuracy.value == pytest.approx(200 / 3) and accuracy.n == 3
    assert named.value == 50 and named.n == 2
    cultures = sheet.results[0].categories["culture"]
    assert cultures["specific"][0].value == 100 and cultures["agnostic"][0].value == 50
    assert sheet.results[0].categories["subject"]["Math"][0].n == 2


def test_own_messages_score_by_their_fields(tmp_path, own, answers):
    said = {f"{n}-{kind}": "犬が写っています。" for n in range(4) for kind in ("name", "colour", "edible")}
    said["0-colour"] = "赤いです"
    sheet = run(
        EvaluationPlan([parse_request(str(own))], tmp_path / "out", answered=[answers(tmp_path / "a.jsonl", said)])
    )
    exact = sheet.results[0].scores[0]
    assert exact.value == pytest.approx(500 / 12) and exact.low < exact.value < exact.high
    values = {kind: scores[0].value for kind, scores in sheet.results[0].categories["category"].items()}
    assert values == {"name": 100, "colour": 25, "edible": 0}
    assert sheet.results[0].categories["artist"]["openmoji"][0].value == 50


def test_heron_bench_goes_to_a_judge_and_comes_back(tmp_path, heron, answers, lines):
    path = answers(tmp_path / "a.jsonl", {str(n): f"返事{n}" for n in range(4)})
    plan = EvaluationPlan([parse_request(f"heron-bench={heron}")], tmp_path / "out", answered=[path])
    sheet = run(plan)
    assert sheet.results[0].scores == [] and "Not scored yet" in sheet.results[0].notes[0]
    requests = [json.loads(line) for line in (tmp_path / "out/heron-bench/judge_requests.jsonl").open()]
    asked = requests[2]["body"]["messages"][1]["content"]
    assert requests[2]["custom_id"] == "2" and all(part in asked for part in ("2羽の鳥", "なぜ有名", "答え2", "返事2"))
    own_layout = [json.loads(line) for line in (tmp_path / "out/heron-bench/answers.jsonl").open()]
    assert (
        own_layout[3]["question_id"] == 3 and own_layout[3]["text"] == "返事3" and own_layout[3]["images"] == "002.jpg"
    )

    plain = [{"question_id": n, "score": score, "score_gpt": 8} for n, score in enumerate((4, 2, 8, 6))]
    batch = [
        {
            "custom_id": str(n),
            "response": {"body": {"choices": [{"message": {"content": f"```json\n{json.dumps(row)}```"}}]}},
        }
        for n, row in enumerate(plain)
    ]
    reviews = [{"question_id": row["question_id"], "tuple": [row["score_gpt"], row["score"]]} for row in plain]
    for name, rows in (("plain", plain), ("batch", batch), ("reviews", reviews)):
        verdicts = lines(tmp_path / f"{name}.jsonl", rows)
        judged = run(EvaluationPlan(plan.requests, tmp_path / "out", answered=[path], verdicts=verdicts)).results[0]
        # conv (4 + 6) / 16, detail 2 / 8, complex 8 / 8
        assert judged.scores[0].value == pytest.approx(100 * (5 / 8 + 1 / 4 + 1) / 3), name
        assert judged.categories["category"]["detail"][0].value == 25


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question_id": 0, "score": 0, "score_gpt": 8}, "scores are from 1 to 10, got 0 and 8"),
        ({"question_id": 0, "score": "good"}, "line 1, holds no verdict"),
        ({"question_id": 0, "score": 4, "score_gpt": 8}, "3 of 4 questions have no verdict, the first is 1"),
    ],
)
def test_wrong_verdicts_are_named(tmp_path, heron, answers, lines, row, said):
    path = answers(tmp_path / "a.jsonl", {str(n): "はい" for n in range(4)})
    verdicts = lines(tmp_path / "v.jsonl", [row])
    with pytest.raises(ValueError, match=said):
        run(
            EvaluationPlan(
                [parse_request(f"heron-bench={heron}")], tmp_path / "out", answered=[path], verdicts=verdicts
            )
        )


def test_missing_answers_are_counted(tmp_path, own, answers):
    path = answers(tmp_path / "a.jsonl", {"0-name": "犬"})
    with pytest.raises(ValueError, match="has no answer to 11 of 12 items, the first is 0-colour"):
        run(EvaluationPlan([parse_request(str(own))], tmp_path / "out", answered=[path]))
    assert not (tmp_path / "out").exists()


def plan_for(checkpoint, own, output, **options) -> EvaluationPlan:
    settings = {"max_new_tokens": 8, "batch_size": 5}
    return EvaluationPlan(
        [parse_request(str(own))], output, model=str(checkpoint), generation=settings, progress=False, **options
    )


def test_a_killed_run_goes_on_to_equal_scores(tmp_path, checkpoint, own, monkeypatch):
    """SIGKILL while a line is being written, then the same command again."""
    whole = run(plan_for(checkpoint, own, tmp_path / "whole", controls=0))

    def run_and_die():
        original = generation.Answerer._answer
        batches = iter(range(2))

        def answer(self, *args):
            if next(batches, None) is None:
                with open(tmp_path / "killed/held_out/predictions.jsonl", "a") as file:
                    file.write('{"id": "half a li')
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *args)

        generation.Answerer._answer = answer
        run(plan_for(checkpoint, own, tmp_path / "killed", controls=0))

    child = multiprocessing.get_context("fork").Process(target=run_and_die)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    answered = (tmp_path / "killed/held_out/predictions.jsonl").read_bytes()
    assert answered.count(b"\n") == 10 and not answered.endswith(b"\n")
    assert not (tmp_path / "killed/scores.json").exists()

    asked = []
    original = generation.Answerer._answer
    monkeypatch.setattr(
        generation.Answerer,
        "_answer",
        lambda self, batch, *more: asked.append(len(batch)) or original(self, batch, *more),
    )
    resumed = run(plan_for(checkpoint, own, tmp_path / "killed", controls=0))
    assert asked == [2]  # of 12 items, 10 were done
    assert resumed.as_dict()["benchmarks"] == whole.as_dict()["benchmarks"]
    first, second = (tmp_path / name / "held_out/predictions.jsonl" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()
    assert run(
        plan_for(checkpoint, own, tmp_path / "killed", controls=0)
    ).as_dict() == resumed.as_dict() and asked == [2]


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_killed_six_times_ends_with_the_same_scores(tmp_path, checkpoint, own, killed_at):
    """At moments between the first file that is written and the report."""
    whole = run(plan_for(checkpoint, own, tmp_path / "whole"))
    output = tmp_path / "killed"
    status, operations = killed_at(lambda: run(plan_for(checkpoint, own, output)), output)
    assert status == 0
    for number in range(1, 7):
        shutil.rmtree(output)
        status, _ = killed_at(lambda: run(plan_for(checkpoint, own, output)), output, number * operations // 7)
        assert status == -signal.SIGKILL
        assert all(json.loads(path.read_text()) for path in output.rglob("*.json") if ".unfinished" not in str(path))
        assert run(plan_for(checkpoint, own, output)).as_dict()["benchmarks"] == whole.as_dict()["benchmarks"]
        names = [
            sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (tmp_path / "whole", output)
        ]
        assert names[0] == names[1]


def test_a_full_disk_stops_an_evaluation_that_goes_on_afterwards(tmp_path, checkpoint, own, full_disk):
    whole = run(plan_for(checkpoint, own, tmp_path / "whole"))
    with full_disk(900), pytest.raises(OSError, match="held_out/predictions.jsonl"):
        run(plan_for(checkpoint, own, tmp_path / "full"))
    assert not (tmp_path / "full/scores.json").exists()
    assert run(plan_for(checkpoint, own, tmp_path / "full")).as_dict()["benchmarks"] == whole.as_dict()["benchmarks"]
    first, second = (tmp_path / name / "held_out/predictions.jsonl" for name in ("whole", "full"))
    assert first.read_bytes() == second.read_bytes()


def test_one_evaluation_to_a_folder(tmp_path, checkpoint, own):
    refused = pytest.raises(BlockingIOError, match=f"out is in use by process {os.getpid()} on ")
    with locked_folder(tmp_path / "out"), refused:
        run(plan_for(checkpoint, own, tmp_path / "out"))
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("settings.json", lambda text: text[:-9], "settings.json: it: Invalid JSON"),
        ("settings.json", lambda text: text.replace('"benchmark"', '"mark"'), "settings.json: `benchmark` is missing"),
        ("settings.json", None, "holds answers but no settings.json"),
        (
            "predictions.jsonl",
            lambda text: text.replace('"answer": "', '"answer": 7, "was": "', 1),
            "line 1: `answer` must",
        ),
        ("predictions.jsonl", lambda text: "[" * 99999 + "\n" + text, "predictions.jsonl, line 1: it: Invalid JSON"),
    ],
)
def test_damaged_files_of_an_evaluation_are_named(tmp_path, checkpoint, own, name, spoil, message):
    run(plan_for(checkpoint, own, tmp_path / "out"))
    path = tmp_path / "out/held_out" / name
    content = path.read_text(encoding="utf-8")
    path.unlink()
    if spoil is not None:
        path.write_text(spoil(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as raised:
        run(plan_for(checkpoint, own, tmp_path / "out"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "0-name", "answer": None}, "line 1: `answer` must be a valid string, got None"),
        ({"id": ["0"], "answer": "犬"}, "line 1: `id` must be a valid string"),
        ({"question_id": 0, "text": 3}, "line 1: `text` must be a valid string, got 3"),
        ({"question_id": 0}, "line 1: `text` is missing"),
    ],
)
def test_answers_of_another_type_are_named(tmp_path, own, lines, row, message):
    plan = EvaluationPlan([parse_request(str(own))], tmp_path / "out", answered=[lines(tmp_path / "a.jsonl", [row])])
    with pytest.raises(ValueError, match=message):
        run(plan)


def test_other_settings_do_not_go_on_with_old_answers(tmp_path, checkpoint, own):
    run(plan_for(checkpoint, own, tmp_path / "out"))
    with pytest.raises(ValueError, match="answers made with limit=None, not 3: choose another --output"):
        run(plan_for(checkpoint, own, tmp_path / "out", limit=3))


def test_answers_are_scored_again_without_the_model(tmp_path, checkpoint, own, monkeypatch):
    made = run(plan_for(checkpoint, own, tmp_path / "out"))
    run(plan_for(checkpoint, own, tmp_path / "few", limit=4))
    monkeypatch.setattr(generation.Answerer, "answers", lambda *_: pytest.fail("nothing is to be generated"))
    again = run(EvaluationPlan([], tmp_path / "again", answered=[tmp_path / "out/held_out/predictions.jsonl"]))
    assert again.as_dict() == made.as_dict()
    few = run(EvaluationPlan([], tmp_path / "again", answered=[tmp_path / "few/held_out/predictions.jsonl"]))
    assert few.results[0].scores[0].n == 4
    assert made.settings["held_out"]["seed"] == 0 and made.settings["held_out"]["dtype"] == "float32"


def test_two_models_are_compared_on_the_same_items(tmp_path, own, answers):
    right = {"name": "犬が写っています。", "colour": "赤いです。", "edible": "いいえ、食べられません。"}
    keys = [f"{n}-{kind}" for n in range(4) for kind in right]
    request = parse_request(str(own))
    for name, said in (("good", lambda key: right[key[2:]]), ("poor", lambda _: "わかりません")):
        (tmp_path / name / "held_out").mkdir(parents=True)
        answers(tmp_path / name / "held_out/predictions.jsonl", {key: said(key) for key in keys})
    better = run(
        EvaluationPlan(
            [request],
            tmp_path / "good",
            answered=[tmp_path / "good/held_out/predictions.jsonl"],
            other=tmp_path / "poor",
        )
    )
    found = better.results[0].differences
    assert [each.difference > 50 and each.real for each in found] == [True] * 5
    assert better.as_dict()["differences"]["held_out"][0]["low"] > 50
    page = (tmp_path / "good/report.html").read_text(encoding="utf-8")
    assert "Compared with" in page and ">better<" in page
    with pytest.raises(FileNotFoundError, match="holds no answers to held_out"):
        run(
            EvaluationPlan(
                [request],
                tmp_path / "x",
                answered=[tmp_path / "good/held_out/predictions.jsonl"],
                other=tmp_path / "no",
            )
        )


def test_the_report_needs_nothing_from_elsewhere(tmp_path, vg500, answers):
    path = answers(tmp_path / "a.jsonl", {"101": "<b>赤</b>", "103": "青い"})
    (tmp_path / "train.txt").write_text("9\n")
    plan = EvaluationPlan(
        [parse_request(f"ja-vg-vqa-500={vg500}")], tmp_path / "out", answered=[path], training=[tmp_path / "train.txt"]
    )
    run(plan)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:|#|https://)', page) == []
    assert re.findall(r'src="https?:|<script|<link|@import|url\(http', page) == []
    assert page.count('src="data:image/jpeg;base64,') == 2 and page.count("<svg") == 2
    assert "&lt;b&gt;赤&lt;/b&gt;" in page and "<b>赤" not in page
    assert "赤い消防車" in page and "SakanaAI/EvoVLM-JP-v1-7B" in page and "19.70" in page
    assert "1 of 2" in page  # contamination
    scores = json.loads((tmp_path / "out/scores.json").read_text(encoding="utf-8"))
    assert set(scores["benchmarks"][0]) == {"name", "dataset", "metric", "value", "low", "high", "n"}
    assert scores["benchmarks"][0]["dataset"] == "SakanaAI/JA-VG-VQA-500"
    assert scores["contamination"][0]["shared"] == 1
    assert (tmp_path / "out/ja-vg-vqa-500-sakana/image_ids.txt").read_text().split() == ["coco:9", "vg:11", "vg:12"]


def test_contamination_alone_needs_no_model(tmp_path, vg500):
    (tmp_path / "train.txt").write_text("9\n")
    arguments = [
        "evaluate",
        "-b",
        f"ja-vg-vqa-500={vg500}",
        "--train-data",
        str(tmp_path / "train.txt"),
        "-o",
        str(tmp_path / "o"),
    ]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "1 of 2 pictures of ja-vg-vqa-500-sakana (50.0 %), 1 of them only by the join" in said
    assert not (tmp_path / "o").exists()


def test_the_command_prints_scores(tmp_path, checkpoint, own):
    arguments = ["evaluate", str(checkpoint), "-b", str(own), "-o", str(tmp_path / "out"), "--max-new-tokens", "4"]
    found = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    sheet = json.loads(found.stdout.strip().splitlines()[-1])
    assert sheet["model"] == str(checkpoint) and len(sheet["benchmarks"]) == 5
    assert sheet["health"]["held_out"]["cut_off"] is not None
    table = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert "95 % interval" in table and "report.html" in table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a benchmark"),
        (["-b", "OWN"], "Name a MODEL"),
        (["./nowhere", "-b", "OWN"], "No folder nowhere"),
        (["-b", "OWN", "-b", "OWN", "--train-data", "x"], "named twice"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(tmp_path, own, arguments, said):
    arguments = ["evaluate", *(str(own) if each == "OWN" else each for each in arguments), "-o", str(tmp_path / "out")]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, ValueError | OSError) and said in str(error)
    assert not (tmp_path / "out").exists()


def test_help_lists_every_benchmark_by_itself():
    from jminigpt4.evaluate.commands import named_benchmarks

    listed = " ".join(named_benchmarks())
    assert all(name in listed for name, each in BENCHMARKS.items() if each.dataset is not None)
    shown = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "400"}).output
    shown = "".join(shown.split())  # lines are broken anywhere, at hyphens too
    assert "ja-vg-vqa-500(sakanaorllm-jp)," in shown and "heron-bench" in shown
