"""One folder out of the public originals: planned, checked, then written tensor by tensor.

plan -> temporary folder -> proof -> rename
"""

import glob
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..checkpoint import CODE_FILES, finished_folder, remove_unfinished, write_manifest
from .account import Account, trained_projection
from .card import write_card
from .checks import new_path
from .language_code import copy_language_code
from .licences import copy_licence_texts, stated_licence, stated_list
from .plan import ConversionPlan, plan_conversion
from .progress import progress_bar
from .proof import Proof, prove
from .sources import JMINIGPT4, PROJECTION_FILE, Source, open_checkpoint
from .writing import SHARD_BYTES, write_sharded

Spec = str | os.PathLike


def assemble(
    *,
    vision: Spec,
    language: Spec,
    out: Spec,
    qformer: Spec | None = None,
    projection: Spec | None = None,
    prompt_format: str | None = None,
    dtype: str | torch.dtype | None = None,
    trust_language_code: str | None = None,
    vision_heads: int | None = None,
    qformer_heads: int | None = None,
    pictures: Iterable[Image.Image] = (),
    prove_equal: bool = True,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
) -> Proof | None:
    """Makes one checkpoint folder out of an image encoder, a Q-Former, a language model and a projection.

    Every source is a local path, a Hub id `USER/NAME` (`USER/NAME@REVISION`), or a file of a Hub repository
    `USER/NAME/FILE.pth`. Of a sharded Hub repository only the shards in use are fetched.

    Args:
        vision: `eva_vit_g.pth`; a BLIP-2 or InstructBLIP folder of transformers; any vision model or dual model of
            transformers with its `preprocessor_config.json` (ViT, DINOv2, CLIP, SigLIP …); `timm:NAME`, or a
            timm_wrapper folder (`config.json`, `model.safetensors`, as `TimmWrapperModel.save_pretrained` writes
            it); a checkpoint of this package. timm's `eva_giant_patch14…` is taken as BLIP-2 takes it: 39 blocks, no
            last norm.
        language: Any folder that `AutoModelForCausalLM` loads.
        out: The folder to be made; it must not exist yet.
        qformer: LAVIS's `blip2_pretrained_….pth`, either layout; a BLIP-2 folder; a checkpoint of this package; or a
            Q-Former folder: `config.json` of a `Blip2QFormerConfig` (`encoder_hidden_size` as the image encoder's
            width), `model.safetensors` (or shards and their index) with the tensors of a `Blip2QFormerModel`, with or
            without `qformer.` before each name, `query_tokens` of shape `(1, num_query_tokens, hidden_size)`, and, if
            there is one, `vision_layernorm.weight` and `vision_layernorm.bias` of shape `(encoder_hidden_size,)`, the
            norm between the image encoder and it (else ones and zeros). For a convolutional encoder of timm it may
            state `vision_early_layers` in `config.json` and hold `vision_layernorm.position_embeddings` of shape `(1,
            places, encoder_hidden_size)`; see [`JMiniGPT4Config`]. By default it comes from `vision`.
        projection: rinna's `checkpoint.pth`, MiniGPT-4's `pretrained_minigpt4*.pth`, a `projection.safetensors`, a
            BLIP-2 folder or a checkpoint of this package; a fresh layer by default.
        prompt_format: Name of a format (see [`jminigpt4.convert.formats`]), `"own"` for the language model's own chat
            template, or a file `.jinja` or `.yaml`; by default recognised from the sources.
        dtype: Of the weights on disk, `"float16"`, `"bfloat16"` or `"float32"`; by default that of the language
            model. Q-Former and projection stay in float32, as they were trained and as the model runs them.
        trust_language_code: The language model whose repository's own code may be run, spelt as `language` is; code is
            run for no other, and only where transformers does not know the type of model.
        vision_heads, qformer_heads: Attention heads, where a file does not tell and the size is not a published one.
        pictures: What to prove with, next to the built-in pictures.
        prove_equal: Whether to load the finished folder and compare it with the sources, stage by stage.
        shard_bytes: Largest size of one file of weights.
        progress: Whether to show a progress bar, where there is a terminal to show it on.

    Returns:
        [`Proof`]: The table of comparisons; `None` when none was asked for.

    Raises:
        FileExistsError: `out` exists and is not empty.
        FileNotFoundError: A source does not exist.
        ValueError: A source is not what it should be, parts do not fit one another, a tensor is left over, missing
            or not finite, or the proof fails. Nothing is left under `out` then.
        OSError: The disk has not the room.
    """
    out = new_path(out)
    names: dict[str, Spec | None] = {"vision": vision, "qformer": vision if qformer is None else qformer}
    names |= {"language": language, "projection": projection}
    heads = {"vision": vision_heads, "qformer": qformer_heads}
    plan = plan_conversion(names, prompt_format, dtype, heads, trust_language_code)
    return write_plan(plan, out, pictures, prove_equal, shard_bytes, progress)


