"""What was asked for on the command line, and the session that follows from it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import DEMO
from ..inference.loading import be_quiet, load_checkpoint
from .pictures import PictureLimits, open_file, open_url
from .session import ChatSession
from .transcript import load_transcript, read_transcript
from .turns import Turn


@dataclass
class Settings:
    """Options of the verb `chat`.

    Args:
        model: A checkpoint folder, or `user/name` on the Hub; `None` for the embedded demo.
        question: The only question, or `None` for a conversation.
        images: Paths, or addresses on one of `hosts`, of the pictures to begin with.
        as_json: One JSON object for each answer instead of text.
        persona: System text.
        examples: Transcript whose turns are few-shot examples.
        transcript: Transcript to go on with.
        options: Arguments of `generate`.
        seed: Seed of sampling.
        hosts: Hosts from which pictures may be fetched.
        device, dtype, bits: As in `load_checkpoint`.
        fast: Whether to compile the decoding, in bfloat16 unless `dtype` says otherwise; see `fast.py`.
        int8, gguf: As in `load_checkpoint`.
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
    hosts: frozenset[str] = frozenset()
    device: str | None = None
    dtype: str | None = None
    fast: bool = False
    bits: int | None = None
    int8: bool = False
    gguf: Path | None = None

    def open_session(self, on_forget: Callable[[list[Turn]], None] | None = None) -> ChatSession:
        """Loads the checkpoint, quietly, and begins the conversation.

        Raises:
            ValueError, OSError: As `load_checkpoint` and `load_transcript`.
        """
        be_quiet()
        ways = {"--fast": self.fast, "--bits": self.bits, "--int8": self.int8, "--gguf": self.gguf}
        if len(given := [name for name, value in ways.items() if value]) > 1:
            raise ValueError(f"Give one of {' and '.join(given)}, not both: each is a way of its own to decode.")
        dtype = self.dtype or ("bfloat16" if self.fast else None)
        model, processor = load_checkpoint(self.model or DEMO, self.device, dtype, self.bits, self.int8, self.gguf)
        if self.seed is not None:
            torch.manual_seed(self.seed)
        examples = read_transcript(self.examples) if self.examples else []
        session = ChatSession(model, processor, self.persona, examples, on_forget)
        if self.transcript:
            load_transcript(session, self.transcript)
        return session

    def open_picture(self, name: str, max_pixels: int) -> Image.Image:
        """A picture of the user's own machine, or of one of the allowed hosts; see `open_file` and `open_url`."""
        if "://" in name:
            return open_url(name, PictureLimits(hosts=self.hosts))
        return open_file(Path(name).expanduser(), PictureLimits(max_bytes=200_000_000, max_pixels=max_pixels))
