"""The unseen artists' drawings as a benchmark: `python benchmark.py WORK` writes WORK/held_out.jsonl and its pictures.

    jminigpt4 evaluate ../../demo -b WORK/held_out.jsonl -o WORK/evaluation

asks the embedded model what `examine.py` asks about every drawing of a listed thing, as far as one turn goes;
`category` and `artist` are the columns of its tables. The pictures stay in WORK: two of the three artists' licences
(CC BY-SA) are not those of this repository.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from drawings import Drawing, listed_concepts, read_drawings
from questions import asked
from scenes import UNSEEN, View, plain_view
from tqdm import tqdm

ONE_TURN = ("name", "kind", "colour", "edible", "description", "confirmed", "english")  # exams of `questions.py`
Question = tuple[str, str, str]  # its exam, what is asked, the right answer


def unseen_places(drawings: Sequence[Drawing]) -> list[int]:
    """Positions of the unseen artists' drawings of listed things, in the order in which `examine.py` asks: what is
    drawn by chance in a question is then the same there."""
    return [i for artist in UNSEEN for i, d in enumerate(drawings) if d.artist == artist and d.listed]


def questions_about(places: Iterable[int], drawings: list[Drawing]) -> dict[int, list[Question]]:
    """Position of a drawing -> all that is asked about it; the colour of a drawing of many colours is not."""
    views = [View("plain", (place,), training=False) for place in places]
    concepts = {concept.name: concept for concept in listed_concepts()}
    questions: dict[int, list[Question]] = {view.drawings[0]: [] for view in views}
    for exam in ONE_TURN:
        for each in asked(exam, views, drawings, concepts):
            (question,), (answer,) = each.questions, each.truth
            questions[views[each.view].drawings[0]].append((exam, question, answer or ""))
    return questions


def write_pictures(drawings: list[Drawing], folder: Path) -> Iterator[tuple[Drawing, str]]:
    """Draws each on white into `folder`; yields it with the path of its picture, relative to what `folder` is in."""
    folder.mkdir(exist_ok=True)
    numbers: dict[str, int] = {}
    for drawing in tqdm(drawings, desc="drawings"):
        key = f"{drawing.artist}-{drawing.emoji.replace(' ', '-')}"
        numbers[key] = numbers.get(key, -1) + 1
        picture = f"{key}-{numbers[key]}.png"
        plain_view(drawing).save(folder / picture)
        yield drawing, f"{folder.name}/{picture}"


def lines_about(drawing: Drawing, picture: str, questions: Iterable[Question]) -> Iterator[str]:
    """Lines of a benchmark: questions about a drawing with their right answers."""
    for category, question, answer in questions:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        fields = {"category": category, "artist": drawing.artist, "held_out": drawing.held_out}
        row = {"id": f"{Path(picture).stem}-{category}", "images": [picture], "messages": messages, **fields}
        yield json.dumps(row, ensure_ascii=False) + "\n"


def write_benchmark(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    artist: Annotated[list[str] | None, typer.Option(help="only these artists")] = None,
    name: Annotated[str, typer.Option(help="name of the file")] = "held_out",
) -> None:
    """Write pictures and questions with their right answers."""
    drawings = read_drawings(work / "drawings.jsonl")
    questions = questions_about(unseen_places(drawings), drawings)
    places = [place for place in questions if drawings[place].artist in (artist or UNSEEN)]
    pictures = write_pictures([drawings[place] for place in places], work / name)
    lines = [
        line
        for place, (drawing, picture) in zip(places, pictures, strict=True)
        for line in lines_about(drawing, picture, questions[place])
    ]
    (work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} questions: {work / name}.jsonl")


if __name__ == "__main__":
    typer.run(write_benchmark)
