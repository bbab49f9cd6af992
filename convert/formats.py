"""Prompt formats: a chat template and the generation defaults that belong to it.

A format is data. It is written into the checkpoint and read from there; nothing at run time asks for its name.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from ..processing_jminigpt4 import IMAGE_TOKEN

TEMPLATES = Path(__file__).parent / "formats"
CONTROL_STARTS = '{%- set control_starts = ["<", "["] -%}'


@dataclass(frozen=True)
class PromptFormat:
    """One way of writing a conversation.

    Attributes:
        name: Name of the format, and of its template in `formats/`.
        newline: How a line break is written where the tokenizer knows none.
        stop_strings: Marks at which an answer ends, next to the end-of-sequence token.
        generation: Values for the checkpoint's `GenerationConfig`.
    """

    name: str
    newline: str | None = None
    stop_strings: tuple[str, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def chat_template(self) -> str:
        """The Jinja template, for tokenizers whose control tokens begin with `<` or `[`."""
        return (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8").rstrip("\n")


FORMATS = {
    each.name: each
    for each in (
        # Settings of the model card of rinna/japanese-gpt-neox-3.6b-instruction-sft-v2.
        PromptFormat(
            "article-3.6b",
            newline="<NL>",
            stop_strings=("<NL>ユーザー:",),
            generation={"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1, "max_new_tokens": 128},
        ),
        # customized_mini_gpt4.py and model card of rinna/bilingual-gpt-neox-4b-minigpt4.
        PromptFormat(
            "rinna-4b",
            stop_strings=("\nユーザー:",),
            generation={"do_sample": True, "temperature": 1.0, "top_p": 0.85, "max_new_tokens": 512},
        ),
        # MiniGPT-4 at 22d8888: conversation.py, Chat.answer.
        PromptFormat(
            "minigpt4",
            stop_strings=("###",),
            generation={"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 300},
        ),
        PromptFormat("chatml", stop_strings=("<|im_end|>",), generation={"max_new_tokens": 256}),
        PromptFormat("plain", stop_strings=("\nユーザー:",), generation={"max_new_tokens": 128}),
    )
}


def prompt_format(name: str) -> PromptFormat:
    """The format of a name.

    Raises:
        ValueError: There is none of that name; the message lists them.
    """
    if name not in FORMATS:
        raise ValueError(f"There is no prompt format {name!r}: choose one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def chat_template_for(chosen: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> str:
    """The format's template for one tokenizer: user text is guarded behind every character with which one of its
    control tokens begins.

    Raises:
        ValueError: The format writes control tokens that the tokenizer does not have.
    """
    template = chosen.chat_template
    if chosen.name == "chatml" and "<|im_start|>" not in tokenizer.get_vocab():
        raise ValueError("The tokenizer has no <|im_start|>, with which every turn of the format 'chatml' begins.")
    spelt = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    starts = sorted({token[0] for token in (*spelt, IMAGE_TOKEN) if len(token) > 1})
    return template.replace(CONTROL_STARTS, "{%- set control_starts = " + json.dumps(starts) + " -%}")