def swap(folder: Spec, *, language: Spec, out: Spec, prompt_format: str | None = None, **options: Any) -> Proof | None:
    """Another language model for a checkpoint: everything of `folder` but its language model and projection.

    The projection of the new folder is fresh and has to be trained.

    Args:
        folder: A checkpoint of this package.
        language, out, prompt_format, options: As in [`assemble`].

    Raises:
        ValueError: `folder` is no such checkpoint; and what [`assemble`] raises.
    """
    open_checkpoint(folder)
    return assemble(vision=folder, language=language, out=out, prompt_format=prompt_format, **options)


def write_plan(
    plan: ConversionPlan,
    out: Path,
    pictures: Iterable[Image.Image] = (),
    prove_equal: bool = True,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
) -> Proof | None:
    """Writes a planned checkpoint, proves it and gives it its name; see [`assemble`]."""
    remove_unfinished(out.absolute().parent, glob.escape(out.name))
    _check_room(out, plan.nbytes)
    proof = None
    with finished_folder(out) as folder:
        with progress_bar(shown=progress, total=plan.nbytes, unit="B", unit_scale=True, desc="weights") as bar:
            write_sharded(folder, plan.entries, shard_bytes, bar.update)
        _write_small_files(folder, plan)
        if prove_equal:
            proof = prove(folder, plan, list(pictures), progress)
            if not proof.passed:
                raise ValueError(f"The folder does not compute what its sources compute:\n{proof.table()}")
        _account(plan, proof).write(folder)
        write_card(folder)
        write_manifest(folder)
    return proof


def _check_room(out: Path, nbytes: int):
    existing = next(folder for folder in [out.absolute().parent, *out.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(existing).free
    needed = nbytes + 64 * 2**20
    if free < needed:
        raise OSError(f"{existing} has {free / 1e9:.1f} GB free; the folder takes {needed / 1e9:.1f} GB.")


def _write_small_files(folder: Path, plan: ConversionPlan):
    plan.config.save_pretrained(folder)
    plan.generation_config.save_pretrained(folder)
    plan.processor.save_pretrained(folder)
    for name in CODE_FILES:
        shutil.copyfile(Path(__file__).parent.parent / name, folder / name)
    copy_licence_texts({part: source.folder for part, source in plan.sources.items()}, folder)
    if plan.language_code:
        copy_language_code(folder, plan.config.text_config.model_type, plan.language_code)


def _account(plan: ConversionPlan, proof: Proof | None) -> Account:
    projection = plan.sources.get("projection")
    fresh = projection is None
    if projection is not None and projection.layout is JMINIGPT4:
        before = Account.read(projection.need_folder())
        fresh = before.fresh_projection and not before.trained_since(projection.need_folder())
    return Account(
        prompt_format=plan.prompt_format.name,
        sources={part: _origin(part, source) for part, source in plan.sources.items()},
        fresh_projection=fresh,
        datasets=stated_list(projection.readme, "datasets") if projection else [],
        notes=plan.notes,
        proof=proof.rows() if proof else None,
        language_code=plan.language_code,
    )


def _origin(part: str, source: Source) -> dict[str, Any]:
    """Where a part came from; for a part of a checkpoint of this package, what its account says of that part."""
    if source.layout is JMINIGPT4 and source.folder is not None:
        origins = Account.read(source.folder).all_sources(source.folder)
        if part in origins:
            return {**origins[part], "through": source.public_name}
    trained = {}
    if source.layout is PROJECTION_FILE and source.repo is None:
        trained = trained_projection(source.weights.fetch(source.weights.files["weight"]))
    return {
        "name": source.public_name,
        "repo": source.repo,
        "commit": source.commit,
        "layout": source.layout.name,
        **stated_licence(source.readme),
        "languages": stated_list(source.readme, "language"),
        "left_out": source.ignored(),
        **trained,
    }
