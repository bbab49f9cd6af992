"""Stage 4: freeze everything, assemble the checkpoint, and train the one Linear on Japanese.

`python align.py WORK` puts the tower, the Q-Former and the language model together with `jminigpt4.convert.assemble`,
and trains the projection of three seeds with `jminigpt4.train` -> WORK/run-SEED/projection.safetensors.
`--family llama` swaps another language model in with `jminigpt4.convert.swap` first, `--random` puts the tower with
random weights in. Artists that are held out are not among its pictures.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from corpus import Scene, Thing, Turn, telling
from drawings import Concept, Drawing, listed_concepts, read_drawings
from scenes import View, read_views
from vision import load_tower, picture_path

from jminigpt4 import JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from jminigpt4.checkpoint import finished_folder, read_projection
from jminigpt4.convert import assemble, swap
from jminigpt4.data.pictures import FilePicture
from jminigpt4.data.rows import PICTURE, Message, Row
from jminigpt4.train import Recipe, train
from jminigpt4.train.features import FeatureCache, PictureEncoder

SEEDS = (0, 1, 2)
# Muon as the recipe `auto` of the package has it for a new projection, but for a tenth of the weight decay, more
# pictures a step, and a rate that fits the size at which the projection begins (`load`): all three read unseen artists
# better.
RECIPE = Recipe(
    optimizer="muon", learning_rate=0.13, min_learning_rate=2.6e-3, warmup_learning_rate=2.6e-3, warmup_steps=14,
    epochs=1, steps_per_epoch=300, weight_decay=0.1, betas=(0.9, 0.999), max_grad_norm=0.0, pictures_per_step=256,
    pack_tokens=512, dtype="float32", log_steps=20, save_steps=30, keep_checkpoints=10,
)  # fmt: skip


def assembled(work: Path, random: bool = False, family: str = "gpt_neox") -> Path:
    """The checkpoint with an untrained projection, made by the package's own conversion."""
    suffix = "-random" if random else ""
    vision, out = work / f"vision{suffix}", work / f"assembled{suffix}"
    if not vision.exists():
        with finished_folder(vision) as folder:
            load_tower(random).save_pretrained(folder)
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


class StoredMaps(PictureEncoder):
    """Encodes pictures from the tower's feature maps on disk instead of running the tower once more."""

    def __init__(self, model: Any, processor: Any, maps: np.ndarray):
        super().__init__(model, processor, batch_size=96)
        self.maps = maps

    def pixel_values(self, content: bytes, name: str, seeds: Iterable[int | None]) -> torch.Tensor:
        return torch.from_numpy(self.maps[int(Path(name).stem)].copy())[None]

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return query_features(self.model, pixel_values.float())


def query_features(model: JMiniGPT4ForConditionalGeneration, maps: torch.Tensor) -> torch.Tensor:
    """Feature maps `(n, tokens, channels)` -> query features `(n, queries, size)` by the model's own parts."""
    core = model.model
    queries = core.query_tokens.expand(len(maps), -1, -1)
    return core.qformer(query_embeds=queries, encoder_hidden_states=core.vision_layernorm(maps)).last_hidden_state


def scene_of(view: View, drawings: list[Drawing], concepts: dict[str, Concept]) -> Scene:
    """What may be said of a picture; a thing that is not listed is beyond the list, whatever its name."""
    shown = [drawings[i] for i in view.drawings]
    things = [
        Thing(concepts[drawing.concept] if drawing.listed else None, drawing.colour if kept else None)
        for drawing, kept in zip(shown, view.coloured, strict=True)
    ]
    return Scene(tuple(things), view.count if len(things) == 1 else 1, view.arrangement, view.ground)


def training_rows(work: Path, eyes: str = "eyes") -> list[Row]:
    """Mostly one question about each training picture, and its answer.

    What is learnt is limited by how many pictures are told of, so one question tells as much as it can: in a longer
    conversation most of an answer is known from the one before it."""
    concepts, drawings = {c.name: c for c in listed_concepts()}, read_drawings(work / "drawings.jsonl")
    rows, rng = [], np.random.default_rng(5)
    for number, view in enumerate(read_views(work / eyes / "views.jsonl")):
        if view.training:
            picture = FilePicture(str(picture_path(work / eyes / "pictures", number)))
            rows.append(_row(telling(scene_of(view, drawings, concepts), rng), picture, str(number)))
    return rows


def _row(turns: list[Turn], picture: FilePicture, image_id: str) -> Row:
    messages: list[Message] = []
    for question, answer in turns:
        asked = (question,) if messages else (PICTURE, question) if question else (PICTURE,)
        messages += [Message("user", asked), Message("assistant", (answer,))]
    return Row(tuple(messages), (picture,), (image_id,), "drawings")


def load(folder: Path, seed: int | None = None) -> tuple[JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor]:
    """A checkpoint folder; `seed` draws its projection anew."""
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    if seed is not None:
        torch.manual_seed(seed)
        # So that its output is as long as the vectors that stood for pictures in pretraining (`blends.NORM`). Shorter
        # ones are read through what the first layer does to them.
        torch.nn.init.normal_(model.model.language_projection.weight, std=0.1)
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
) -> None:
    """Assemble the checkpoint and train its projection; finished runs are kept, interrupted ones go on."""
    tower = "-random" if random else ""
    variant = tower or ("" if family == "gpt_neox" else f"-{family}")
    folder, eyes = assembled(work, random, family), f"eyes{tower}"
    rows = training_rows(work, eyes)
    for seed in seeds or SEEDS:
        output = work / f"run{variant}-{seed}"
        if (output / "projection.safetensors").exists():
            print(f"{output} is there already")
            continue
        model, processor = load(folder, seed)
        maps = np.load(work / eyes / "maps.npy", mmap_mode="r")
        cache = FeatureCache(work / f"query-features{tower}", StoredMaps(model, processor, maps))
        cache.fill((row.pictures[0] for row in rows), pictures_per_file=4000)
        # The frozen part in half precision; what learns, learns in float32 all the same.
        model.model.language_model.bfloat16()
        model.lm_head.bfloat16()
        train(model, rows, output, RECIPE.with_(seed=seed), processor=processor, cache=cache.folder)


if __name__ == "__main__":
    typer.run(align)
