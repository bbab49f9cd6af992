"""What a folder and its sources must have in common to the last bit, for the proof: tensors, settings, prompts, ids.

Each check returns a sentence or a name for everything that differs, and how many things were looked at.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..inference.stored_weights import StoredNames
from .answer_end import end_problem, ids_of, stated_ends
from .originals import BLOCK_EPS, NORM_EPS, QFORMER_EPS, prompt
from .own_format import own_template
from .plan import ConversionPlan
from .sources import BLIP2, EVA, JMINIGPT4, LAVIS
from .tokenizer import corpus_with_sentencepiece, corpus_with_source, dummy_space_everywhere, sentencepiece_file

Differences = tuple[list[str], int]

IN_FLOAT32 = {"query_tokens", "qformer", "vision_layernorm", "language_projection"}
# What a conversion writes into the language model's configuration by itself, and what says nothing of its computation.
OWN_SETTINGS = {"vocab_size", "_name_or_path", "dtype", "architectures", "auto_map", "transformers_version"}
QUESTIONS, ANSWER = ("これは何ですか?", "What breed is it?"), "犬 a dog"


def differing_tensors(model: Any, plan: ConversionPlan) -> Differences:
    """Tensors of the loaded model that are not bit for bit the source's, rounded to the dtype that belongs there: the
    folder's, but float32 for Q-Former and projection. What is merged while it is loaded, as experts are, is left to
    the logits."""
    stored, loaded = StoredNames(model), model.state_dict()
    differing, compared = [], 0
    for entry in plan.entries:
        place = stored.place(entry.name)
        if place.pattern is not None:
            continue
        name = place.names[0]
        compared += 1
        theirs = entry.read()
        wide = not IN_FLOAT32.isdisjoint(name.split("."))
        if theirs.is_floating_point():
            theirs = theirs.to(torch.float32 if wide else entry.dtype)
        ours = loaded[name]
        if ours.dtype != theirs.dtype:
            differing.append(f"{name} is loaded as {ours.dtype}, not {theirs.dtype}")
        elif not torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (ours, theirs))):
            differing.append(name)
    return differing, compared


def differing_settings(model: Any, processor: Any, plan: ConversionPlan) -> Differences:
    """Settings that were planned otherwise, those of the language model's own files, and the originals' epsilons."""
    pairs = [
        *_pairs(model.config.to_dict(), plan.config.to_dict(), "config"),
        *_pairs(model.generation_config.to_dict(), plan.generation_config.to_dict(), "generation_config"),
        ("num_query_tokens", processor.num_query_tokens, plan.processor.num_query_tokens),
        ("newline", processor.newline, plan.prompt_format.newline),
        ("stop_strings", processor.stop_strings, list(plan.prompt_format.stop_strings)),
        ("image_token_id", processor.image_token_id, model.config.image_token_id),
        ("tied head", model.lm_head.weight is model.get_input_embeddings().weight, plan.config.tie_word_embeddings),
        *_language_settings(model, plan),
        *_epsilons(model, plan),
    ]
    return [f"{name} is {ours!r}, not {theirs!r}" for name, ours, theirs in pairs if ours != theirs], len(pairs)


def _pairs(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> Iterator[tuple[str, Any, Any]]:
    """Settings of two configurations side by side."""
    ours, theirs = (json.loads(json.dumps(stated, default=str)) for stated in (ours, theirs))
    for key in sorted({*ours, *theirs} - (OWN_SETTINGS - {"vocab_size"})):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _pairs(one, other, f"{name}.{key}")
        else:
            yield f"{name}.{key}", one, other


def _language_settings(model: Any, plan: ConversionPlan) -> Iterator[tuple[str, Any, Any]]:
    source = plan.sources["language"]
    if source.layout is not JMINIGPT4:
        own = AutoConfig.from_pretrained(source.need_folder(), trust_remote_code=False)
        pairs = _pairs(model.config.text_config.to_dict(), own.to_dict(), "text_config of the language model")
        yield from (pair for pair in pairs if pair[0].rpartition(".")[2] not in OWN_SETTINGS)


def _epsilons(model: Any, plan: ConversionPlan) -> Iterator[tuple[str, Any, Any]]:
    """Epsilons of the layer norms as they compute; only a norm of small numbers would show them in what it gives."""
    parts = model.model
    stock = model.config.vision_config.model_type == "blip_2_vision_model"
    norm = parts.vision_model.post_layernorm if stock else parts.vision_layernorm
    yield "epsilon of the layer norm", norm.eps, NORM_EPS
    known = []
    if stock:
        known.append(("image encoder", parts.vision_model.encoder, BLOCK_EPS))
    if plan.sources["qformer"].layout in (LAVIS, BLIP2, EVA):
        known.append(("Q-Former", parts.qformer, QFORMER_EPS))
    for part, module, eps in known:
        for name, each in module.named_modules():
            if isinstance(each, torch.nn.LayerNorm):
                yield f"epsilon of {name} in the {part}", each.eps, eps


def differing_prompts(processor: Any, plan: ConversionPlan) -> Differences:
    """A conversation of two questions as the originals write it, where the format is one of theirs, and its ids where
    the tokenizer is a SentencePiece model; and the whole chat template as the format has it."""
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]},
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        {"role": "user", "content": [{"type": "text", "text": QUESTIONS[1]}]},
    ]
    pairs = [("chat template", processor.chat_template, plan.processor.chat_template)]
    bos = plan.processor.tokenizer.bos_token or ""
    theirs = prompt(plan.prompt_format.name, QUESTIONS, ANSWER, bos)
    if template := own_template(plan.prompt_format):
        words = [
            {"role": role, "content": text} for role, text in (("user", "何?"), ("assistant", "犬"), ("user", "?"))
        ]
        options = {"add_generation_prompt": True, "tokenize": False}
        own = plan.processor.tokenizer.apply_chat_template(words, chat_template=template, **options)
        pairs.append(("conversation without a picture", processor.apply_chat_template(words, **options), own))
    if theirs is not None:
        ours = processor.apply_chat_template(messages, add_generation_prompt=True)
        pairs.append(("prompt", ours, theirs))
        pairs += _prompt_ids(processor, plan, theirs, bos)
    return [name for name, one, other in pairs if one != other], len(pairs)


def _prompt_ids(processor: Any, plan: ConversionPlan, text: str, bos: str) -> list[tuple[str, Any, Any]]:
    """Ids of an original prompt: MiniGPT-4 tokenises what is before and behind a picture each by itself."""
    source = plan.sources["language"]
    model_file = None if source.layout is JMINIGPT4 else sentencepiece_file(source.need_folder())
    if model_file is None or not dummy_space_everywhere(source.need_folder()):
        return []
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_file=str(model_file))
    before, behind = text.removeprefix(bos).split("<ImageHere>")
    theirs = [plan.config.image_token_id] * plan.config.num_query_tokens
    theirs = [*original.encode(before), *theirs, *original.encode(behind)]
    if text.startswith(bos) and bos:
        theirs = [original.piece_to_id(bos), *theirs]
    return [("ids of a prompt", processor.tokenize_segment(text), theirs)]


def differing_ends(model: Any, processor: Any, plan: ConversionPlan) -> Differences:
    """EOS ids that the language model's files state and generation lacks, ids nobody states, and an end of answers
    that training teaches and generation passes over."""
    source = plan.sources["language"]
    generation = set(ids_of(model.generation_config.eos_token_id))
    stated = set(stated_ends(source.need_folder())) | set(_stated_in_config(source.need_folder()))
    stated = {token for token in stated if token < model.config.text_config.vocab_size}
    tokenizer = plan.processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    marks = {vocabulary[mark] for mark in plan.prompt_format.stop_strings if mark in vocabulary}
    allowed = stated | marks | {tokenizer.eos_token_id}
    differing = [f"{token} ends nothing in generation" for token in sorted(stated - generation)]
    differing += [f"{token} ends answers, and no source says so" for token in sorted(generation - allowed)]
    problem = end_problem(processor, model.generation_config.eos_token_id)
    return differing + ([problem] if problem else []), len(stated | generation) + 1


def _stated_in_config(folder: Path) -> list[int]:
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ids_of(stated.get("text_config", stated).get("eos_token_id"))


def differing_tokens(tokenizer: Any, plan: ConversionPlan) -> Differences:
    """Strings of the built-in corpus that the tokenizer splits otherwise than SentencePiece, where the language model
    has such a file, or else than the language model's own."""
    source = plan.sources["language"]
    if source.layout is JMINIGPT4:
        return [], 0
    folder = source.need_folder()
    model_file = sentencepiece_file(folder)
    rows = corpus_with_sentencepiece(tokenizer, model_file) if model_file else corpus_with_source(tokenizer, folder)
    return [repr(text) for text, ours, theirs in rows if ours != theirs], len(rows)
