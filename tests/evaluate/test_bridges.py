"""Answers and models in the layouts of llm-jp-eval-mm and lmms-eval; with the real packages where there are any."""

import io
import json
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from jminigpt4.evaluate.benchmarks import parse_request, read_items
from jminigpt4.evaluate.bridges.llm_jp import VLM, export_predictions
from jminigpt4.evaluate.metrics.choices import accuracy
from jminigpt4.evaluate.metrics.texts import rouge_l
from jminigpt4.evaluate.predictions import Prediction, in_order, read_predictions
from jminigpt4.evaluate.running import EvaluationPlan, run

EVAL_MM = (
    "needs eval-mm, of Python 3.12 and newer: `python3.12 tests/evaluate/environment.py eval-mm FOLDER` makes an "
    "environment, then `FOLDER/bin/python -m pytest tests/evaluate/test_bridges.py`"
)
LMMS_EVAL = (
    "needs lmms-eval: `python tests/evaluate/environment.py lmms-eval FOLDER` makes an environment, then "
    "`FOLDER/bin/python -m pytest tests/evaluate/test_bridges.py`"
)


def export(folder, request, items):
    predictions = [Prediction(item.id, item.question, f"答え{place}") for place, item in enumerate(items)]
    return export_predictions(folder, request, items, predictions, "user/model")


@pytest.mark.parametrize(
    ("name", "fixture", "task", "ids"),
    [
        ("ja-vg-vqa-500:llm-jp", "vg500", "ja-vg-vqa-500", ["101", "102", "103", "104"]),
        ("ja-vlm-bench-in-the-wild", "wild", "ja-vlm-bench-in-the-wild", ["0", "1", "2"]),
        ("heron-bench", "heron", "japanese-heron-bench", ["0", "1", "2", "3"]),
        ("jmmmu", "jmmmu", "jmmmu", ["validation_Japanese_Art_1", "validation_Math_7", "validation_Math_8"]),
    ],
)
def test_exported_answers_lie_where_llm_jp_looks_for_them(tmp_path, request, name, fixture, task, ids):
    asked = parse_request(f"{name}={request.getfixturevalue(fixture)}")
    items = read_items(asked)
    path = export(tmp_path, asked, items)
    assert path == tmp_path / task / "user" / "model" / "prediction.jsonl"
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    assert [row["question_id"] for row in rows] == ids
    assert rows[0]["text"] == "答え0" and rows[0]["input_text"] == items[0].question
    assert rows[0]["answer"] == (items[0].references or ["答え0"])[0]
    again = in_order(items, read_predictions(path), path)
    assert [each.answer for each in again] == [f"答え{place}" for place in range(len(items))]


def test_what_llm_jp_does_not_ask_is_not_exported(tmp_path, vg500, own):
    for text, said in ((f"ja-vg-vqa-500:sakana={vg500}", "asks all questions"), (str(own), "has no task for own")):
        with pytest.raises(ValueError, match=said):
            export(tmp_path, parse_request(text), [])


def test_the_model_answers_as_llm_jp_asks(checkpoint):
    model = VLM(str(checkpoint))
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    settings = SimpleNamespace(
        max_new_tokens=6, do_sample=False, temperature=0.0, top_p=1.0, num_beams=1, use_cache=True
    )
    alone = [model.generate([picture], "<image>何色ですか?", settings) for picture in (red, blue)]
    together = model.batch_generate([[red], [blue], None], ["何色ですか?"] * 3, settings)
    assert together[:2] == alone and alone[0] != alone[1] and together[2] not in alone
    assert isinstance(model.generate(red, "何?"), str)


def test_llm_jp_eval_mm_gives_exported_answers_the_same_scores(tmp_path, vg500):
    pytest.importorskip("eval_mm", reason=EVAL_MM)
    from eval_mm.metrics.rougel_scorer import rouge_ja

    asked = parse_request(f"ja-vg-vqa-500:llm-jp={vg500}")
    items = read_items(asked)
    said = ["赤い消防車です", "赤", "ＡＢＣ😀青い空", "牛が3頭いる"]
    predictions = [Prediction(item.id, item.question, text) for item, text in zip(items, said, strict=True)]
    path = export_predictions(tmp_path, asked, items, predictions, "model")
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    theirs = [rouge_ja([row["answer"]], [row["text"]])["rougeL"] for row in rows]
    ours = rouge_l(said, [item.references for item in items], "llm-jp").items
    assert ours == pytest.approx(theirs) and 0 < min(theirs[0], theirs[2]) < 100


def test_answers_to_jmmmu_are_read_as_llm_jp_eval_mm_reads_them():
    pytest.importorskip("eval_mm", reason=EVAL_MM)
    from eval_mm.metrics.jmmmu_scorer import get_score

    draw = random.Random(0)
    options = ["東京", "富士山", "Apple pie", "大 阪", "3"]
    pieces = [
        *"ABCDE",
        "(A)",
        "(E)",
        "B.",
        "答えは",
        "よって、",
        "最終的に",
        "解答は、",
        "回答は、",
        "です",
        "は",
        "。",
        "、",
    ]
    pieces += [
        " ",
        "\n",
        "=",
        "＝",
        "12",
        "1,200",
        "3.50",
        "-4",
        "1e3",
        "円",
        "つ",
        "%",
        "富士山",
        "apple pie",
        "大 阪",
    ]
    for _ in range(3000):
        text = draw.choice(["", " "]).join(draw.choice(pieces) for _ in range(draw.randint(0, 9)))
        letter, value = draw.choice("ABCDE"), draw.choice(["12", "1200", "3.5", "富士山", "-4", "1000", "4円"])
        choice = {"question_type": "multiple-choice", "options": str(options), "answer": letter}
        free = {"question_type": "open", "options": "[]", "answer": value}
        expected = [100 * get_score(choice, text), 100 * get_score(free, text)]
        found = accuracy([text, text], [[letter], [value]], [options, None])
        assert found.items.tolist() == expected, text


