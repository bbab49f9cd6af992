"""One folder out of the public originals: planned, checked, then written tensor by tensor.

sources -> parts (configuration + where each tensor is) -> plan (every tensor of the model, form and size)
        -> temporary folder -> proof -> rename
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers import GenerationConfig

from .. import __version__
from ..checkpoint import finished_folder, write_manifest
from ..configuration_jminigpt4 import JMiniGPT4Config
from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration
from ..processing_jminigpt4 import JMiniGPT4ImageProcessor, JMiniGPT4Processor
from .card import datasets_of, licence_of, write_card
from .formats import PromptFormat, chat_template_for, prompt_format
from .language import language_config, language_part, projection_note, projection_part
from .language_code import copy_language_code
from .leftovers import claim, remove_leftovers
from .proof import Proof, hidden, prove
from .recognition import recognise_format
from .sources import CONVERSION, OWN, Source, open_source
from .tokenizer import prepare_tokenizer
from .vision import Part, Read, qformer_part, vision_part
from .writing import SHARD_BYTES, Entry, write_sharded

CODE_FILES = tuple(f"{name}_jminigpt4.py" for name in ("configuration", "language", "modeling", "processing"))
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Spec = str | os.PathLike


@dataclass
class Plan:
    """Everything that is settled before the first byte is written."""

    config: JMiniGPT4Config
    processor: JMiniGPT4Processor
    prompt_format: PromptFormat
    generation_config: GenerationConfig
    entries: list[Entry]
    sources: dict[str, Source]
    language_code: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


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
        vision: `eva_vit_g.pth`; a BLIP-2 or InstructBLIP folder of transformers; `timm:NAME`, or a timm_wrapper
            folder (`config.json`, `model.safetensors`, as `TimmWrapperModel.save_pretrained` writes it); a folder of
            ours. timm's `eva_giant_patch14…` is taken as BLIP-2 takes it: 39 blocks, no last norm.
        language: Any folder that `AutoModelForCausalLM` loads.
        out: The folder to be made; it must not exist yet.
        qformer: LAVIS's `blip2_pretrained_….pth`, either layout; a BLIP-2 folder; a folder of ours; or a Q-Former
            folder: `config.json` of a `Blip2QFormerConfig` (`encoder_hidden_size` as the image encoder's width),
            `model.safetensors` (or shards and their index) with the tensors of a `Blip2QFormerModel`, with or without
            `qformer.` before each name, `query_tokens` of shape `(1, num_query_tokens, hidden_size)`, and, if there
            is one, `vision_layernorm.weight` and `vision_layernorm.bias` of shape `(encoder_hidden_size,)`, the norm
            between the image encoder and it (else ones and zeros). By default it comes from `vision`.
        projection: rinna's `checkpoint.pth`, MiniGPT-4's `pretrained_minigpt4*.pth`, our `projection.safetensors` or
            a folder of ours; a fresh layer by default.
        prompt_format: Name of a format (see [`jminigpt4.convert.formats`]); by default recognised from the sources.
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
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists already: choose another name or remove it first.")
    names: dict[str, Spec | None] = {"vision": vision, "qformer": vision if qformer is None else qformer}
    names |= {"language": language, "projection": projection}
    heads = {"vision": vision_heads, "qformer": qformer_heads}
    plan = plan_conversion(names, prompt_format, dtype, heads, trust_language_code)
    return write_plan(plan, out, pictures, prove_equal, shard_bytes, progress)


def swap(folder: Spec, *, language: Spec, out: Spec, prompt_format: str | None = None, **options: Any) -> Proof | None:
    """Another language model behind the same eyes: everything of `folder` but its language model and projection.

    The projection of the new folder is fresh and has to be trained.

    Args:
        folder: A folder of ours.
        language, out, prompt_format, options: As in [`assemble`].

    Raises:
        ValueError: `folder` is none of ours; and what [`assemble`] raises.
    """
    if open_source(folder).layout is not OWN:
        raise ValueError(f"{folder} is not a folder of jminigpt4: make one with `jminigpt4 convert` first.")
    return assemble(vision=folder, language=language, out=out, prompt_format=prompt_format, **options)


def plan_conversion(
    names: dict[str, Spec | None],
    format_name: str | None,
    dtype: str | torch.dtype | None,
    heads: dict[str, int | None],
    trusted_code: str | None = None,
) -> Plan:
    """Opens the sources `vision`, `qformer`, `language` and `projection`, and settles everything; writes nothing."""
    sources = _open_all(names)
    vision = vision_part(sources["vision"], heads["vision"])
    qformer = qformer_part(sources["qformer"], vision.config, heads["qformer"])
    text_config, language_code = language_config(sources["language"], trusted_code)
    dtype = _output_dtype(dtype, sources["language"])
    tokenizer, image_token_id = prepare_tokenizer(sources["language"].need_folder(), text_config.vocab_size)
    vocab_size = max(text_config.vocab_size, image_token_id + 1)
    language = language_part(sources["language"], text_config, vocab_size)

    config = _config(vision, qformer, language, image_token_id, dtype)
    model = _empty_model(config)
    projection = projection_part(
        sources.get("projection"),
        qformer.config.hidden_size,
        model.model.language_projection.out_features,
        sources["language"].public_name,
    )
    tensors = vision.tensors | qformer.tensors | language.tensors | projection
    entries = _entries(model, tensors, dtype, config, sources)
    _check_accounts(sources.values())

    chosen = prompt_format(format_name or recognise_format(sources["language"], sources.get("projection"), tokenizer))
    notes = vision.notes + qformer.notes + language.notes
    note = projection_note(sources.get("projection"), sources["language"])
    return Plan(
        config=config,
        processor=_processor(config, chosen, tokenizer, sources["vision"]),
        prompt_format=chosen,
        generation_config=_generation_config(config, chosen, tokenizer),
        entries=entries,
        sources=sources,
        language_code=language_code,
        notes=notes + ([note] if note else []),
    )


def _open_all(names: dict[str, Spec | None]) -> dict[str, Source]:
    """Every source once, even where two parts come from it: its account of used tensors is one."""
    opened: dict[str, Source] = {}
    sources = {}
    for part, name in names.items():
        if name is not None:
            key = os.fspath(name)
            opened.setdefault(key, open_source(key))
            sources[part] = opened[key]
    return sources


def _output_dtype(dtype: str | torch.dtype | None, language: Source) -> torch.dtype:
    if dtype is None:
        floating = (language.weights.dtype(key) for key in language.weights.names() if key.endswith("weight"))
        return next((each for each in floating if each in DTYPES.values()), torch.float32)
    chosen = DTYPES.get(str(dtype).removeprefix("torch."))
    if chosen is None:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    return chosen


def _config(vision: Part, qformer: Part, language: Part, image_token_id: int, dtype: torch.dtype) -> JMiniGPT4Config:
    read = qformer.tensors["model.query_tokens"]
    return JMiniGPT4Config(
        vision_config=vision.config,
        qformer_config=qformer.config,
        text_config=language.config,
        num_query_tokens=read().shape[1],
        image_token_id=image_token_id,
        lm_head_bias="lm_head.bias" in language.tensors,
        dtype=str(dtype).removeprefix("torch."),
        architectures=[JMiniGPT4ForConditionalGeneration.__name__],
    )


def _empty_model(config: JMiniGPT4Config) -> JMiniGPT4ForConditionalGeneration:
    """The model without memory: it knows the names and shapes of all its tensors."""
    with torch.device("meta"):
        model = JMiniGPT4ForConditionalGeneration(config)
    width = getattr(getattr(model.model.vision_model, "timm_model", None), "num_features", None)
    expected = config.qformer_config.encoder_hidden_size
    if width is not None and width != expected:
        raise ValueError(
            f"The image encoder {config.vision_config.architecture} gives features of {width} channels, but the "
            f"Q-Former reads {expected}: give a Q-Former that was trained on this encoder."
        )
    return model


def _entries(
    model: JMiniGPT4ForConditionalGeneration,
    tensors: dict[str, Read],
    dtype: torch.dtype,
    config: JMiniGPT4Config,
    sources: dict[str, Source],
) -> list[Entry]:
    targets = model.state_dict()
    if config.tie_word_embeddings:
        targets.pop("lm_head.weight")
    missing = [name for name in targets if name not in tensors]
    surplus = [name for name in tensors if name not in targets]
    if missing or surplus:
        given = ", ".join(f"{part}: {source.name}" for part, source in sources.items())
        what = f"{len(missing)} tensors of the model are in no source, {missing[0]} first" if missing else ""
        what += "; " if missing and surplus else ""
        what += f"{len(surplus)} have no place in the model, {surplus[0]} first" if surplus else ""
        raise ValueError(f"The sources do not make a model ({given}): {what}. Is one of them incomplete?")
    kept_wide = set(model._keep_in_fp32_modules or ())
    entries = []
    for name, target in targets.items():
        wide = not kept_wide.isdisjoint(name.split("."))
        form = target.dtype if not target.is_floating_point() else torch.float32 if wide else dtype
        entries.append(Entry(name, tensors[name], tuple(target.shape), form))
    return entries


def _check_accounts(sources: Iterable[Source]):
    for source in sources:
        left = source.unaccounted()
        if left:
            raise ValueError(
                f"{source.name} holds {len(left)} tensors that are neither used nor known to be of no use: "
                f"{', '.join(left[:3])}{', …' if len(left) > 3 else ''}. It is not the checkpoint it was taken for "
                f"({source.layout.name}), or a variant that needs support of its own."
            )


def _processor(config: JMiniGPT4Config, chosen: PromptFormat, tokenizer: Any, vision: Source) -> JMiniGPT4Processor:
    return JMiniGPT4Processor(
        _image_processor(config, vision),
        tokenizer,
        num_query_tokens=config.num_query_tokens,
        chat_template=chat_template_for(chosen, tokenizer),
        newline=chosen.newline,
        stop_strings=list(chosen.stop_strings),
    )


def _image_processor(config: JMiniGPT4Config, vision: Source) -> JMiniGPT4ImageProcessor:
    """What the image encoder was trained with: CLIP's mean and standard deviation at its size, or what timm says."""
    if config.vision_config.model_type == "blip_2_vision_model":
        size = config.vision_config.image_size
        return JMiniGPT4ImageProcessor(size={"height": size, "width": size})
    own = vision.folder / "processor_config.json" if vision.folder else None
    if own is not None and own.is_file():
        return JMiniGPT4ImageProcessor.from_dict(json.loads(own.read_text(encoding="utf-8"))["image_processor"])
    import timm

    stated = timm.get_pretrained_cfg(config.vision_config.architecture)
    trained = (stated.to_dict() if stated else {}) | (vision.config.get("pretrained_cfg") or {})
    size = (config.vision_config.model_args or {}).get("img_size") or trained.get("input_size", (3, 224, 224))[-2:]
    height, width = (size, size) if isinstance(size, int) else size
    resample = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
    return JMiniGPT4ImageProcessor(
        size={"height": height, "width": width},
        image_mean=list(trained.get("mean", (0.5, 0.5, 0.5))),
        image_std=list(trained.get("std", (0.5, 0.5, 0.5))),
        resample=resample.get(trained.get("interpolation", "bicubic"), Image.Resampling.BICUBIC),
    )


