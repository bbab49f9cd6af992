"""Chat completions: from the bytes of a request to a prompt, and from a prompt to an answer, piece by piece. All of it
takes time and is meant for threads beside the one that serves."""

import base64
import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from pydantic import ValidationError
from transformers.generation.streamers import BaseStreamer

from ..inference.answer_text import AnswerText
from ..inference.answering import AnswerGenerator
from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration
from ..processing_jminigpt4 import JMiniGPT4Processor
from ..schema import explain
from .pictures import PictureLimits, open_bytes
from .requests import MAX_CHARACTERS, ChatRequest

# pydantic notes every fault of a request: they must not be millions.
MAX_VALUES = MAX_CHARACTERS + 10_000


@dataclass(frozen=True)
class PreparedRequest:
    """A request that can be answered.

    Args:
        request: As it came.
        input_ids: The prompt, image tokens included.
        pixel_values: `(n_pictures, 3, height, width)`, or `None` without pictures.
    """

    request: ChatRequest
    input_ids: list[int]
    pixel_values: torch.Tensor | None


@dataclass(frozen=True)
class Ending:
    """How an answer ended.

    Args:
        finish_reason: `stop` where the model or a stop string ended it, `length` where it was cut off.
        prompt_tokens, completion_tokens: Tokens read, and tokens generated.
    """

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class ChatCompletions:
    """A checkpoint that answers requests; [`answer`] is for one thread at a time.

    Args:
        model, processor: The checkpoint.
        limits: What pictures are refused.
    """

    def __init__(
        self,
        model: JMiniGPT4ForConditionalGeneration,
        processor: JMiniGPT4Processor,
        limits: PictureLimits | None = None,
    ):
        self._processor = processor
        self._generator = AnswerGenerator(model, processor)
        self._limits = limits or PictureLimits()

    def prepare(self, body: bytes | bytearray) -> PreparedRequest:
        """Checks a request, then tokenises its messages and decodes its pictures.

        Raises:
            ValueError: Something of it is refused; the message names the field, or says that it is no JSON.
        """
        request = parse_request(body)
        sources = list(request.picture_urls())
        if len(sources) > self._limits.max_pictures:
            raise ValueError(
                f"The request: `messages` show {len(sources)} pictures; at most {self._limits.max_pictures} are taken."
            )
        input_ids = self._tokenize(request, len(sources))
        pictures = [self._picture(field, url) for field, url in sources]
        return PreparedRequest(request, input_ids, self._generator.pixel_values(pictures) if pictures else None)

    def answer(self, prepared: PreparedRequest, on_piece: Callable[[str], Any], stop: threading.Event) -> Ending:
        """Generates the answer.

        Args:
            prepared: Of [`prepare`].
            on_piece: Called with every piece of the answer as soon as it is certain.
            stop: Once it is set, no further token is generated.
        """
        request, generator, length = prepared.request, self._generator, len(prepared.input_ids)
        options = request.generation_options()
        options["max_new_tokens"] = generator.max_new_tokens(length, options)
        text = StreamedText(self._processor, request.stop or [], generator.eos_ids(options), on_piece, stop)
        # Beams are not over before the last token: such an answer is one piece.
        streamer = None if generator.searches_with_beams(options) else text
        features = [] if prepared.pixel_values is None else generator.query_features(prepared.pixel_values)
        with _seeded(request.seed, generator.model.device):
            generated = generator.new_tokens(
                [prepared.input_ids], list(features), options, streamer=streamer, stop=stop
            )[0]
        if streamer is None:
            text.read(generated)
        text.finish()
        finished = text.stopped or generator.read(generated, options).finished
        return Ending("stop" if finished else "length", length, len(generated))

    def _tokenize(self, request: ChatRequest, pictures: int) -> list[int]:
        try:
            text = self._processor.render_segment(request.conversation(), add_generation_prompt=True)
        except TemplateError as error:  # a template of the checkpoint's own may want turns in another order
            raise ValueError(f"The request: the chat template refuses `messages`: {error}.") from None
        input_ids = self._processor.tokenize_segment(text)
        if len(input_ids) >= self._generator.window:
            raise ValueError(
                f"The request: `messages` take {len(input_ids):,} tokens with {pictures} pictures; the context "
                f"window of this model has {self._generator.window:,}: ask shorter, or show fewer pictures."
            )
        return input_ids

    def _picture(self, field: str, url: str) -> Image.Image:
        name = f"The request: `{field}`"
        return self._processor.image_processor.to_rgb(open_data_url(url, name, self._limits), name)


