"""Stage 6: the finished miniature as a folder of the package, `demo/`.

`python build_demo.py WORK OUT` assembles the checkpoint anew in half precision with the trained projection of seed 0,
adds sample pictures by an artist that no stage has seen, and writes the model card with the numbers of WORK/table.md
and a conversation of WORK/conversations.md.
"""

import shutil
from itertools import count
from pathlib import Path
from typing import Annotated

import torch
import typer
from drawings import ARTISTS, HERE, SAMPLES, Drawing, listed_concepts, read_drawings, render
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from scenes import View, draw
from transformers import GenerationConfig

from jminigpt4.checkpoint import finished_file, finished_folder, write_manifest
from jminigpt4.convert import assemble

SEED = 0
SAMPLE_ARTIST, SAMPLE_SIZE = "twemoji", 320
TWO = ("りんご", "猫")  # on the left and on the right of the sample `two`
CARD = HERE / "card.md"
PARTS = "## Parts"
# The encoder is another's; what was trained with drawings passes on the least permissive of their licences.
LICENCES = {"vision": "apache-2.0", "qformer": "cc-by-4.0", "language": "cc-by-4.0"}


def write_samples(drawings: list[Drawing], folder: Path) -> None:
    """Sample drawings as PNG files on transparent ground, as their artist published them, and two things on white."""
    folder.mkdir()
    own = {d.concept: i for i, d in reversed(list(enumerate(drawings))) if d.artist == SAMPLE_ARTIST}
    for name, concept in SAMPLES.items():
        render(drawings[own[concept]].svg, SAMPLE_SIZE).save(folder / f"{name}.png", optimize=True)
    left, right = (own[concept] for concept in TWO)
    side_by_side(left, right, drawings).save(folder / "two.png", optimize=True)


def side_by_side(left: int, right: int, drawings: list[Drawing]) -> Image.Image:
    """Two drawings, by their positions, as the exam shows them: on white, each about as large as fits."""
    view = View("two", (left, right), training=False)
    drawn = (draw(view, drawings, seed, SAMPLE_SIZE) for seed in count())  # every third is one above the other
    return next(picture for picture, true in drawn if true.arrangement == "side")


def halve(path: Path) -> None:
    """Rewrites a file of weights with its float32 tensors in float16.

    `assemble` leaves query tokens, Q-Former, norm and projection in float32, since they compute in it: they are in
    `_keep_in_fp32_modules_strict` of modeling_jminigpt4.py, which transformers loads as float32 whatever the file
    holds. So this rounds their values, to 11 bits, and nothing that is computed from them. The Q-Former was trained
    with products in bfloat16, of 8 bits, on feature maps in float16. The folder loses a quarter of its size.
    """
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    halved = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    with finished_file(path) as halved_file:
        save_file(halved, halved_file, metadata)


def answer_greedily(folder: Path) -> None:
    """The prompt format's defaults draw answers at random, as suits a model of billions; this one is greedy."""
    settings = GenerationConfig.from_pretrained(folder)
    plain = GenerationConfig(
        bos_token_id=settings.bos_token_id, eos_token_id=settings.eos_token_id, pad_token_id=settings.pad_token_id,
        suppress_tokens=settings.suppress_tokens, max_new_tokens=48, do_sample=False,
    )  # fmt: skip
    plain.save_pretrained(folder)


def first_conversation(path: Path) -> str:
    """The first of the file that `report.py` writes, with a sentence before it; nothing where there is no file."""
    if not path.exists():
        return ""
    title, _, text = path.read_text(encoding="utf-8").split("\n## ")[1].partition("\n")
    return (
        "The first of ten conversations that were drawn at random, about a picture by an artist that no part has seen "
        f"({title.partition('. ')[2]}). ✓: the expected answer to the letter; ✗ stands before it.\n\n"
        f"{text.strip()}\n\n"
    )


def write_card(folder: Path, work: Path) -> None:
    """Puts what the miniature is, can and cannot do, and its table, into the card that the conversion wrote."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    artists = "\n".join(
        f"- {a.author}: {a.licence} (npm {a.package} {a.version})" for a in ARTISTS if a.role == "train"
    )
    words = CARD.read_text(encoding="utf-8").format(
        concepts=len(listed_concepts()),
        conversation=first_conversation(work / "conversations.md"),
        artists=artists,
        table=(work / "table.md").read_text(encoding="utf-8").strip(),
    )
    head, _, tail = card.partition(PARTS)
    (folder / "README.md").write_text(head + words + "\n" + PARTS + tail, encoding="utf-8")


def build(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    out: Annotated[Path, typer.Argument(help="the folder to make")],
) -> None:
    """Assemble the demo; an existing one is replaced when the new one is complete."""
    for part, licence in LICENCES.items():
        (work / part / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")
    with finished_folder(out, replace=True) as folder:
        made = folder / "checkpoint"
        assemble(
            vision=work / "vision", qformer=work / "qformer", language=work / "language", out=made,
            projection=work / f"run-{SEED}" / "projection.safetensors", prompt_format="article-3.6b",
            dtype="float16", qformer_heads=8, prove_equal=False,  # proven in float32 by align.py
        )  # fmt: skip
        for file in made.iterdir():
            shutil.move(file, folder / file.name)
        made.rmdir()
        halve(folder / "model.safetensors")
        answer_greedily(folder)
        write_samples(read_drawings(work / "drawings.jsonl"), folder / "samples")
        write_card(folder, work)
        write_manifest(folder)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(build)
