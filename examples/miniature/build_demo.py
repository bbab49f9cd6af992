"""Stage 6: the finished miniature as a folder of the package, `demo/`.

`python build_demo.py WORK OUT` assembles the checkpoint anew in half precision with the trained projection of seed 0,
adds sample drawings by an artist that no stage has seen, and writes the model card with the numbers of WORK/table.md.
"""

from pathlib import Path
from typing import Annotated

import typer
from drawings import ARTISTS, SAMPLES, Drawing, read_drawings, render, stated_names
from transformers import GenerationConfig

from jminigpt4.checkpoint import finished_folder, write_manifest
from jminigpt4.convert import assemble

SEED = 0
SAMPLE_ARTIST, SAMPLE_SIZE = "twemoji", 320
CARD = Path(__file__).parent / "card.md"
PARTS = "## Parts"
# The encoder is another's; what was trained with drawings passes on the least permissive of their licences.
LICENCES = {"vision": "apache-2.0", "qformer": "cc-by-4.0", "language": "cc-by-4.0"}


def write_samples(drawings: list[Drawing], folder: Path) -> None:
    """Sample drawings as PNG files on transparent ground, as their artist published them."""
    folder.mkdir()
    own = {d.concept: d for d in reversed(drawings) if d.artist == SAMPLE_ARTIST}
    for name, concept in SAMPLES.items():
        render(own[concept].svg, SAMPLE_SIZE).save(folder / f"{name}.png", optimize=True)


def answer_greedily(folder: Path) -> None:
    """The prompt format's defaults draw answers at random, as suits a model of billions; this one is greedy."""
    settings = GenerationConfig.from_pretrained(folder)
    plain = GenerationConfig(
        bos_token_id=settings.bos_token_id, eos_token_id=settings.eos_token_id, pad_token_id=settings.pad_token_id,
        suppress_tokens=settings.suppress_tokens, max_new_tokens=32, do_sample=False,
    )  # fmt: skip
    plain.save_pretrained(folder)


def write_card(folder: Path, work: Path) -> None:
    """Puts what the miniature is, can and cannot do, and its table, into the card that the conversion wrote."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    artists = "\n".join(
        f"- {a.author}: {a.licence} (npm {a.package} {a.version})" for a in ARTISTS if a.role == "train"
    )
    words = CARD.read_text(encoding="utf-8").format(
        concepts=len(stated_names(read_drawings(work / "drawings.jsonl"))),
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
    import shutil

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
        answer_greedily(folder)
        write_samples(read_drawings(work / "drawings.jsonl"), folder / "samples")
        write_card(folder, work)
        write_manifest(folder)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(build)
