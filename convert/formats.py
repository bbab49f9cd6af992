"""Prompt formats: a chat template and the generation defaults that belong to it, each one file `formats/NAME.yaml`.

A format is data. It is written into the checkpoint and read from there; nothing at run time asks for its name.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerFast

from ..processing_jminigpt4 import IMAGE_TOKEN
from .checks import one_of
from .tokenizer import control_tokens

FOLDER = Path(__file__).parent / "formats"
PROLOGUE = FOLDER / "prologue.jinja"


@dataclass(frozen=True)
class PromptFormat:
    """One way of writing a conversation.

    Attributes:
        name: Name of the format, and of its file in `formats/`.
        template: Jinja text that writes the turns of `messages`, with the macros of `formats/prologue.jinja`.
        image_tags: What stands before and behind the image token.
        language: Code of the language that its own words are in; `None` where it has none.
        newline: How a line break is written where the tokenizer knows none.
        stop_strings: Marks at which an answer ends, next to the end-of-sequence token.
        required_tokens: Control tokens without which the format cannot be written.
        generation: Values for the checkpoint's `GenerationConfig`.
    """

    name: str
    template: str
    image_tags: tuple[str, str]
    language: str | None = None
    newline: str | None = None
    stop_strings: tuple[str, ...] = ()
    required_tokens: tuple[str, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "PromptFormat":
        """The format of a file.

        Raises:
            ValueError: The file is no YAML, lacks `template` or `image_tags`, or has a key that no format has.
        """
        try:
            stated = yaml.safe_load(path.read_text(encoding="utf-8"))
            for key in ("image_tags", "stop_strings", "required_tokens"):
                stated[key] = tuple(stated.get(key, ()))
            return cls(path.stem, **stated)
        except (yaml.YAMLError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no prompt format: {error}") from None

    def chat_template(self, control_starts: list[str]) -> str:
        """The whole Jinja template.

        Args:
            control_starts: First characters of control tokens; user text is guarded behind each of them.
        """
        settings = {"control_starts": control_starts, "newline": self.newline, "image_tags": self.image_tags}
        lines = [f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in settings.items() if value]
        return "\n".join([*lines, PROLOGUE.read_text(encoding="utf-8") + self.template.rstrip("\n")])


PROMPT_FORMATS = {path.stem: PromptFormat.read(path) for path in sorted(FOLDER.glob("*.yaml"))}


def prompt_format(name: str) -> PromptFormat:
    """The format of a name.

    Raises:
        ValueError: There is none of that name; the message lists them.
    """
    return one_of("prompt format", name, PROMPT_FORMATS)


def chat_template_for(chosen: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> str:
    """The format's template for one tokenizer: user text is guarded behind every character with which one of its
    control tokens begins.

    Raises:
        ValueError: The format writes control tokens that the tokenizer does not have.
    """
    missing = [token for token in chosen.required_tokens if token not in tokenizer.get_vocab()]
    if missing:
        raise ValueError(
            f"The tokenizer has no {', '.join(missing)}, which the prompt format {chosen.name!r} writes: choose "
            "another format, or a language model that was trained with this one."
        )
    spelt = control_tokens(tokenizer.added_tokens_decoder.values())
    return chosen.chat_template(sorted({token[0] for token in (*spelt, IMAGE_TOKEN) if len(token) > 1}))
