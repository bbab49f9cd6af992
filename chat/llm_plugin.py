"""A checkpoint as a model of `llm` (https://llm.datasette.io): `llm -m jminigpt4 "何が写ってる?" -a cat.png`."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import llm
from llm.parts import AttachmentPart, Message, TextPart
from pydantic import Field

KINDS = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "avif", "x-portable-pixmap", "heic", "heif")


@llm.hookimpl
def register_models(register):
    register(JMiniGPT4ForLLM())


class JMiniGPT4ForLLM(llm.Model):
    """A checkpoint that answers on this machine; the embedded demo unless the option `checkpoint` names another."""

    model_id = "jminigpt4"
    can_stream = True
    attachment_types = frozenset(f"image/{kind}" for kind in KINDS)

    class Options(llm.Options):
        checkpoint: str | None = Field(None, description="A folder, or user/name on the Hub; the demo by default")
        max_new_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens")
        temperature: float | None = Field(None, ge=0, description="Of sampling; 0 always takes the likeliest token")
        top_p: float | None = Field(None, gt=0, le=1, description="Nucleus of sampling")
        seed: int | None = Field(None, description="Seed of sampling")

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Yields the answer to the last of the prompt's messages.

        Raises:
            ValueError, OSError: As `load_checkpoint`, `open_bytes` and `ChatSession.stream`; `llm` prints them.
        """
        import torch

        from .session import ChatSession

        options: Any = prompt.options
        nothing = [Message("user")]  # which the session refuses in its own words
        *earlier, question = map(_read, prompt.messages or nothing)
        session = ChatSession(*_load(options.checkpoint))
        session.restore(earlier)
        if options.seed is not None:
            torch.manual_seed(options.seed)
        text = "".join(part.get("text", "") for part in question["content"])
        images = [part["image"] for part in question["content"] if part["type"] == "image"]
        yield from session.stream(text, images, **_generation_options(options))
        answer_length = len(session.turns[-1].answer_ids or [])
        response.set_usage(input=len(session.token_ids()) - answer_length, output=answer_length)


@lru_cache(maxsize=1)
def _load(checkpoint: str | None) -> Any:
    # `llm` imports every plugin whatever it is asked: torch waits until this model is.
    from .. import DEMO
    from ..inference.loading import be_quiet, load_checkpoint

    be_quiet()
    return load_checkpoint(checkpoint or DEMO)


def _read(message: Message) -> dict[str, Any]:
    """A message of `llm` in the format of `apply_chat_template`."""
    from .pictures import PictureLimits, open_bytes

    content = []
    for part in message.parts:
        if isinstance(part, AttachmentPart) and (attached := part.attachment):
            name = attached.path or attached.url or "the attached picture"
            content.append({"type": "image", "image": open_bytes(attached.content_bytes(), name, PictureLimits())})
        elif isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
    return {"role": message.role, "content": content}


def _generation_options(options: Any) -> dict[str, Any]:
    chosen = options.model_dump(exclude_none=True, exclude={"checkpoint", "seed"})
    if chosen.get("temperature") == 0:
        return {name: value for name, value in chosen.items() if name == "max_new_tokens"} | {"do_sample": False}
    return chosen | {"do_sample": True} if {"temperature", "top_p"} & chosen.keys() else chosen
