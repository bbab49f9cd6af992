"""A server that answers OpenAI's chat completions: vLLM, llama-server, `jminigpt4 serve`, a provider."""

import email.utils
import io
import os
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel, Field, ValidationError

from ..image_processing_jminigpt4 import JMiniGPT4ImageProcessor
from .data_address import data_address, image_address

KEY = "OPENAI_API_KEY"
ATTEMPTS = 8
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between attempts, where the server does not say how long
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses of a server that may take the request later
FOR_NOBODY = {401, 402, 403, 404, 405, 410}  # statuses that every request would meet


@dataclass(frozen=True)
class Completion:
    """What a server answered.

    Args:
        text: The answer.
        finished: Whether the model ended it; `False` where the token limit did.
        prompt_tokens, completion_tokens: As the server counts them; 0 where it does not.
    """

    text: str
    finished: bool
    prompt_tokens: int = 0
    completion_tokens: int = 0


class RefusedRequest(ValueError):
    """The server does not take this one request: too long, filtered, of a kind it does not know."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Response(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class _Later(Exception):
    """The request may succeed later; `wait` seconds where the server says so."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _AtOnce:
    """How many requests are under way: as many as the client sends, and fewer once the server says that it is busy, or
    requests that were put off would lose their places to new ones over and over."""

    def __init__(self):
        self._most, self._under_way = float("inf"), 0
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Generator[None]:
        """A request: it begins when there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way < self._most)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify()

    def too_many(self):
        """The server put off a request that is under way: one fewer than now, from now on."""
        with self._changed:
            self._most = max(1, self._under_way - 1)


class Endpoint:
    """A model behind an OpenAI-compatible server. The key, where one is needed, is read from the environment variable
    `OPENAI_API_KEY` and from nowhere else.

    Args:
        url: Address of the server; one without a path gets `/v1`.
        model: Name under which the server knows the model.
        timeout: Seconds that one answer may take.

    Raises:
        ValueError: The address is none of http or https.
    """

    def __init__(self, url: str, model: str, timeout: float = 600.0):
        self.url = _base(url)
        self.model = model
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=10.0))
        self._length_name = "max_tokens"
        self._at_once = _AtOnce()

    def complete(self, messages: Sequence[dict[str, Any]], max_tokens: int, **options: Any) -> Completion:
        """Asks once, and again as long as the server is only busy or the connection breaks: eight times in all.

        Args:
            messages: The conversation, in OpenAI's format.
            max_tokens: Longest answer.
            options: Further keys of the request, such as `temperature` or `response_format`; `None` leaves one out.

        Raises:
            RefusedRequest: The server does not take this request.
            ValueError: The server takes no request like it: wrong key, unknown model or address.
            ConnectionError: The server did not answer in eight attempts.
        """
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        asked = {"model": self.model, "messages": list(messages), **options}
        asked = {name: value for name, value in asked.items() if value is not None}
        retrying = Retrying(
            retry=retry_if_exception_type(_Later), stop=stop_after_attempt(ATTEMPTS), wait=_wait, reraise=True
        )
        try:
            return retrying(self._ask, asked, max_tokens)
        except _Later as error:
            raise ConnectionError(f"{self.url} did not answer in {ATTEMPTS} attempts: {error}.") from None

    def check(self):
        """Whether a server is there that knows the key, before anything is asked.

        Raises:
            ConnectionError: Nothing answers at the address.
            ValueError: The server refuses the key.
        """
        try:
            response = self._client.get(f"{self.url}/models")
        except httpx.TransportError as error:
            raise ConnectionError(f"No server answers at {self.url}: {_reason(error)}. Is it running?") from None
        if response.status_code in (401, 403):
            raise ValueError(self._refusal(response))

    def _ask(self, asked: dict[str, Any], max_tokens: int) -> Completion:
        body = {**asked, self._length_name: max_tokens}
        with self._at_once.one():
            try:
                response = self._client.post(f"{self.url}/chat/completions", json=body)
            except httpx.TransportError as error:
                raise _Later(_reason(error)) from None
            if response.status_code == 429:
                self._at_once.too_many()
        if response.status_code in PASSING:
            raise _Later(self._refusal(response), _asked_to_wait(response))
        if (
            response.status_code == 400
            and "max_completion_tokens" in response.text
            and self._length_name == "max_tokens"
        ):
            self._length_name = "max_completion_tokens"  # what OpenAI's reasoning models call it
            return self._ask(asked, max_tokens)
        if response.status_code in FOR_NOBODY:
            raise ValueError(self._refusal(response))
        if response.is_error:
            raise RefusedRequest(self._refusal(response))
        return _read(response)

    def _refusal(self, response: httpx.Response) -> str:
        try:
            said = response.json()
            said = said.get("error", said)
            text = said.get("message", said) if isinstance(said, dict) else said
        except (ValueError, AttributeError):
            text = response.text
        hint = f" (the key is read from {KEY})" if response.status_code in (401, 403) else ""
        said = " ".join(str(text).split())[:300] or response.reason_phrase
        return f"{self.url} answers {response.status_code}{hint}: {said}"


def _base(url: str) -> str:
    address = url.rstrip("/").removesuffix("/chat/completions")
    try:
        parsed = httpx.URL(address)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"An endpoint is an address such as http://localhost:8000/v1, got {url!r}.")
    return address if parsed.path.strip("/") else f"{address}/v1"


def _read(response: httpx.Response) -> Completion:
    try:
        answered = _Response.model_validate_json(response.content)
    except ValidationError:  # a body that was cut off, or a proxy's page
        raise _Later(f"its answer is no chat completion: {response.text[:80]!r}") from None
    choice, usage = answered.choices[0], answered.usage or _Usage()
    finished = choice.finish_reason != "length"
    return Completion(choice.message.content or "", finished, usage.prompt_tokens, usage.completion_tokens)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _asked_to_wait(response: httpx.Response) -> float | None:
    """Seconds that `Retry-After` names, by number or by date (RFC 9110, 10.2.3)."""
    said = response.headers.get("retry-after", "")
    if said.isdigit():
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


def _wait(state: Any) -> float:
    from tenacity import wait_random_exponential

    told = state.outcome.exception().wait
    return wait_random_exponential(FIRST_WAIT, LONGEST_WAIT)(state) if told is None else told


def image_part(content: bytes, name: str) -> dict[str, Any]:
    """A picture as a part of a message, a data address. A JPEG that lies as it was taken travels as it is; everything
    else as the PNG of what our models see of it, since servers differ in what they make of transparency, orientation
    and sixteen bits.

    Args:
        content: The picture's file.
        name: What it is called, for the error.

    Raises:
        ValueError: It cannot be decoded.
    """
    image = JMiniGPT4ImageProcessor().to_rgb(content, name)
    address = data_address("jpeg", content) if _is_plain_jpeg(content) else image_address(image, "PNG")
    return {"type": "image_url", "image_url": {"url": address}}


def _is_plain_jpeg(content: bytes) -> bool:
    from PIL import ExifTags, Image

    if not content.startswith(b"\xff\xd8\xff"):
        return False
    with Image.open(io.BytesIO(content)) as image:
        return image.mode == "RGB" and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
