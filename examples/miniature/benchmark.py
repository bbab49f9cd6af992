"""The unseen artists' drawings as a benchmark: `python benchmark.py WORK` writes WORK/held_out.jsonl and its pictures.

    jminigpt4 evaluate ../../demo -b WORK/held_out.jsonl -o WORK/evaluation

asks the embedded model every question about every drawing; `category` and `artist` are the columns of its tables. The
pictures stay in WORK: two of the three artists' licences (CC BY-SA) are not those of this repository.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from drawings import Concept, Drawing, plain_view, read_concepts, read_drawings, stated_names
from examine import QUESTIONS, UNSEEN, reference
from tqdm import tqdm


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


def questions_about(
    drawing: Drawing, picture: str, concept: Concept, questions: Mapping[str, str] = QUESTIONS
) -> Iterator[str]:
    """Lines of a benchmark: the questions that are asked about a drawing, with their true answers.

    Args:
        questions: Kind, as of [`reference`] -> wording.
    """
    for category, question in questions.items():
        if (answer := reference(category, drawing, concept)) is None:
            continue
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
    """Write pictures and questions with their true answers; concepts that any stage has held out are marked."""
    concepts = {concept.name: concept for concept in read_concepts()}
    drawings = read_drawings(work / "drawings.jsonl")
    asked = set(stated_names(drawings)) | {c.name for c in concepts.values() if c.held_out != "-"}
    shown = [each for each in drawings if each.artist in (artist or UNSEEN) and each.concept in asked]
    lines = [
        line
        for drawing, picture in write_pictures(shown, work / name)
        for line in questions_about(drawing, picture, concepts[drawing.concept])
    ]
    (work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} questions: {work / name}.jsonl")


if __name__ == "__main__":
    typer.run(write_benchmark)
