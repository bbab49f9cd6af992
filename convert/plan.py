"""Everything about a conversion that is settled before the first byte is written.

sources -> parts (configuration + where each tensor is) -> plan (every tensor of the model, form and size)
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from ..checkpoint import DTYPES
from ..configuration_jminigpt4 import JMiniGPT4Config
from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration
from ..processing_jminigpt4 import JMiniGPT4Processor
from .checks import one_of
from .formats import PromptFormat, chat_template_for, prompt_format
from .image_encoder import vision_part
from .image_processor import image_processor_for, picture_notes
from .language_model import language_config, language_part
from .parts import Part, Read
from .projection import projection_note, projection_part
from .qformer import qformer_part
from .recognition import recognise_format
from .sources import STOCK_VISION, Source, open_source
from .stock_vision import StoredNames
from .tokenizer import prepare_tokenizer
from .writing import Entry


@dataclass
class ConversionPlan:
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


def plan_conversion(
    names: dict[str, str | os.PathLike | None],
    format_name: str | None,
    dtype: str | torch.dtype | None,
    heads: dict[str, int | None],
    trusted_code: str | None = None,
) -> ConversionPlan:
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
    processor = _processor(config, chosen, tokenizer, sources["vision"])
    if sources["vision"].layout is STOCK_VISION:
        _check_encoder(model, processor.image_processor.size)
        notes += picture_notes(sources["vision"])
    return ConversionPlan(
        config=config,
        processor=processor,
        prompt_format=chosen,
        generation_config=_generation_config(config, chosen, tokenizer),
        entries=entries,
        sources=sources,
        language_code=language_code,
        notes=notes + ([note] if note else []),
    )


def _open_all(names: dict[str, str | os.PathLike | None]) -> dict[str, Source]:
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
    return one_of("dtype", str(dtype).removeprefix("torch."), DTYPES)


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


def _check_encoder(model: JMiniGPT4ForConditionalGeneration, size: dict[str, int]):
    """Pictures of `size` through image encoder and Q-Former without memory: whether this family can be used at all."""
    pixel_values = torch.zeros(1, 3, size["height"], size["width"], device="meta")
    kind = model.config.vision_config.model_type
    try:
        model.eval().float().get_query_features(pixel_values)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0].removesuffix(".")
        raise ValueError(
            f"An image encoder of type {kind!r} cannot stand before a Q-Former: {reason}. Take a ViT, CLIP, SigLIP or "
            "DINOv2, or an encoder of timm."
        ) from None


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
    stored = StoredNames(model)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in targets}
    surplus = []
    for name, read in tensors.items():
        target, merged = stored.place(name)
        if target not in targets or (shapes[target] and not merged):
            surplus.append(name)
        else:
            shapes[target][name] = tuple(read().shape if merged else targets[target].shape)
    sizes = {name: sum(map(math.prod, parts.values())) for name, parts in shapes.items()}
    missing = [name for name, target in targets.items() if not shapes[name] or sizes[name] != target.numel()]
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
        entries += [Entry(part, tensors[part], shape, form) for part, shape in shapes[name].items()]
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
        image_processor_for(config, vision),
        tokenizer,
        num_query_tokens=config.num_query_tokens,
        chat_template=chat_template_for(chosen, tokenizer),
        newline=chosen.newline,
        stop_strings=list(chosen.stop_strings),
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
