"""Schema of a chat completion request, as OpenAI's interface has it: the fields that are obeyed, with their ranges. A
field that is not here is refused, never ignored."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# A million took the tokenizer 12 s, these take it one; no window of a language model served here holds more.
MAX_CHARACTERS = 100_000


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ImageUrl(_Schema):
    """A picture: `url` is a `data:image/...;base64,` address, opened by [`serving`] within its limits."""

    url: str
    detail: Literal["auto"] = "auto"


class RequestPart(_Schema):
    """One part of a message: a text or a picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _holds_its_type(self) -> "RequestPart":
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, self.type) is None or getattr(self, other) is not None:
            raise ValueError(f"a part of type {self.type!r} holds `{self.type}` and no `{other}`")
        return self


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError("expected a text or a list of parts")
    return content


class RequestMessage(_Schema):
    """One message. The user's holds text or pictures, the others' text only."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[RequestPart], BeforeValidator(_as_parts), Field(min_length=1)]

    @model_validator(mode="after")
    def _content_suits_role(self) -> "RequestMessage":
        shows_pictures = any(part.image_url for part in self.content)
        if self.role != "user" and shows_pictures:
            raise ValueError(f"a message of role {self.role!r} holds no pictures: show them in one of the user")
        if self.role == "user" and not shows_pictures and not self.text.strip():
            raise ValueError("the message is empty: ask something, or show a picture")
        return self

    @property
    def text(self) -> str:
        return "".join(part.text or "" for part in self.content)


class StreamOptions(_Schema):
    include_usage: bool = False


class ResponseFormat(_Schema):
    type: Literal["text"]


class ChatRequest(_Schema):
    """Body of `POST /v1/chat/completions`.

    What the model cannot do has a field only where clients send its neutral value: `n` 1, no `logprobs`, penalties of
    0, answers as text.
    """

    model: str | None = None
    messages: Annotated[list[RequestMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0.01, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=100)]],
            BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
            Field(max_length=4),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _messages_are_a_question(self) -> "ChatRequest":
        roles = [message.role for message in self.messages]
        if "system" in roles[1:]:
            number = roles.index("system", 1)
            raise ValueError(f"`messages.{number}.role`: a system message stands first or nowhere")
        if roles[-1] != "user":
            raise ValueError(f"`messages.{len(roles) - 1}.role`: the last message must be of the user")
        characters = sum(len(message.text) for message in self.messages)
        if characters > MAX_CHARACTERS:
            raise ValueError(f"`messages` hold {characters:,} characters; at most {MAX_CHARACTERS:,} are read")
        return self

    @model_validator(mode="after")
    def _options_agree(self) -> "ChatRequest":
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("`max_tokens` and `max_completion_tokens` are the same thing, and two numbers")
        if self.temperature and self.temperature < 0.01:
            raise ValueError("`temperature` must be 0, which is greedy, or from 0.01 to 2")
        if self.stream_options and not self.stream:
            raise ValueError("`stream_options` are for requests with `stream` only")
        return self

    def conversation(self) -> list[dict[str, Any]]:
        """The messages in the format of `apply_chat_template`, pictures as bare places."""
        return [
            {
                "role": message.role,
                "content": [
                    {"type": "image"} if part.image_url else {"type": "text", "text": part.text}
                    for part in message.content
                ],
            }
            for message in self.messages
        ]

    def picture_urls(self) -> Iterator[tuple[str, str]]:
        """Pairs of field and address of every picture, in order."""
        for number, message in enumerate(self.messages):
            for index, part in enumerate(message.content):
                if part.image_url:
                    yield f"messages.{number}.content.{index}.image_url.url", part.image_url.url

    def generation_options(self) -> dict[str, Any]:
        """Arguments of `generate`; what the request leaves open is the checkpoint's to say."""
        options: dict[str, Any] = {"max_new_tokens": self.max_tokens or self.max_completion_tokens}
        if self.temperature == 0:
            options["do_sample"] = False
        elif self.temperature or self.top_p:
            options |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {name: value for name, value in options.items() if value is not None}
