"""Stage 4: freeze everything, assemble the checkpoint, and train the one Linear on Japanese.

`python align.py WORK` puts the tower, the Q-Former and the language model together with `jminigpt4.convert.assemble`,
and trains the projection of three seeds with `jminigpt4.train` -> WORK/run-SEED/projection.safetensors.
`--family llama` swaps another language model in with `jminigpt4.convert.swap` first, `--random` puts the tower with
random weights in, `--optimizer muon` takes Muon and half the steps -> WORK/run-muon-SEED. Concepts that are held out
from this stage, and artists that are held out from all, are not among its pictures.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from corpus import Scene, conversation
from drawings import PICTURE_SIZE, Drawing, read_concepts, read_drawings, stated_names
from PIL import Image
from tqdm import tqdm
from vision import TRAINING, Views, drawings_of_pass, load_tower

from jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4ImageProcessor, JMiniGPT4Processor
from jminigpt4.checkpoint import finished_folder, read_projection
from jminigpt4.convert import assemble, swap
from jminigpt4.data.pictures import FilePicture
from jminigpt4.data.rows import PICTURE, Message, Row
from jminigpt4.train import Recipe, train
from jminigpt4.train.features import FeatureCache, PictureEncoder

SEEDS = (0, 1, 2)
ROWS = 2  # conversations about each view, which travel in one sequence
RECIPE = Recipe(
    learning_rate=1.5e-3, min_learning_rate=2e-5, warmup_learning_rate=1e-4, warmup_steps=10, epochs=1,
    steps_per_epoch=560, weight_decay=0.01, betas=(0.9, 0.98), max_grad_norm=1.0, pictures_per_step=64,
    pack_tokens=512, dtype="float32", log_steps=20, save_steps=56, keep_checkpoints=10,
)  # fmt: skip
# What the package's recipe `auto` takes for a new projection, in half the steps; nothing in it was chosen here.
MUON = RECIPE.with_(
    optimizer="muon", learning_rate=0.04, min_learning_rate=8e-4, warmup_learning_rate=8e-4, warmup_steps=14,
    steps_per_epoch=280, weight_decay=1.0, betas=(0.9, 0.999), max_grad_norm=0.0, save_steps=28,
)  # fmt: skip
RECIPES = {"adamw": RECIPE, "muon": MUON}


def assembled(work: Path, random: bool = False, family: str = "gpt_neox") -> Path:
    """The checkpoint with an untrained projection, made by the package's own conversion."""
    suffix = "-random" if random else ""
    vision, out = work / f"vision{suffix}", work / f"assembled{suffix}"
    if not vision.exists():
        with finished_folder(vision) as folder:
            load_tower(random).save_pretrained(folder)
            pictures = JMiniGPT4ImageProcessor(
                size={"height": PICTURE_SIZE, "width": PICTURE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
            )
            settings = json.dumps({"image_processor": pictures.to_dict()})
            (folder / "processor_config.json").write_text(settings, encoding="utf-8")
    if not out.exists():
        assemble(
            vision=vision, qformer=work / f"qformer{suffix}", language=work / "language", out=out,
            prompt_format="article-3.6b", dtype="float32", qformer_heads=8,
        )  # fmt: skip
    if family == "gpt_neox":
        return out
    swapped = work / f"assembled-{family}"
    if not swapped.exists():
        swap(out, language=work / f"language-{family}", out=swapped, prompt_format="article-3.6b", dtype="float32")
    return swapped


def write_views(work: Path, drawings: list[Drawing], number: int) -> Path:
    """The pictures of one pass as PNG files; they are what the feature maps of that pass were computed from."""
    target = work / "views" / str(number)
    if not target.exists():
        shown = [drawings[i] for i in drawings_of_pass(drawings, number)]
        views = Views(shown, number)
        with finished_folder(target) as folder:
            for row in tqdm(range(len(views)), desc=f"pictures of pass {number}", mininterval=10):
                if shown[row].artist in TRAINING:
                    Image.fromarray(views[row][0]).save(folder / f"{row}.png", compress_level=1)
    return target


class StoredMaps(PictureEncoder):
    """Encodes pictures from the tower's feature maps on disk instead of running the tower once more."""

    def __init__(self, model: Any, processor: Any, maps: Path):
        super().__init__(model, processor, batch_size=128)
        self.maps = {int(path.stem): np.load(path, mmap_mode="r") for path in maps.glob("[0-9].npy")}

    def pixel_values(self, content: bytes, name: str, seeds: Iterable[int | None]) -> torch.Tensor:
        number, row = int(Path(name).parent.name), int(Path(name).stem)
        return torch.from_numpy(self.maps[number][row].copy())[None]

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return query_features(self.model, pixel_values.float())


def query_features(model: JMiniGPT4ForConditionalGeneration, maps: torch.Tensor) -> torch.Tensor:
    """Feature maps `(n, tokens, channels)` -> query features `(n, queries, size)` by the model's own parts."""
    core = model.model
    queries = core.query_tokens.expand(len(maps), -1, -1)
    return core.qformer(query_embeds=queries, encoder_hidden_states=core.vision_layernorm(maps)).last_hidden_state


def rows_of_pass(folder: Path, drawings: list[Drawing], number: int, coloured: np.ndarray) -> list[Row]:
    """Conversations about the views of one pass; several rows share one picture."""
    concepts = {c.name: c for c in read_concepts()}
    names = stated_names(drawings)
    rng, rows = np.random.default_rng([5, number]), []
    for row, position in enumerate(drawings_of_pass(drawings, number)):
        drawing = drawings[position]
        if drawing.artist not in TRAINING or drawing.concept not in names:
            continue
        scene = Scene(concepts[drawing.concept], drawing.colour if coloured[row] else None)
        picture = FilePicture(str(folder / f"{row}.png"))
        for _ in range(ROWS):
            rows.append(_row(conversation(scene, rng, names), picture, f"{drawing.concept}:{number}:{row}"))
    return rows


def _row(turns: list[tuple[str, str]], picture: FilePicture, image_id: str) -> Row:
    messages = []
    for index, (question, answer) in enumerate(turns):
        parts = (PICTURE, question) if index == 0 else (question,)
        messages += [Message("user", tuple(p for p in parts if p != "")), Message("assistant", (answer,))]
    return Row(tuple(messages), (picture,), (image_id,), "drawings")


def training_rows(work: Path, maps: Path) -> list[Row]:
    """Rows of all passes whose feature maps are in `maps`; their pictures are written on the way."""
    drawings, rows = read_drawings(work / "drawings.jsonl"), []
    for number in range(len(list(maps.glob("[0-9].npy")))):
        coloured = np.load(maps / f"{number}.coloured.npy")
        rows += rows_of_pass(write_views(work, drawings, number), drawings, number, coloured)
    return rows


def load(folder: Path, seed: int | None = None) -> tuple[JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor]:
    """A checkpoint folder; `seed` draws its projection anew."""
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    if seed is not None:
        torch.manual_seed(seed)
        # As large as the embeddings among which its output will stand.
        torch.nn.init.normal_(model.model.language_projection.weight, std=0.003)
        torch.nn.init.zeros_(model.model.language_projection.bias)
    return model, JMiniGPT4Processor.from_pretrained(folder)


def with_projection(model: Any, run: Path) -> Any:
    """The model with the projection of a run, or of one of its checkpoints."""
    weight, bias, _ = read_projection(run)
    model.model.language_projection.load_state_dict({"weight": weight, "bias": bias})
    return model


def align(
    work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="seeds of the projection")] = None,
    random: Annotated[bool, typer.Option("--random", help="on the tower with random weights")] = False,
    family: Annotated[str, typer.Option(help="language model: gpt_neox, llama or gpt2")] = "gpt_neox",
    optimizer: Annotated[Literal["adamw", "muon"], typer.Option(help="what the projection learns by")] = "adamw",
) -> None:
    """Assemble the checkpoint and train its projection; finished runs are kept, interrupted ones go on."""
    tower = "-random" if random else ""
    variant = tower or ("" if family == "gpt_neox" else f"-{family}")
    variant += "" if optimizer == "adamw" else f"-{optimizer}"
    folder, maps = assembled(work, random, family), work / f"features{tower}"
    rows = training_rows(work, maps)
    for seed in seeds or SEEDS:
        output = work / f"run{variant}-{seed}"
        if (output / "projection.safetensors").exists():
            print(f"{output} is there already")
            continue
        model, processor = load(folder, seed)
        cache = FeatureCache(work / f"query-features{tower}", StoredMaps(model, processor, maps))
        cache.fill((row.pictures[0] for row in rows), pictures_per_file=4000)
        # The frozen part in half precision; what learns, learns in float32 all the same.
        model.model.language_model.bfloat16()
        model.lm_head.bfloat16()
        train(model, rows, output, RECIPES[optimizer].with_(seed=seed), processor=processor, cache=cache.folder)


if __name__ == "__main__":
    typer.run(align)
