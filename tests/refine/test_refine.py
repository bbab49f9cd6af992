"""Stage-2 data: what is described, sent, mended, dropped, kept, and picked up again after a stop."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jminigpt4.cli import app
from jminigpt4.data.readers import as_source, read_source
from jminigpt4.inference.answering import Answer, AnswerGenerator
from jminigpt4.refine.describing import GO_ON, PROMPTS, Describing
from jminigpt4.refine.editing import GIVEN_UP
from jminigpt4.refine.examining import Limits, faults, invented, near_duplicates
from jminigpt4.refine.running import RefinePlan, refine

WHOLE = "赤い屋根の家の前に、小さな犬が一匹座っています。"
TEXTS = {
    0: WHOLE,
    1: "猫がいます。猫がいます。猫がいます。猫がいます。猫がいます。猫がいます。",
    2: "大きな船が港に停泊していて、空には雲が浮かんでいて、海は",
    3: "A red house and a dog in front of it, on a sunny day.",
    4: "赤い屋根の家の前に、小さな犬が一匹座っています。",
    5: "机の上にりんごが三つあり、窓から日の光が差し込んでいます。",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, make_model, make_processor) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model = make_model(max_position_embeddings=512)
    model.generation_config.eos_token_id = 3
    model.save_pretrained(folder)
    make_processor("article-3.6b").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six pictures, and one that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def told(monkeypatch):
    """The model says TEXTS by the number of its picture; the list of prompts that it was asked."""
    asked = []

    def answers(self, prompts, features, **options):
        said = []
        for prompt in prompts:
            text = self.processor.tokenizer.decode(prompt.input_ids)
            number = int(Path(prompt.pictures[0].name).stem)
            asked.append((number, text, options))
            said.append(Answer("" if GO_ON in text else TEXTS[number], [7] * (5 if number == 1 else 90), number != 2))
        return said

    monkeypatch.setattr(AnswerGenerator, "answers", answers)
    return asked


def plan_for(checkpoint, folder, output, **options) -> RefinePlan:
    return RefinePlan(str(checkpoint), [str(folder)], output, progress=False, **options)


def mended(body: dict) -> str:
    """A rule-based editor: repetition goes, what breaks off is cut, what is not Japanese is given up."""
    text = body["messages"][-1]["content"]
    text = text if isinstance(text, str) else text[-1]["text"]
    sentences = dict.fromkeys(part for part in text.split("。")[:-1])
    return "。".join(sentences) + "。" if sentences else GIVEN_UP


def history(output: Path) -> dict[str, dict]:
    lines = (output / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_without_an_editor_what_is_not_whole_falls(tmp_path, checkpoint, folder, told):
    outcome = refine(plan_for(checkpoint, folder, tmp_path / "out"))
    assert [text.described.id for text in outcome.kept] == ["0.0", "5.0"]
    rows = history(tmp_path / "out")
    assert rows["1.0"]["fallen"] == "described" and {"loop", "repeated"} <= set(rows["1.0"]["reasons"])
    assert "unfinished" in rows["2.0"]["reasons"] and rows["3.0"]["reasons"] == ["not Japanese"]
    assert (rows["4.0"]["fallen"], rows["4.0"]["reasons"]) == ("duplicates", ["says the same as 0.0"])
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert (report["texts"], report["kept"], report["continued"]) == (6, 2, 1)
    assert report["health_before"]["not_japanese"] == pytest.approx(100 / 6)
    assert report["health_after"]["not_japanese"] == report["health_after"]["loops"] == 0


def test_short_texts_are_asked_to_go_on_and_prompts_take_turns(tmp_path, checkpoint, folder, told):
    refine(plan_for(checkpoint, folder, tmp_path / "out"))
    first = [text for _, text, _ in told if GO_ON not in text]
    assert len(first) == 6 and all(PROMPTS[number % 4] in text for number, text in enumerate(first))
    longer = [(number, text) for number, text, _ in told if GO_ON in text]
    assert [number for number, _ in longer] == [1] and TEXTS[1][:6] in longer[0][1]
    assert told[0][2]["do_sample"] and told[0][2]["max_new_tokens"] == 160


def test_an_editor_mends_and_is_watched(tmp_path, checkpoint, folder, told, scripted_server):
    def edit(body):
        text = body["messages"][-1]["content"]
        if text == TEXTS[5]:
            return text.replace("三つ", "3つ") + "2024年に撮影されました。"
        return mended(body)

    with scripted_server(edit) as server:
        outcome = refine(
            plan_for(
                checkpoint, folder, tmp_path / "out", editor=server.url, editor_model="gpt", price=(1000.0, 2000.0),
            )
        )  # fmt: skip
    rows = history(tmp_path / "out")
    sent = [body["messages"][-1]["content"] for body in server.requests]
    assert sorted(sent) == sorted(TEXTS[number] for number in (0, 1, 2, 4, 5))  # English is past mending
    page = (tmp_path / "out/review.html").read_text(encoding="utf-8")
    assert page.count("校正前: ") == page.count('data-id="') == 1 and "<del>" not in page.partition("<body>")[2]
    assert rows["1.0"]["edited"]["text"] == "猫がいます。" and rows["1.0"]["reasons"] == ["short"]
    assert rows["2.0"]["reasons"] == ["given up by the editor"]
    assert rows["5.0"]["reasons"] == ["new number or name"]
    assert [text.described.id for text in outcome.kept] == ["0.0"]
    assert outcome.report["tokens"] == {"to_editor": 25, "from_editor": 10}
    assert outcome.report["cost"] == pytest.approx((25 * 1000 + 10 * 2000) / 1e6)


def test_pictures_leave_only_when_told_to(tmp_path, checkpoint, folder, told, scripted_server):
    with scripted_server(mended) as server:
        refine(plan_for(checkpoint, folder, tmp_path / "out", editor=server.url, editor_model="gpt"))
        assert "data:image" not in json.dumps(server.requests) and len(server.requests) == 5
        server.requests.clear()
        refine(
            plan_for(checkpoint, folder, tmp_path / "out", editor=server.url, editor_model="gpt", show_picture=True)
        )
        assert len(server.requests) == 5  # with the picture it is another question
        assert all(body["messages"][-1]["content"][0]["type"] == "image_url" for body in server.requests)


def test_a_stop_loses_nothing_and_sends_nothing_twice(
    tmp_path, checkpoint, folder, told, scripted_server, monkeypatch
):
    monkeypatch.setattr("jminigpt4.refine.editing.AT_ONCE", 1)
    options = {"describing": Describing(batch_size=2), "editor_model": "gpt"}
    with scripted_server(mended) as server:
        whole = refine(plan_for(checkpoint, folder, tmp_path / "whole", editor=server.url, **options))
        server.requests.clear()
        told.clear()
        server.answer = lambda body: mended(body) if len(server.requests) < 3 else (401, {}, "no more")
        with pytest.raises(ValueError, match="401"):
            refine(plan_for(checkpoint, folder, tmp_path / "out", editor=server.url, **options))
        described = tmp_path / "out/described.jsonl"
        described.write_text("".join(described.read_text().splitlines(True)[:3]) + '{"id": "3', encoding="utf-8")
        kept = (tmp_path / "out/edited.jsonl").read_text().count("\n")
        told.clear()
        server.requests.clear()
        server.answer = mended
        again = refine(plan_for(checkpoint, folder, tmp_path / "out", editor=server.url, **options))
        assert {number for number, _, _ in told} == {2, 3, 4, 5}  # two whole batches
        assert len(server.requests) == 5 - kept
    names = ("filter_cap.json", "rows.jsonl", "history.jsonl", "report.json", "review.html")
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    assert again.report == whole.report


def test_the_page_marks_what_the_editor_took_out(tmp_path, checkpoint, folder, told, scripted_server):
    with scripted_server(mended) as server:
        limits = Limits(characters=3)
        refine(plan_for(checkpoint, folder, tmp_path / "out", editor=server.url, editor_model="gpt", limits=limits))
    page = (tmp_path / "out/review.html").read_text(encoding="utf-8")
    assert f"校正前: 猫がいます。<del>{'猫がいます。' * 5}</del>" in page


def test_the_data_trains_stage_two_both_ways(tmp_path, checkpoint, folder, told):
    outcome = refine(plan_for(checkpoint, folder, tmp_path / "out"))
    aligned = read_source(as_source(str(tmp_path / "out")))
    rows = read_source(as_source(str(tmp_path / "out/rows.jsonl")))
    kept = [text.text for text in outcome.kept]
    assert [row.answer for row in aligned] == [row.answer for row in rows] == kept
    assert [row.pictures[0].read() for row in rows] == [(folder / f"{n}.png").read_bytes() for n in (0, 5)]
    assert rows[0].conversation[0].text == PROMPTS[0] and rows[0].image_ids


def test_a_person_decides_and_the_next_run_obeys(tmp_path, checkpoint, folder, told):
    output = tmp_path / "out"
    refine(plan_for(checkpoint, folder, output))
    page = (output / "review.html").read_text(encoding="utf-8")
    assert page.count('data-id="') == 2 and WHOLE in page and "data:image/jpeg;base64," in page
    assert "ほかと同じ内容 1" in page and "日本語でない 1" in page
    (output / "decisions.json").write_text(json.dumps({"decisions": {"0.0": "drop", "5.0": "keep"}}))
    outcome = refine(plan_for(checkpoint, folder, output))
    assert [text.described.id for text in outcome.kept] == ["5.0"] and history(output)["0.0"]["fallen"] == "person"
    page = (output / "review.html").read_text(encoding="utf-8")
    assert page.count('data-id="') == 2  # the same sample, with what was decided
    assert 'name="0.0" value="drop" checked' in page and 'name="5.0" value="keep" checked' in page
    assert 'const earlier = {"0.0": "drop", "5.0": "keep"};' in page
    (output / "decisions.json").write_text(json.dumps({"decisions": {"0.0": "maybe"}}))
    with pytest.raises(ValueError, match="decisions.json: .*'keep' or 'drop'"):
        refine(plan_for(checkpoint, folder, output))
    with pytest.raises(FileNotFoundError, match="nowhere.json does not exist"):
        refine(plan_for(checkpoint, folder, output, decisions=tmp_path / "nowhere.json"))


def test_bad_pictures_are_counted_and_left_out(tmp_path, checkpoint, folder, told):
    (folder / "9.png").write_bytes(b"no picture")
    outcome = refine(plan_for(checkpoint, folder, tmp_path / "out"))
    assert [each.name for each in outcome.bad] == [str(folder / "9.png")] and len(outcome.texts) == 6
    assert any("9.png" in line for line in outcome.lines())


def test_other_settings_do_not_go_on_with_old_texts(tmp_path, checkpoint, folder, told):
    refine(plan_for(checkpoint, folder, tmp_path / "out"))
    with pytest.raises(ValueError, match="holds texts made with temperature=1.0, not 0.5"):
        refine(plan_for(checkpoint, folder, tmp_path / "out", describing=Describing(temperature=0.5)))


def test_a_real_model_describes_the_same_after_a_stop(tmp_path, checkpoint, folder):
    describing = Describing(max_new_tokens=6, batch_size=2, per_picture=2)
    plan = plan_for(checkpoint, folder, tmp_path / "whole", describing=describing)
    whole = refine(plan)
    assert len({text.text for text in whole.texts}) > 3
    assert all(text.described.continued for text in whole.texts if text.text)
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    described = tmp_path / "out/described.jsonl"
    described.write_text("".join(described.read_text().splitlines(True)[:4]), encoding="utf-8")
    refine(replace(plan, output=tmp_path / "out"))
    assert described.read_bytes() == (tmp_path / "whole/described.jsonl").read_bytes()


def test_how_short_is_too_short_is_asked_for(tmp_path, checkpoint, folder, told):
    arguments = ["refine", str(checkpoint), str(folder), "-o", str(tmp_path / "out"), "--min-characters", "28"]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert len(WHOLE) < 28 <= len(TEXTS[5]) and history(tmp_path / "out")["0.0"]["reasons"] == ["short"]
    assert [name for name, row in history(tmp_path / "out").items() if row["kept"]] == ["5.0"]


def test_a_dry_run_counts_prices_writes_and_sends_nothing(tmp_path, checkpoint, folder, scripted_server):
    with scripted_server(mended) as server:
        arguments = ["refine", str(checkpoint), str(folder), "-o", str(tmp_path / "out"), "--dry-run"]
        arguments += ["--editor", server.url, "--editor-model", "gpt", "--price", "1,2"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert server.requests == []
    assert "6 pictures, 6 of them to be described: 6 texts." in result.stdout
    assert "6 requests to" in result.stdout and "no pictures" in result.stdout and "a million tokens" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--editor", "http://127.0.0.1:9"], "An editor is --editor URL and --editor-model NAME"),
        (["--show-picture"], "--show-picture is for an --editor"),
        (["--price", "cheap"], "--price is IN,OUT"),
        (["--editor", "http://127.0.0.1:9", "--editor-model", "m"], "No server answers"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, checkpoint, folder, arguments, said):
    result = CliRunner().invoke(app, ["refine", str(checkpoint), str(folder), "-o", str(tmp_path / "out"), *arguments])
    assert said in str(result.exception) and not (tmp_path / "out").exists()


def test_no_picture_and_no_path_are_named(tmp_path, checkpoint):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="There is no picture in .*empty"):
        refine(plan_for(checkpoint, tmp_path / "empty", tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        refine(plan_for(checkpoint, tmp_path / "nowhere", tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "cut_off", "found"),
    [
        (WHOLE, False, []),
        (WHOLE, True, []),  # the limit came after the last sentence
        (WHOLE + "その隣に", True, ["unfinished"]),
        ("", False, ["empty"]),
        ("犬です。", False, ["short"]),
        ("ああああああああああああああああああああああ", False, ["loop", "repeated"]),
    ],
)
def test_faults_of_a_text(text, cut_off, found):
    assert faults(text, cut_off, Limits()) == found


def test_what_an_editor_adds_is_noticed():
    assert invented(WHOLE, WHOLE, Limits()) == []
    assert invented("犬が３匹います。", "犬が3匹います。", Limits()) == []
    assert invented("犬がいます。", "犬が3匹います。", Limits()) == ["new number or name"]
    assert invented("車です。", "Toyotaの車です。", Limits()) == ["new number or name"]
    assert invented("犬がいます。", "犬がいます。" * 6, Limits()) == ["grew"]


def test_near_duplicates_point_at_the_first():
    texts = [("0.0", WHOLE), ("1.0", WHOLE.replace("座って", "寝て")), ("2.0", TEXTS[5]), ("10.0", WHOLE + "。")]
    assert near_duplicates(texts, Limits(alike=0.5)) == {"1.0": "0.0", "10.0": "0.0"}
    assert near_duplicates(texts, Limits(alike=0.9)) == {"10.0": "0.0"}
    assert near_duplicates(texts, Limits(alike=0.99)) == {}
