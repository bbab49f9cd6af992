"""What was asked for on the command line, and the session that follows from it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import DEMO
from ..checkpoint import user_path
from ..inference.loading import load_checkpoint
from .pictures import PictureLimits, open_file, open_url
from .session import ChatSession
from .transcript import load_transcript, read_transcript
from .turns import Turn
from .typed_files import local_name


@dataclass
class Settings:
    """Options of the verb `chat`.

    Args:
        model: A checkpoint folder, or `user/name` on the Hub; `None` for the embedded demo.
        question: The only question, or `None` for a conversation.
        images: Paths, or addresses where they are allowed, of the pictures to begin with.
        as_json: One JSON object for each answer instead of text.
        persona: System text.
        examples: Transcript whose turns are few-shot examples.
        transcript: Transcript to go on with; its system text is the persona where none is given.
        options: Arguments of `generate`.
        seed: Seed of sampling.
        allow_addresses: Whether pictures may be named by http and https addresses.
        device, dtype, quantize, gguf: As in `load_checkpoint`.
    """

    model: str | None = None
    question: str | None = None
    images: list[str] = field(default_factory=list)
    as_json: bool = False
    persona: str | None = None
    examples: Path | None = None
    transcript: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    allow_addresses: bool = False
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    gguf: Path | None = None

    def open_session(self, on_forget: Callable[[list[Turn]], None] | None = None) -> ChatSession:
        """Loads the checkpoint and begins the conversation.

        Raises:
            ValueError, OSError: As `load_checkpoint` and `load_transcript`; or question or persona are no text.
        """
        for name in ("question", "persona"):
            check_text(getattr(self, name) or "", f"The {name}")
        model, processor = load_checkpoint(self.model or DEMO, self.device, self.dtype, self.quantize, self.gguf)
        if self.seed is not None:
            torch.manual_seed(self.seed)
        examples = read_transcript(self.examples) if self.examples else []
        session = ChatSession(model, processor, self.persona, examples, on_forget)
        if self.transcript:
            load_transcript(session, self.transcript)
            if self.persona is not None:  # which was asked for, whoever the model was before
                session.persona = self.persona
        return session

    def open_picture(self, name: str, max_pixels: int) -> Image.Image:
        """A picture of the user's own machine, by path or `file:` address, or, where addresses are allowed, of any
        other.

        Raises:
            ValueError, OSError: As `open_file` and `open_url`, or addresses are not allowed.
        """
        path = local_name(name)
        if "://" not in path:
            return open_file(user_path(path), PictureLimits(max_bytes=200_000_000, max_pixels=max_pixels))
        if not self.allow_addresses:
            raise ValueError(f"{name} is an address: pictures are fetched with --allow-addresses only.")
        return open_url(name, PictureLimits())


def served_name(model: str | None) -> str:
    """What others call a model: the folder's name, not its path, or the name on the Hub."""
    folder = user_path(model or DEMO)
    return folder.resolve().name if folder.is_dir() else str(model)


def check_text(text: str, what: str):
    """Refuses what came in as bytes of another encoding, such as Shift_JIS: no tokenizer takes lone surrogates.

    Args:
        text: From the command line or from standard input.
        what: What it is, for the error.

    Raises:
        ValueError: It is not text in UTF-8.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{what} is not UTF-8 but {ascii(text[:40])}: convert it, for instance with iconv.")