class StreamedText(BaseStreamer):
    """Streamer of one row that hands on the text of its new tokens up to the first of the client's stop strings.

    Args:
        processor: See [`AnswerText`].
        stop_strings: Looked for in the text as a client sees it, line breaks and all.
        eos_ids: Tokens that end an answer and are no part of it.
        on_piece: Called with every piece that is certain.
        stop: Set when a stop string was found.
    """

    def __init__(
        self,
        processor: JMiniGPT4Processor,
        stop_strings: Sequence[str],
        eos_ids: set[int],
        on_piece: Callable[[str], Any],
        stop: threading.Event,
    ):
        self._text = AnswerText(processor)
        self._stop_strings = stop_strings
        self._eos_ids = eos_ids
        self._on_piece = on_piece
        self._stop = stop
        self._prompt_seen = False
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def put(self, value: torch.LongTensor):
        # `generate` puts the prompt first.
        if self._prompt_seen:
            self.read(value.flatten().tolist())
        self._prompt_seen = True

    def read(self, token_ids: Sequence[int]):
        for token_id in token_ids:
            if token_id in self._eos_ids:
                return
            self._push(self._text.push(token_id))

    def end(self):
        """Called by `generate`; [`finish`] is called in any case."""

    def finish(self):
        """Hands on what was held back."""
        self._push(self._text.finish())
        self._hand_on(self._held)

    def _push(self, piece: str):
        if self.stopped:
            return
        text = self._held + piece
        end = min((text.find(each) for each in self._stop_strings if each in text), default=None)
        if end is not None:
            self.stopped, self._held = True, ""
            self._stop.set()
            self._hand_on(text[:end])
            return
        begun = (each[:length] for each in self._stop_strings for length in range(1, len(each)))
        held = max((len(start) for start in begun if text.endswith(start)), default=0)
        self._held = text[len(text) - held :]
        self._hand_on(text[: len(text) - held])

    def _hand_on(self, piece: str):
        if piece:
            self._on_piece(piece)


def parse_request(body: bytes | bytearray) -> ChatRequest:
    """The bytes of a request, checked.

    Raises:
        ValueError: They are no JSON, or the schema does not know or not allow what is in it.
    """
    # Every value but a container's first stands behind one of these; no address of a picture has more than one.
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"The request has more than {MAX_VALUES:,} values, commas in texts included.")
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() == 1 and error.errors()[0]["type"] == "json_invalid":
            raise ValueError("The request is not valid JSON.") from None
        raise explain(error, "The request") from None


def open_data_url(url: str, name: str, limits: PictureLimits) -> Image.Image:
    """The picture of a `data:image/...;base64,` address, not decoded yet; see `open_bytes`.

    Raises:
        ValueError: It is another kind of address or a path, is no base64, or breaks the limits. It is not repeated.
    """
    header, _, data = url.partition(",")
    if not (header.lower().startswith("data:image/") and header.lower().endswith(";base64")):
        raise ValueError(f"{name} is no data:image/...;base64 address: nothing else is opened here.")
    if len(data) > limits.max_bytes * 4 // 3 + 4:
        raise ValueError(f"{name} has more than {limits.max_bytes:,} bytes.")
    try:
        picture = base64.b64decode(data, validate=True)
    except ValueError:  # also of characters beyond ASCII
        raise ValueError(f"{name} is not valid base64.") from None
    return open_bytes(picture, name, limits)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Generator[None]:
    """Sampling by a seed that later requests know nothing of."""
    if seed is None:
        yield
        return
    devices = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        yield
