"""What `train MODEL my.jsonl` makes of a few pictures: loss, answers, minutes.

    python benchmarks/train_small.py                                    12, 60, 100 and 1,000 pictures, the default
    python benchmarks/train_small.py --pictures 100 --set optimizer=adamw --set learning_rate=3e-3
    python benchmarks/train_small.py --pictures 12 100 --trained        go on from the demo's own projection

The checkpoint of `demo/` with a random projection learns the names of drawings (drawings.webp, drawings.tsv), one
question a picture; 1,000 are 234 drawings and crops of them. Asked are the pictures it was trained on, and 78 drawings
that no run shows it: most of the 38 things on them are among the others only from 100 pictures on.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from jminigpt4 import DEMO, JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from jminigpt4.inference.loading import be_quiet
from jminigpt4.train import Recipe, train
from jminigpt4.train.commands import _changes
from jminigpt4.train.features import PictureEncoder
from jminigpt4.train.sampling import Samples
from jminigpt4.train.selection import CocoTwins
from jminigpt4.train.sources import read_data

HERE = Path(__file__).parent
SIZE, HELD = 160, 78
QUESTION = "何が写っていますか?"


def drawings() -> list[tuple[str, Image.Image]]:
    """Name and picture of each drawing."""
    lines = (HERE / "drawings.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sheet = Image.open(HERE / "drawings.webp").convert("RGB")
    across = sheet.width // SIZE
    corners = [(number % across * SIZE, number // across * SIZE) for number in range(len(lines))]
    return [
        (line.split("\t")[0], sheet.crop((x, y, x + SIZE, y + SIZE)))
        for line, (x, y) in zip(lines, corners, strict=True)
    ]


def write(folder: Path, chosen: list[tuple[str, Image.Image]], count: int) -> Path:
    """`count` rows, of the pictures and then of random crops of them."""
    folder.mkdir()
    generator = random.Random(0)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            name, picture = chosen[number % len(chosen)]
            if number >= len(chosen):
                side = generator.randint(128, 156)
                x, y = generator.randint(0, SIZE - side), generator.randint(0, SIZE - side)
                picture = picture.crop((x, y, x + side, y + side))
            picture.save(folder / f"{number}.png")
            row = {"image": f"{number}.png", "question": QUESTION, "answer": f"{name}が写っています。"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return folder / "rows.jsonl"


def right(model, processor, rows: Path) -> float:
    """Share of the rows, at most 100, whose answer is the expected one to the letter."""
    (source,) = read_data(str(rows), Recipe(), CocoTwins())
    asked = [group.rows[0] for group in source.training][:100]
    samples = Samples(model, processor, asked, PictureEncoder(model, processor), Path(), 1, max_new_tokens=16)
    return sum(line["expected"] == line["answer"] for line in samples.lines(0)) / len(asked)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[12, 60, 100, 1000])
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--trained", action="store_true", help="begin with the projection of the demo")
    options = parser.parse_args()
    be_quiet()
    recipe = Recipe.load(options.recipe, **_changes(options.set))
    everything = drawings()
    with tempfile.TemporaryDirectory() as folder:
        held = write(Path(folder) / "held", everything[-HELD:], HELD)
        for count in options.pictures:
            rows = write(Path(folder) / f"{count}", everything[:-HELD][:count], count)
            model = JMiniGPT4ForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32)
            processor = JMiniGPT4Processor.from_pretrained(DEMO)
            if not options.trained:
                torch.manual_seed(0)
                model.model.language_projection.reset_parameters()
            began, wall = time.process_time(), time.perf_counter()
            output = Path(folder) / f"run-{count}"
            result = train(
                model, str(rows), output, recipe, processor=processor, progress=False, cache=Path(folder) / "cache"
            )
            spent = f"{time.process_time() - began:.0f} CPU s, {time.perf_counter() - wall:.0f} s"
            validation = f", validation {result.eval_loss:.3f}" if result.eval_loss is not None else ""
            print(
                f"{count} pictures: {result.steps} steps, loss {result.loss:.4f}{validation}; right "
                f"{right(model, processor, rows):.0%} of its own, {right(model, processor, held):.0%} of others; "
                f"{spent}",
                flush=True,
            )


if __name__ == "__main__":
    main()
