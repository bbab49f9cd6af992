"""Blind and shuffled: what a model answers without its picture."""

import json

import pytest
from PIL import Image

from jminigpt4.data.pictures import FilePicture
from jminigpt4.evaluate.benchmarks import parse_request
from jminigpt4.evaluate.controls import BLIND, SHUFFLED, control_items
from jminigpt4.evaluate.items import Item, ask
from jminigpt4.evaluate.running import EvaluationPlan, run
from jminigpt4.inference.endpoint import image_part


def items_of(*pictures: str, question: str = "何ですか?") -> list[Item]:
    """One item per name, about the picture of that name; equal names are one picture."""
    return [
        Item(str(number), ask(question), (FilePicture(name),), ("犬",), (f"own:{name}",))
        for number, name in enumerate(pictures)
    ]


@pytest.mark.parametrize("pictures", ["aabbcc", "aaabc", "abcdefgh", "aab", "ab"])
def test_shuffled_items_never_have_a_picture_of_their_own(pictures):
    items = items_of(*pictures)
    shuffled = control_items(items, 100)[SHUFFLED]
    assert shuffled
    for item in shuffled:
        own = items[int(item.id)]
        assert item.pictures != own.pictures and item.image_ids == own.image_ids and item.messages == own.messages
    if max(map(pictures.count, pictures)) * 2 <= len(pictures):
        assert len(shuffled) == len(items)


def test_shuffled_pictures_are_not_those_of_neighbours():
    """Files are often named in the order of what they show: a neighbour's picture would give the kind away."""
    items = items_of(*(f"{kind}{number}" for kind in "abcdefgh" for number in range(10)))
    shuffled = control_items(items, 100)[SHUFFLED]
    same = [item.pictures[0].name[0] == items[int(item.id)].pictures[0].name[0] for item in shuffled]
    assert len(same) == 80 and sum(same) / 80 < 0.3  # an eighth, were it all by chance


def test_blind_items_have_their_question_and_nothing_else():
    (item,) = control_items(items_of("a"), 100)[BLIND]
    assert item.pictures == () and item.messages == [
        {"role": "user", "content": [{"type": "text", "text": "何ですか?"}]}
    ]
    assert SHUFFLED not in control_items(items_of("a"), 100)
    assert BLIND not in control_items(items_of("a", "b", question=""), 100)
    assert control_items(items_of("a", "b"), 0) == {}


def test_the_sample_is_drawn_the_same_every_time():
    items = items_of(*map(str, range(50)))
    first, again = (control_items(items, 7)[BLIND] for _ in range(2))
    assert [each.id for each in first] == [each.id for each in again] and len(first) == 7
    assert [each.id for each in first] != [str(number) for number in range(7)]


COLOURS = ("赤", "青", "緑", "黄")


@pytest.fixture
def coloured(tmp_path, picture_files, lines):
    """A question that needs its picture and one that does not, about each of four."""
    rows = []
    for number, (file, colour) in enumerate(zip(picture_files, COLOURS, strict=True)):
        for kind, question, answer in (("colour", "何色?", colour), ("number", "一足す一は?", "二")):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            rows.append({"id": f"{number}-{kind}", "image": str(file), "messages": messages})
    return lines(tmp_path / "coloured.jsonl", rows)


@pytest.fixture
def picture_files(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        Image.new("RGB", (8, 8), (60 * number, 9, 9)).save(file)
    return files


def test_a_model_that_reads_only_the_question_is_found_out(tmp_path, coloured, picture_files, scripted_server):
    colours = {
        image_part(file.read_bytes(), "a")["image_url"]["url"]: colour
        for file, colour in zip(picture_files, COLOURS, strict=True)
    }

    def answer(body):
        content = body["messages"][-1]["content"]
        text = "".join(part["text"] for part in content if part["type"] == "text")
        seen = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        return "二" if text != "何色?" else colours[seen[0]] if seen else "赤"

    with scripted_server(answer) as server:
        plan = EvaluationPlan(
            [parse_request(str(coloured))], tmp_path / "out", model="rival", endpoint=server.url, progress=False
        )
        sheet = run(plan)
    controls = sheet.controls["coloured"]
    # Blind it says 赤 of everything, which is right of one; with another picture it says that one's colour.
    assert [each.value for each in (controls.pictured, controls.blind, controls.shuffled)] == [100, 62.5, 50]
    assert [item.id for item, _ in controls.answered_blind] == [
        "0-colour", "0-number", "1-number", "2-number", "3-number",
    ]  # fmt: skip
    written = json.loads((tmp_path / "out/scores.json").read_text())["controls"]["coloured"]
    assert written["answered_blind"][0] == {"id": "0-colour", "question": "何色?", "answer": "赤"}
    page = (tmp_path / "out/report.html").read_text()
    assert "Was the picture used?" in page and "5 items are right without a picture" in page
    assert sheet.table().splitlines()[1].split()[-2:] == ["62.50", "50.00"]

    # Scored again from the answers that lie there, the same.
    again = run(EvaluationPlan([], tmp_path / "again", answered=[tmp_path / "out/coloured/predictions.jsonl"]))
    assert again.as_dict()["controls"] == sheet.as_dict()["controls"]


def test_controls_can_be_left_out(tmp_path, own, scripted_server):
    with scripted_server(lambda body: "犬") as server:
        plan = EvaluationPlan(
            [parse_request(str(own))], tmp_path / "out", model="r", endpoint=server.url, controls=0, progress=False
        )
        assert run(plan).controls == {} and len(server.requests) == 12
    assert not (tmp_path / "out/held_out/blind").exists()