def _generation_config(config: JMiniGPT4Config, chosen: PromptFormat, tokenizer: Any) -> GenerationConfig:
    text_config = config.text_config
    eos = text_config.eos_token_id if text_config.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else text_config.pad_token_id
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    return GenerationConfig(
        bos_token_id=text_config.bos_token_id if text_config.bos_token_id is not None else tokenizer.bos_token_id,
        eos_token_id=eos,
        pad_token_id=pad,
        suppress_tokens=[config.image_token_id],
        **chosen.generation,
    )


def write_plan(
    plan: Plan,
    out: Path,
    pictures: Iterable[Image.Image] = (),
    prove_equal: bool = True,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
) -> Proof | None:
    """Writes a planned checkpoint, proves it and gives it its name; see [`assemble`]."""
    remove_leftovers(out)
    _check_room(out, plan.nbytes)
    proof = None
    with finished_folder(out) as folder, claim(folder):
        with tqdm(total=plan.nbytes, unit="B", unit_scale=True, disable=hidden(progress), desc="weights") as bar:
            write_sharded(folder, plan.entries, shard_bytes, bar.update)
        _write_small_files(folder, plan)
        if prove_equal:
            proof = prove(folder, plan, list(pictures), progress)
            if not proof.passed:
                raise ValueError(f"The folder does not compute what its sources compute:\n{proof.table()}")
        _write_account(folder, plan, proof)
        write_card(folder)
        write_manifest(folder)
    return proof


