"""Where an answer ends: the ids at which generation stops, one of which is what training ends an answer with."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..processing_jminigpt4 import JMiniGPT4Processor


def ids_of(stated: Any) -> list[int]:
    """`eos_token_id` as configurations state it (nothing, a number, a list), as a list."""
    return [] if stated is None else list(stated) if isinstance(stated, list | tuple) else [stated]


def stated_ends(folder: Path) -> list[int]:
    """EOS ids in the `generation_config.json` of a language model; chat models state their end of turn only there."""
    path = folder / "generation_config.json"
    return ids_of(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")) if path.is_file() else []


def answer_ends(stated: Iterable[int], tokenizer: Any, stop_strings: Iterable[str], vocab_size: int) -> list[int]:
    """The union of what can end an answer: ids that the language model's files state, the tokenizer's EOS, which
    training writes behind an answer, and marks of the prompt format that are one token. Ids outside the embedding
    table are left out: they are defaults of a class, and no model can say them."""
    vocabulary = tokenizer.get_vocab()
    marks = [vocabulary[mark] for mark in stop_strings if mark in vocabulary]
    union = dict.fromkeys([*stated, *ids_of(tokenizer.eos_token_id), *marks])
    return [token for token in union if token < vocab_size]


def end_problem(processor: JMiniGPT4Processor, eos_token_id: Any) -> str | None:
    """A sentence when what training teaches as the end of an answer does not end one in generation.

    Args:
        eos_token_id: That of the checkpoint's generation config.
    """
    messages = [{"role": "user", "content": "犬?"}, {"role": "assistant", "content": "犬"}]
    try:
        learnt = [label for label in processor.encode_segments(messages)["labels"] if label != -100]
    except Exception as error:  # the template rewrites what was before, or is none: whatever a template raises
        return f"The chat template cannot be used: {str(error).splitlines()[0]}"
    answer = processor.render_segment(messages, processor.render_segment(messages[:1], add_generation_prompt=True))
    # A mark of several tokens ends answers as text; what reads ids alone does not stop there.
    if set(learnt) & set(ids_of(eos_token_id)) or any(answer.endswith(stop) for stop in processor.stop_strings):
        return None
    end = processor.tokenizer.convert_ids_to_tokens(learnt[-1])
    return (
        f"Training ends an answer with {end} ({learnt[-1]}), at which generation does not stop: eos_token_id in "
        f"generation_config.json is {eos_token_id}."
    )