@pytest.fixture
def eval_mm_task(tmp_path, monkeypatch):
    """`eval_mm_task(name, repository, folder)`: a task of eval-mm, which finds a data set of the Hub in a folder of
    that name where it runs."""
    pytest.importorskip("eval_mm", reason=EVAL_MM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    import eval_mm

    def load(name: str, repository: str, folder, **config):
        shutil.copytree(folder, tmp_path / repository)
        return eval_mm.TaskRegistry.load_task(name, eval_mm.TaskConfig(**config))

    return load


@pytest.mark.parametrize(
    ("name", "fixture", "task", "repository", "config"),
    [
        ("ja-vg-vqa-500:llm-jp", "vg500", "ja-vg-vqa-500", "SakanaAI/JA-VG-VQA-500", {}),
        (
            "ja-vlm-bench-in-the-wild:llm-jp",
            "wild",
            "ja-vlm-bench-in-the-wild",
            "SakanaAI/JA-VLM-Bench-In-the-Wild",
            {},
        ),
        ("mecha-ja", "mecha", "mecha-ja", "llm-jp/MECHA-ja", {"rotate_choices": True}),
        ("jdocqa", "jdocqa", "jdocqa", "speed/JDocQA", {}),
    ],
)
def test_a_file_is_read_as_eval_mm_reads_it(request, eval_mm_task, name, fixture, task, repository, config):
    folder = request.getfixturevalue(fixture)
    asked = eval_mm_task(task, repository, folder, **config)
    items = read_items(parse_request(f"{name}={folder}"))
    docs = list(asked.dataset)
    assert [item.id for item in items] == [asked.doc_to_id(doc) for doc in docs]
    assert [item.question for item in items] == [asked.doc_to_text(doc) for doc in docs]
    assert [item.references[0] for item in items] == [asked.doc_to_answer(doc) for doc in docs]
    for item, doc in zip(items, docs, strict=True):
        shown = [Image.open(io.BytesIO(each.read())).tobytes() for each in item.pictures]
        assert shown == [each.tobytes() for each in asked.doc_to_visual(doc)]


def test_eval_mm_runs_the_model_to_the_answers_and_scores_of_evaluate(tmp_path, eval_mm_task, wild, checkpoint):
    task = eval_mm_task("ja-vlm-bench-in-the-wild", "SakanaAI/JA-VLM-Bench-In-the-Wild", wild)
    from eval_mm import ScorerRegistry

    model, settings = VLM(str(checkpoint)), SimpleNamespace(max_new_tokens=12, do_sample=False, temperature=0.0)
    said = [model.generate(task.doc_to_visual(doc), task.doc_to_text(doc), settings) for doc in task.dataset]
    scorer = ScorerRegistry.load_scorer("rougel")
    theirs = scorer.aggregate(scorer.score([task.doc_to_answer(doc) for doc in task.dataset], said)).overall_score

    request = parse_request(f"ja-vlm-bench-in-the-wild:llm-jp={wild}")
    plan = EvaluationPlan(
        [request], tmp_path / "out", str(checkpoint), {"max_new_tokens": 12}, controls=0, export=tmp_path / "result"
    )
    ours = run(plan).results[0]
    assert [each.answer for each in ours.predictions] == said and any(said)
    assert ours.scores[0].value == pytest.approx(theirs)
    (exported,) = (tmp_path / "result/ja-vlm-bench-in-the-wild").rglob("prediction.jsonl")
    lines = [json.loads(line) for line in exported.open(encoding="utf-8")]
    assert [(line["question_id"], line["text"]) for line in lines] == [
        (task.doc_to_id(doc), text) for doc, text in zip(task.dataset, said, strict=True)
    ]


def test_lmms_eval_finds_the_model_and_the_bridge_imports_in_silence(tmp_path):
    pytest.importorskip("lmms_eval", reason=LMMS_EVAL)
    code = (
        "from jminigpt4.evaluate.bridges.lmms_eval import write_tasks; import lmms_eval.models as models; "
        "print(models.MODEL_REGISTRY_V2.resolve('jminigpt4').class_path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "jminigpt4.evaluate.bridges.lmms_eval.JMiniGPT4"
    assert "circular" not in done.stderr and "Failed" not in done.stderr


def test_lmms_eval_loads_the_task_and_the_model(tmp_path, jmmmu, checkpoint):
    pytest.importorskip("lmms_eval", reason=LMMS_EVAL)
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from jminigpt4.evaluate.bridges.lmms_eval import JMiniGPT4, write_tasks

    tasks = TaskManager(include_path=str(write_tasks(tmp_path / "tasks", jmmmu)))
    model = JMiniGPT4(str(checkpoint))
    found = simple_evaluate(model, tasks=["jmmmu_jminigpt4"], task_manager=tasks, bootstrap_iters=0)
    assert 0 <= found["results"]["jmmmu_jminigpt4"]["jmmmu_acc,none"] <= 1
