"""Everything about a conversion that is settled before the first byte is written.

sources -> parts (configuration + where each tensor is) -> plan (every tensor of the model, form and size)
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..checkpoint import DTYPES
from ..configuration_jminigpt4 import JMiniGPT4Config
from ..inference.stored_weights import StoredNames
from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration
from ..processing_jminigpt4 import JMiniGPT4Processor
from .answer_end import answer_ends, ids_of, stated_ends
from .beside_projection import check_beside_projection
from .checks import one_of
from .formats import PromptFormat, chat_template_for, prompt_format
from .image_encoder import vision_part
from .image_processor import image_processor_for, picture_notes
from .language_model import language_config, language_part
from .own_format import OWN_FORMAT, check_own_format, own_format, own_template
from .parts import Part, Read
from .projection import projection_note, projection_part
from .qformer import qformer_part
from .recognition import recognise_format
from .sources import STOCK_VISION, Source, open_source
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
    check_beside_projection(sources)
    _check_accounts(sources.values())

    name = format_name or recognise_format(sources["language"], sources.get("projection"), tokenizer)
    chosen = _prompt_format(name, sources["language"], tokenizer)
    notes = vision.notes + qformer.notes + language.notes
    notes += _norm_notes(sources, qformer)
    note = projection_note(sources.get("projection"), sources["language"], language.tensors)
    processor = _processor(config, chosen, tokenizer, sources["vision"])
    notes += check_own_format(processor, name) if own_template(chosen) else []
    if sources["vision"].layout is STOCK_VISION:
        _check_encoder(model, processor.image_processor.size)
        notes += picture_notes(sources["vision"])
    return ConversionPlan(
        config=config,
        processor=processor,
        prompt_format=chosen,
        generation_config=_generation_config(config, chosen, tokenizer, sources["language"]),
        entries=entries,
        sources=sources,
        language_code=language_code,
        notes=notes + ([note] if note else []),
    )


def _prompt_format(name: str, language: Source, tokenizer: Any) -> PromptFormat:
    """A format by its name, the language model's own, or one of a file."""
    if name == OWN_FORMAT:
        return own_format(language.need_folder(), tokenizer)
    if name.endswith((".jinja", ".yaml")):
        if not Path(name).is_file():
            raise FileNotFoundError(f"There is no file {name} with a prompt format.")
        is_template = name.endswith(".jinja")
        return (
            own_format(language.need_folder(), tokenizer, Path(name)) if is_template else PromptFormat.read(Path(name))
        )
    return prompt_format(name)


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
    query_tokens = qformer.tensors["model.query_tokens"]()
    if query_tokens.ndim != 3:
        raise ValueError(f"The query tokens are {tuple(query_tokens.shape)}; (1, number, width) was expected.")
    return JMiniGPT4Config(
        vision_config=vision.config,
        qformer_config=qformer.config,
        text_config=language.config,
        num_query_tokens=query_tokens.shape[1],
        image_token_id=image_token_id,
        lm_head_bias="lm_head.bias" in language.tensors,
        dtype=str(dtype).removeprefix("torch."),
        architectures=[JMiniGPT4ForConditionalGeneration.__name__],
        **qformer.places,
    )


def _empty_model(config: JMiniGPT4Config) -> JMiniGPT4ForConditionalGeneration:
    """The model without memory: it knows the names and shapes of all its tensors."""
    with torch.device("meta"):
        model = JMiniGPT4ForConditionalGeneration(config)
    timm_model = getattr(model.model.vision_model, "timm_model", None)
    width = getattr(timm_model, "num_features", None)
    expected = config.qformer_config.encoder_hidden_size
    if width is not None and config.vision_early_layers:
        width += sum(timm_model.feature_info[layer]["num_chs"] for layer in config.vision_early_layers)
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
    filled, shapes, surplus = _placed(StoredNames(model), targets, tensors)
    missing = [name for name in targets if name not in filled]
    if missing or surplus:
        given = ", ".join(f"{part}: {source.name}" for part, source in sources.items())
        what = f"{len(missing)} tensors of the model are in no source, {missing[0]} first" if missing else ""
        what += "; " if missing and surplus else ""
        what += f"{len(surplus)} have no place in the model, {surplus[0]} first" if surplus else ""
        raise ValueError(f"The sources do not make a model ({given}): {what}. Is one of them incomplete?")
    kept_wide = kept_in_float32(model, dtype)
    entries = []
    for name, target in targets.items():
        wide = not kept_wide.isdisjoint(name.split("."))
        form = target.dtype if not target.is_floating_point() else torch.float32 if wide else dtype
        entries += [Entry(part, tensors[part], shapes[part], form) for part in filled[name]]
    return entries


def _placed(
    stored: StoredNames, targets: dict[str, torch.Tensor], tensors: dict[str, Read]
) -> tuple[dict[str, list[str]], dict[str, tuple[int, ...]], list[str]]:
    """Of each tensor of the model, those on disk that are written in its place (all at the first one where several are
    made of them); the shapes of these; and those that have no place."""
    filled: dict[str, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    surplus: list[str] = []
    for place, names in stored.groups(tensors).items():
        if not targets.keys() >= set(place.names) or not filled.keys().isdisjoint(place.names):
            surplus += names
        elif place.pattern is None:
            filled[place.names[0]] = names[:1]
            shapes[names[0]] = tuple(targets[place.names[0]].shape)
            surplus += names[1:]
        else:
            own = {name: tuple(tensors[name]().shape) for name in names}
            made = stored.shapes(own)
            whole = [name for name in place.names if made.get(name) == tuple(targets[name].shape)]
            filled |= {name: names if name == place.names[0] else [] for name in whole}
            shapes |= own
    return filled, shapes, surplus


def kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """Modules that transformers loads in float32 where a folder is of `dtype`, by their own names."""
    narrow = dtype in (torch.float16, torch.bfloat16)
    kept = set(model._keep_in_fp32_modules_strict or ()) if narrow else set()
    return kept | set(model._keep_in_fp32_modules or ()) if dtype == torch.float16 else kept


def _norm_notes(sources: dict[str, Source], qformer: Part) -> list[str]:
    """A sentence where another layer norm lies behind the image encoder than the Q-Former was trained with."""
    vision, used = sources["vision"], qformer.tensors.get("model.vision_model.post_layernorm.weight")
    names = ("post_layernorm.weight", "vision_model.post_layernorm.weight")
    name = next((name for name in names if name in vision.weights), None)
    if vision is sources["qformer"] or used is None or name is None:
        return []
    own, other = vision.weights.read(name).float(), used().float()
    if own.shape == other.shape and torch.allclose(own, other, rtol=1e-2, atol=1e-2):  # one may be in half precision
        return []
    return [
        f"{vision.public_name} has another layer norm behind its image encoder than {sources['qformer'].public_name}: "
        "the one is written that the Q-Former was trained with."
    ]


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


def _generation_config(
    config: JMiniGPT4Config, chosen: PromptFormat, tokenizer: Any, language: Source
) -> GenerationConfig:
    text_config = config.text_config
    stated = ids_of(text_config.eos_token_id) + stated_ends(language.need_folder())
    eos = answer_ends(stated, tokenizer, chosen.stop_strings, text_config.vocab_size)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else text_config.pad_token_id
    return GenerationConfig(
        bos_token_id=text_config.bos_token_id if text_config.bos_token_id is not None else tokenizer.bos_token_id,
        eos_token_id=eos[0] if len(eos) == 1 else eos or None,
        pad_token_id=eos[0] if pad is None and eos else pad,
        suppress_tokens=[config.image_token_id],
        **chosen.generation,
    )
