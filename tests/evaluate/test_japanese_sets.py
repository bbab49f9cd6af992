"""Sets of 2025 and 2026, each in its owners' layout: items, wording, and the score that its owners give."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from jminigpt4.evaluate.benchmarks import parse_request, read_items
from jminigpt4.evaluate.metrics.reading import boxed, edit_similarity, receipt_f1
from jminigpt4.evaluate.running import EvaluationPlan, run

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
LETTER = "与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。"


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def cell(seed: int) -> dict:
    return {"bytes": png(seed), "path": f"{seed}.png"}


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def read(text: str) -> list:
    return read_items(parse_request(text))


@pytest.fixture
def scores(tmp_path, answers):
    """`scores(request, {id: answer})`: value of every metric by its bare name, and the result."""

    def scored(request: str, said: dict[str, str]):
        path = answers(tmp_path / "a.jsonl", said)
        result = run(EvaluationPlan([parse_request(request)], tmp_path / "out", answered=[path])).results[0]
        return {score.metric.partition(" [")[0]: score.value for score in result.scores}, result

    return scored


def test_mecha_ja_asks_with_the_right_option_in_every_place(mecha, scores):
    items = read(f"mecha-ja={mecha}")
    assert [item.id for item in items[:4]] == ["0_rot0", "0_rot1", "0_rot2", "0_rot3"] and len(items) == 8
    assert [item.references for item in items[:4]] == [("B",), ("A",), ("D",), ("C",)]
    assert items[1].question == f"これは何祭りですか?\nA. ねぶた祭\nB. 七夕\nC. 天神祭\nD. 祇園祭\n\n{LETTER}"
    assert items[0].fields == {"answer_type": "factoid", "background": "with", "rotation": "0"}
    assert len({item.cluster for item in items}) == 2
    assert [item.id for item in read(f"mecha-ja:plain={mecha}")] == ["0", "1"]
    # One who always says A is right once in four places, and no oftener.
    found, result = scores(f"mecha-ja={mecha}", {item.id: "A" for item in items})
    assert found["contains the reference"] == found["accuracy"] == 25
    assert {kind: part[0].value for kind, part in result.categories["rotation"].items()} == {
        "0": 0, "1": 50, "2": 0, "3": 50,
    }  # fmt: skip


def test_an_option_that_is_not_there_is_named(tmp_path):
    table(
        tmp_path / "test-0.parquet", question=["?"], options=[["ア", "イ"]], answer=[2], answer_type=[0],
        background_text=[""], image=[cell(1)],
    )  # fmt: skip
    with pytest.raises(ValueError, match="row 0: .*`answer` is 2, but there are 2 options"):
        read(f"mecha-ja={tmp_path}")


def test_cvqa_is_its_japanese_rows(tmp_path, scores):
    table(
        tmp_path / "data/test-0.parquet",
        image=[cell(1), cell(2), cell(3)],
        Question=["¿Qué?", "何ですか?", "どこですか?"],
        Options=[["a", "b"], ["寺", "神社", "城", "駅"], ["奈良", "東京", "福岡", "札幌"]],
        Label=[0, 1, 0],
        Subset=["('Spanish', 'Mexico')", "('Japanese', 'Japan')", "('Japanese', 'Japan')"],
        Category=["Food", "Buildings", "Geography"],
    )
    items = read(f"cvqa-ja={tmp_path}")
    assert [(item.id, item.references) for item in items] == [("0", ("B",)), ("1", ("A",))]
    assert items[0].question.startswith("何ですか?\nA. 寺\nB. 神社") and items[0].fields == {"category": "Buildings"}
    assert scores(f"cvqa-ja={tmp_path}", {"0": "B", "1": "D"})[0]["contains the reference"] == 50


def test_jdocqa_has_pages_and_two_kinds_of_score(jdocqa, scores):
    items = read(f"jdocqa={jdocqa}")
    assert [(item.id, len(item.pictures), item.fields["answer_type"]) for item in items] == [
        ("11", 2, "factoid"), ("12", 1, "yesno"), ("13", 2, "open-ended"),
    ]  # fmt: skip
    said = {"11": "１０月３日です。", "12": "いいえ", "13": "事業の目的を説明している。"}
    found, _ = scores(f"jdocqa={jdocqa}", said)
    assert found["JDocQA score"] == pytest.approx(200 / 3) and found["contains the reference"] == 50
    assert found["BLEU ja-mecab"] == pytest.approx(100)


def test_ja_multi_image_vqa_shows_all_pictures_first(tmp_path):
    file = tmp_path / "test-0.parquet"
    cells = pa.array(
        [[cell(1), cell(2)], [cell(2)]], pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    )
    table(
        file,
        images=cells,
        question=["<image> <image> どちらが大きいですか?", "<image> 何ですか?"],
        answer=["右", "鳥"],
    )
    first, second = read(f"ja-multi-image-vqa={tmp_path}")
    assert first.question == "どちらが大きいですか?" and [each.read() for each in first.pictures] == [png(1), png(2)]
    assert second.pictures[0] == first.pictures[1] and len(set(first.image_ids)) == 2
    assert [part["type"] for part in first.messages[0]["content"]] == ["image", "image", "text"]


@pytest.mark.parametrize("name", ["business-slide-vqa", "jgraphqa"])
def test_questions_about_one_slide_or_graph(tmp_path, name):
    table(
        tmp_path / "data.parquet", image=[cell(1), cell(2)], question=["売上は?", "何年?"], answer=["3億円", "2020"],
        question_id=["s1", "s2"],
    )  # fmt: skip
    items = read(f"{name}={tmp_path}")
    assert [(item.id, item.references) for item in items] == [("s1", ("3億円",)), ("s2", ("2020",))]


def test_hakusho_bench_asks_about_charts_and_is_broken_down_by_their_kind(tmp_path, scores):
    table(
        tmp_path / "data/test-00000-of-00001.parquet", image=[cell(1), cell(2)],
        question=["最も多い年は?", "何%ですか?"], answer=["2020年", "12.5%"], original_id=["a_1", "b_2"],
        image_type=["Bar", "Table"],
    )  # fmt: skip
    items = read(f"hakusho-bench={tmp_path}")
    assert [(item.id, item.references, item.fields) for item in items] == [
        ("a_1", ("2020年",), {"image_type": "Bar"}), ("b_2", ("12.5%",), {"image_type": "Table"}),
    ]  # fmt: skip
    assert items[0].question == "最も多い年は?\n上記の質問に対して、正確かつ簡潔に答えてください。"
    found, result = scores(f"hakusho-bench={tmp_path}", {"a_1": "2020年", "b_2": "12%"})
    assert found["exact match"] == 50 and result.categories["image_type"]["Bar"][0].value == 100


def test_hakusho_bench_without_pictures_is_named(tmp_path):
    table(tmp_path / "test-0.parquet", image_url=["https://x/1.png"], question=["?"], answer=["1"], original_id=["a"])
    with pytest.raises(ValueError, match="test-0.parquet lacks the columns image; it has image_url"):
        read(f"hakusho-bench={tmp_path}")


def test_jammeval_reads_all_its_configurations(tmp_path, scores):
    table(
        tmp_path / "CVQA-JA-Refined/test-0.parquet", image=[cell(1), cell(2), cell(3)],
        question=["何?", "どこ?", "誰?"], answer=["神社", "1", "C"], original_id=[7, 8, 9],
        options=[["寺", "神社"], ["奈良", "東京"], ["x", "y", "z"]],
    )  # fmt: skip
    table(
        tmp_path / "Heron-Bench-Refined/test-0.parquet", image=[cell(4)], question=["何羽いますか?"], answer=["2羽"],
        original_id=["3"],
    )  # fmt: skip
    items = read(f"jammeval={tmp_path}")
    assert [(item.id, item.references, item.fields) for item in items] == [
        ("CVQA-JA-Refined/0", ("B",), {"set": "CVQA-JA", "kind": "choice"}),
        ("CVQA-JA-Refined/1", ("B",), {"set": "CVQA-JA", "kind": "choice"}),
        ("CVQA-JA-Refined/2", ("C",), {"set": "CVQA-JA", "kind": "choice"}),
        ("Heron-Bench-Refined/0", ("2羽",), {"set": "Heron-Bench", "kind": "open"}),
    ]
    said = {item.id: item.references[0] for item in items} | {"CVQA-JA-Refined/1": "A"}
    found, result = scores(f"jammeval={tmp_path}", said)
    assert found["accuracy"] == 75
    assert result.categories["set"]["CVQA-JA"][0].value == pytest.approx(200 / 3)
    assert [item.id for item in read(f"jammeval={tmp_path / 'Heron-Bench-Refined'}")] == ["Heron-Bench-Refined/0"]


def test_jmmmu_pro_as_text_and_as_a_picture_of_it(tmp_path):
    columns = {"id": ["validation_Japanese_Art_1"], "options": ["['雪舟', '北斎']"], "answer": ["B"]}
    table(
        tmp_path / "standard/test-0.parquet", **columns, question=["<image 1>の作者は?"],
        question_type=["multiple-choice"], image_1=[cell(1)],
    )  # fmt: skip
    table(tmp_path / "vision/test-0.parquet", **columns, question=[""], image_1=[cell(2)])
    (seen,) = read(f"jmmmu-pro={tmp_path}")
    (told,) = read(f"jmmmu-pro:standard={tmp_path}")
    assert (
        seen.question == LETTER and seen.pictures[0].read() == png(2) and seen.details == {"options": ["雪舟", "北斎"]}
    )
    assert told.question == f"の作者は?\nA. 雪舟\nB. 北斎\n\n{LETTER}" and told.pictures[0].read() == png(1)
    assert seen.references == told.references == ("B",) and seen.fields["culture"] == "specific"
    with pytest.raises(FileNotFoundError, match="configuration vision"):
        read(f"jmmmu-pro={tmp_path / 'standard'}")


def test_cc_ocr_is_its_japanese_rows_by_characters(tmp_path, scores):
    table(
        tmp_path / "multi_lan_ocr/test-0.parquet",
        image=[base64.b64encode(png(n)).decode() for n in range(3)],
        question=["Read.", "読んで", "読んで"],
        answer=["hi", "出口 Ａ", "右折禁止"],
        **{"l2-category": ["English", "Japanese", "Japanese"]},
    )
    items = read(f"cc-ocr-ja={tmp_path}")
    assert [(item.id, item.references) for item in items] == [("0", ("出口 Ａ",)), ("1", ("右折禁止",))]
    assert items[0].pictures[0].read() == png(1)
    # 出, 口 and ａ in another order; 折 and 止 of four, three said.
    found, _ = scores(f"cc-ocr-ja={tmp_path}", {"0": "ａ出口", "1": "折止め"})
    assert found["character F1"] == pytest.approx((100 + 200 * 2 / 7) / 2)


def test_cc_ocr_names_a_picture_that_is_none(tmp_path):
    table(tmp_path / "test-0.parquet", image=["?"], question=["q"], answer=["a"], **{"l2-category": ["Japanese"]})
    with pytest.raises(ValueError, match=r"test-0.parquet#0.image is no base64"):
        read(f"cc-ocr-ja={tmp_path}")


def test_jawildtext_boards_ask_for_a_box(tmp_path, scores):
    table(tmp_path / "board_vqa/train-0.parquet", image=[cell(1)], question=["営業時間は?"], answer=["10時から"])
    (item,) = read(f"jawildtext-board-vqa={tmp_path}")
    assert item.question.startswith("営業時間は?\n画像を参照して") and "\\boxed{...}" in item.question
    found, _ = scores(f"jawildtext-board-vqa={tmp_path}", {"0": "看板によると \\boxed{10時から} です"})
    assert found["exact match"] == 100


def test_jawildtext_handwriting_is_read_from_top_to_bottom(tmp_path, scores):
    def at(text: str, x: int, y: int) -> dict:
        return {"text": text, "polygon": [[x, y], [x + 2, y], [x + 2, y + 2], [x, y + 2]]}

    table(
        tmp_path / "handwriting_ocr/train-0.parquet", image=[cell(1)],
        polygons=[[at("みぎ", 9, 0), at("した", 0, 9), at("ひだり", 0, 0)]],
    )  # fmt: skip
    (item,) = read(f"jawildtext-handwriting-ocr={tmp_path}")
    assert item.references == ("ひだり\nみぎ\nした",)
    found, _ = scores(f"jawildtext-handwriting-ocr={tmp_path}", {"0": "ひだり\\nみぎ\nうえ"})
    assert found["100 - CER"] == pytest.approx(100 * (1 - 2 / 9))


def test_jawildtext_receipts_are_fields(tmp_path, scores):
    value = {"store_name": {"value": "八百屋"}, "total_amount": {"value": "¥1,200"}, "date": {"value": None}}
    value["line_items"] = [{"item_name": {"value": "りんご"}, "item_price": {"value": "３００"}}]
    table(tmp_path / "receipt_kie/train-0.parquet", image=[cell(1)], fields=[value])
    (item,) = read(f"jawildtext-receipt-kie={tmp_path}")
    assert json.loads(item.references[0])["line_items"][0] == {
        "item_name": "りんご", "item_price": "３００", "item_quantity": None,
    }  # fmt: skip
    said = {"store_name": "八百屋", "total_amount": 1200, "line_items": [{"item_name": "なし", "item_price": "300"}]}
    found, _ = scores(f"jawildtext-receipt-kie={tmp_path}", {"0": f"```json\n{json.dumps(said)}\n```"})
    assert found == {"field F1": pytest.approx(75), "answers that are JSON": 100}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_jic_vqa_is_the_mean_of_its_domains(tmp_path, scores, kind):
    questions = ["この花の名前は?", "この花の名前は?", "この食べ物の名前は?"]
    if kind == "csv":
        path = tmp_path / "jic.csv"
        rows = [
            f'{n},http://x/{n}.jpg,{right},"{question}"'
            for n, (right, question) in enumerate(zip(("桜", "梅", "寿司"), questions, strict=True))
        ]
        path.write_text("id,url,category,question\n" + "\n".join(rows), encoding="utf-8")
        for number in range(3):
            (tmp_path / f"{number}.jpg").write_bytes(png(number))
    else:
        path = table(
            tmp_path / "jic.parquet", image=[cell(n) for n in range(3)], input_text=questions,
            answer=["桜", "梅", "寿司"], question_id=[0, 1, 2],
        )  # fmt: skip
    found, result = scores(f"jic-vqa={path}", {"0": "桜です", "1": "桜です", "2": "寿司"})
    assert found == {"contains the reference, mean of domains": 75}
    assert sorted(result.categories["domain"]) == ["jaflower30", "jafood101"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("a", "a"), ("\\boxed{1} then \\boxed{2{x}}", "2{x}"), ("\\boxed{open", "\\boxed{open"),
        ("\\boxed{a\\boxed{b}}", "a\\boxed{b}"),
    ],
)  # fmt: skip
def test_the_last_box_counts(said, found):
    assert boxed(said) == found


def test_edits_of_long_texts_are_those_of_the_table():
    def distance(first: str, second: str) -> int:
        row = list(range(len(second) + 1))
        for i, one in enumerate(first, 1):
            before, row[0] = row[0], i
            for j, other in enumerate(second, 1):
                before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
        return row[-1]

    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("あいう\n"), size=random.integers(1, 30))) for _ in range(60)]
    for reference, answer in zip(texts[::2], texts[1::2], strict=True):
        reference, answer = reference.strip("\n") or "あ", answer.strip("\n") or "い"
        expected = max(0.0, 100 * (1 - distance(reference, answer) / len(reference)))
        assert edit_similarity([answer], [(reference,)]).value() == pytest.approx(expected)


@pytest.mark.parametrize("said", ["", "なし", "[1]", '{"store_name": ', "{" * 5000])
def test_what_is_no_json_scores_nothing(said):
    reference = json.dumps({"store_name": "八百屋", "line_items": []})
    assert [each.value() for each in receipt_f1([said], [(reference,)])] == [0, 0]
