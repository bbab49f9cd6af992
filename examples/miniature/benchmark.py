"""The unseen artists' drawings as a benchmark: `python benchmark.py WORK` writes WORK/held_out.jsonl and its pictures.

    jminigpt4 evaluate ../../demo -b WORK/held_out.jsonl -o WORK/evaluation

asks the embedded model every question about every drawing; `category` and `artist` are the columns of its tables. The
pictures stay in WORK: two of the three artists' licences (CC BY-SA) are not those of this repository.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from drawings import plain_view, read_concepts, read_drawings, stated_names
from examine import QUESTIONS, UNSEEN, reference
from tqdm import tqdm


def write_benchmark(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    artist: Annotated[list[str] | None, typer.Option(help="only these artists")] = None,
    name: Annotated[str, typer.Option(help="name of the file")] = "held_out",
) -> None:
    """Write pictures and questions with their true answers; concepts that any stage has held out are marked."""
    concepts = {concept.name: concept for concept in read_concepts()}
    (work / name).mkdir(exist_ok=True)
    lines, numbers = [], {}
    drawings = read_drawings(work / "drawings.jsonl")
    asked = set(stated_names(drawings)) | {c.name for c in concepts.values() if c.held_out != "-"}
    for drawing in tqdm(drawings, desc="drawings"):
        if drawing.artist not in (artist or UNSEEN) or drawing.concept not in asked:
            continue
        key = f"{drawing.artist}-{drawing.emoji.replace(' ', '-')}"
        numbers[key] = numbers.get(key, -1) + 1
        picture = f"{name}/{key}-{numbers[key]}.png"
        plain_view(drawing).save(work / picture)
        for category, question in QUESTIONS.items():
            if (answer := reference(category, drawing, concepts[drawing.concept])) is None:
                continue
            content = [{"type": "image"}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            fields = {"category": category, "artist": drawing.artist, "held_out": drawing.held_out}
            row = {"id": f"{Path(picture).stem}-{category}", "images": [picture], "messages": messages, **fields}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} questions: {work / name}.jsonl")


if __name__ == "__main__":
    typer.run(write_benchmark)