def _check_room(out: Path, nbytes: int):
    existing = next(folder for folder in [out.absolute().parent, *out.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(existing).free
    needed = nbytes + 64 * 2**20
    if free < needed:
        raise OSError(f"{existing} has {free / 1e9:.1f} GB free; the folder takes {needed / 1e9:.1f} GB.")


def _write_small_files(folder: Path, plan: Plan):
    plan.config.save_pretrained(folder)
    plan.generation_config.save_pretrained(folder)
    plan.processor.save_pretrained(folder)
    for name in CODE_FILES:
        shutil.copyfile(Path(__file__).parent.parent / name, folder / name)
    if plan.language_code:
        copy_language_code(folder, plan.config.text_config.model_type, plan.language_code)


def _write_account(folder: Path, plan: Plan, proof: Proof | None):
    """`conversion.json`: where every part came from, what was left out and why, and the proof."""
    account: dict[str, Any] = {
        "jminigpt4": __version__,
        "prompt_format": plan.prompt_format.name,
        "sources": {part: _origin(part, source) for part, source in plan.sources.items()},
        "datasets": datasets_of(plan.sources["projection"].readme) if "projection" in plan.sources else [],
        "notes": plan.notes,
        "proof": proof.rows() if proof else None,
    }
    if plan.language_code:
        account["language_code"] = plan.language_code
    text = json.dumps(account, indent=2, ensure_ascii=False) + "\n"
    (folder / CONVERSION).write_text(text, encoding="utf-8")


def _origin(part: str, source: Source) -> dict[str, Any]:
    """Where a part came from; for a part of a folder of ours, what that folder's account says of it."""
    if source.layout is OWN and source.folder is not None and (source.folder / CONVERSION).is_file():
        account = json.loads((source.folder / CONVERSION).read_text(encoding="utf-8"))
        if part in account["sources"]:
            return {**account["sources"][part], "through": source.public_name}
    return {
        "name": source.public_name,
        "repo": source.repo,
        "commit": source.commit,
        "layout": source.layout.name,
        "license": licence_of(source.readme),
        "left_out": source.ignored(),
    }
