"""The language model's own chat template as a prompt format: it stays as it is, to the character, and is given
messages whose parts have become one text, the picture's place where the user put it."""

import json
from pathlib import Path
from typing import Any

from .formats import PromptFormat

OWN_FORMAT = "own"
IMAGE_TAGS = ("<Img>", "</Img>")
# What follows this line in a checkpoint's template is the language model's own.
OWN_MARK = "{#- The language model's own template. -#}"
JOINED = """{%- set joined = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set joined.messages = joined.messages + [dict(message, content=parts(message))] -%}
{%- endfor -%}
{%- set messages = joined.messages -%}
"""
ANSWER = "X7X"


def own_format(folder: Path, tokenizer: Any, file: Path | None = None) -> PromptFormat:
    """The format of a language model's folder, or of a file with a chat template for it.

    Raises:
        ValueError: There is no chat template.
    """
    text = _stated(folder) if file is None else file.read_text(encoding="utf-8")
    if not text:
        raise ValueError(f"{folder} has no chat template of its own: choose one of the package's formats.")
    text = text.partition(OWN_MARK)[2].removeprefix("\n") or text
    # As literals they are recognised as tokens that this template writes, and are not taken for what a user typed.
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token") if getattr(tokenizer, name)}
    tokens = "".join(f"{{%- set {name} = {json.dumps(token)} -%}}\n" for name, token in names.items())
    end = _end_of_turn(text, tokenizer)
    return PromptFormat(
        OWN_FORMAT,
        f"{JOINED}{tokens}{OWN_MARK}\n{text}",
        IMAGE_TAGS,
        # With the line break behind it too, so that an answer that ends with both is seen to end.
        stop_strings=tuple(dict.fromkeys((end, end.strip()))) if end.strip() else (),
    )


def own_template(chosen: PromptFormat) -> str | None:
    """The template inside such a format; `None` for any other format."""
    return chosen.template.partition(OWN_MARK)[2].removeprefix("\n") or None


def check_own_format(processor: Any, name: str) -> list[str]:
    """Whether conversations can be held and trained on in this format; notes, one sentence each.

    Raises:
        ValueError: The template rewrites earlier turns, loses the picture, or cannot be rendered at all.
    """
    question = [{"type": "image"}, {"type": "text", "text": "何?"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}]
    messages = [*messages, {"role": "user", "content": "なぜ?"}, messages[1]]
    try:
        labels = processor.encode_segments(messages)["labels"]
        prompt = processor.render_segment(messages[:1], add_generation_prompt=True)
    except Exception as error:  # whatever a template raises
        reason = str(error).splitlines()[0]
        raise ValueError(f"The chat template {name!r} cannot be a prompt format: {reason}") from None
    if prompt.count(processor.image_token) != 1 or not any(label != -100 for label in labels):
        raise ValueError(f"The chat template {name!r} leaves out the user's words or the answer.")
    if "endgeneration" in (processor.chat_template or ""):
        return []
    return [
        f"The chat template {name!r} has no generation block: `jminigpt4 train` needs none, but TRL's "
        "`assistant_only_loss` does."
    ]


def _stated(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.is_file() else None
    if isinstance(stated, list):  # several, by name
        return next((each["template"] for each in stated if each["name"] == "default"), None)
    return stated


def _end_of_turn(text: str, tokenizer: Any) -> str:
    """What the template writes behind an answer."""
    messages = [{"role": "user", "content": "何?"}, {"role": "assistant", "content": ANSWER}]
    rendered = tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False)
    return rendered.rpartition(ANSWER)[2]
