"""Conversations as trainers write them, in any of their dialects: roles, parts of a message, places of pictures.

- Chat templates and TRL: `{"role", "content"}`, a picture is `{"type": "image"}` and lies in `images` beside them
  (huggingface/trl, docs/source/dataset_formats.md, "Vision datasets").
- ms-swift: `<image>` in a text, at its place (modelscope/ms-swift, docs/source_en/Customization/Custom-dataset.md). It
  also takes OpenAI's parts and Anthropic's, `{"type": "image", "source": {…}}`.
- LLaMA-Factory: the same, with `{"from", "value"}` too (hiyouga/LLaMA-Factory, data/README.md, data/mllm_demo.json);
  its v1 has `{"type": "image_url", "value": …}` (data/v1_multimodal_demo.jsonl).
- Qwen2-VL and later: `{"type": "image", "image": …}` (QwenLM/Qwen2.5-VL, qwen-vl-utils/README.md). Qwen-VL: lists of
  `{"image": …}` and `{"text": …}`, and `Picture 1: <img>…</img>` in a text (QwenLM/Qwen-VL, README.md).
- OpenAI: `{"type": "image_url", "image_url": {"url": …}}` (its guide "Vision fine-tuning").
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from .fields import PictureFields, Shown
from .pictures import Picture
from .row_context import RowContext
from .rows import IMAGE, PICTURE, Message, Placeholder, Row

ROLE_NAMES = {"human": "user", "user": "user", "ユーザー": "user", "system": "system", "developer": "system"}
ROLE_NAMES |= {"gpt": "assistant", "assistant": "assistant", "bot": "assistant", "システム": "assistant"}
# What LLaMA-Factory, ms-swift, TRL and OpenAI call the two sides of a tool.
TOOL_ROLES = {"function", "function_call", "function_response", "observation", "observations", "tool", "tool_call"}
TOOL_ROLES |= {"tool_response"}
_QWEN = re.compile(r"(?:Picture \d+: ?)?<img>(.+?)</img>\n?")


def _role(name: str) -> str:
    if name.replace("-", "_") in TOOL_ROLES:
        raise ValueError(f"role {name!r} is a tool's, and rows in which tools are called are not read")
    if name not in ROLE_NAMES:
        raise ValueError(f"role {name!r:.40} is none of {', '.join(ROLE_NAMES)}")
    return ROLE_NAMES[name]


Role = Annotated[str, AfterValidator(_role)]


def _address(value: Any) -> Any:
    return value.get("url") if isinstance(value, dict) else value


def _source(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("data"), str):
        return f"data:{value.get('media_type')};base64,{value['data']}"
    return _address(value)


Address = Annotated[Shown | None, BeforeValidator(_address)]


class ContentPart(BaseModel):
    """A part of a message: a text, a picture, or the place of one that stands beside the messages."""

    type: Literal["image", "text", "image_url"] | None = None
    text: str | None = None
    value: str | None = None
    image: Address = None
    image_url: Address = None
    path: Shown | None = None
    url: Shown | None = None
    source: Annotated[Shown | None, BeforeValidator(_source)] = None

    @property
    def shown(self) -> str | Picture | None:
        """The picture that the part itself names."""
        given = (self.image, self.image_url, self.path, self.url, self.source, self.value)
        return next((each for each in given if each is not None), None)

    @property
    def words(self) -> str | None:
        return self.value if self.text is None else self.text

    @property
    def is_picture(self) -> bool:
        return self.type in ("image", "image_url") or (self.type is None and self.image is not None)

    @model_validator(mode="after")
    def _says_what_it_is(self) -> "ContentPart":
        if not self.is_picture and self.words is None:
            raise ValueError("there is no `text` where a text belongs")
        if self.type is None and self.is_picture and self.text is not None:
            raise ValueError("it holds a picture and a text, which are two parts")
        if self.type == "image_url" and self.shown is None:
            raise ValueError("there is no `image_url` where a picture belongs")
        return self


@dataclass(frozen=True)
class Shows:
    """A picture that stands in a message itself."""

    picture: str | Picture


Part = str | Placeholder | Shows


def split_text(text: str) -> list[Part]:
    """A text with `<image>` in it to texts and places for pictures; white space beside a place goes with it."""
    if IMAGE not in text:
        return [text] if text else []
    first, *others = text.split(IMAGE)
    parts: list[Part] = [first.strip()]
    for piece in others:
        parts += [PICTURE, piece.strip()]
    return [part for part in parts if part]


def split_tags(text: str) -> list[Part]:
    """The same, with Qwen-VL's `Picture 1: <img>name</img>` too."""
    pieces = _QWEN.split(text)
    parts = split_text(pieces[0])
    for name, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        parts += [Shows(name.strip()), *split_text(piece)]
    return parts


# What trainers write beside an answer that is not to be learnt, or less: ms-swift, LLaMA-Factory v1, OpenAI.
_WEIGHTS = ("loss", "loss_scale", "loss_weight", "weight")


def _learnt(message: Any) -> Any:
    """A message whose answer may be learnt as others are.

    Raises:
        ValueError: It calls a tool, or has another weight than 1.
    """
    if not isinstance(message, dict):
        return message
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise ValueError(f"`{key}`: rows in which tools are called are not read")
    if ROLE_NAMES.get(str(message.get("role", message.get("from")))) == "assistant":
        for key in _WEIGHTS:
            if message.get(key) not in (None, 1):
                raise ValueError(f"`{key}` is {message[key]!r:.40}, and here every answer of a row is learnt alike")
    return message


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class RowMessage(BaseModel):
    """A message in the format of chat templates: `content` is a text, or a list of parts."""

    role: Role
    content: Annotated[list[ContentPart], BeforeValidator(_as_parts)]

    _check = model_validator(mode="before")(_learnt)

    def parts(self) -> list[Part]:
        """`<image>` in a text of the user is a place for a picture, like a part `{"type": "image"}`."""
        parts: list[Part] = []
        for part in self.content:
            if part.is_picture:
                parts.append(PICTURE if part.shown is None else Shows(part.shown))
            else:
                parts += split_text(part.words or "") if self.role == "user" else [part.words] if part.words else []
        return parts


class Turn(BaseModel):
    """A message of a shared conversation: `from` and `value`."""

    role: Role = Field(alias="from")
    value: str

    _check = model_validator(mode="before")(_learnt)

    def parts(self) -> list[Part]:
        return split_tags(self.value) if self.role == "user" else [self.value] if self.value else []


def said_by(role: str) -> Callable[[Any], Any]:
    """Makes messages of what is a text, of the role, or a message; those of `from` and `value` too."""

    def messages(value: Any) -> Any:
        if isinstance(value, str | int | float):
            return [{"role": role, "content": value.strip() if isinstance(value, str) else json.dumps(value)}]
        listed = [value] if isinstance(value, dict) else value
        return [_renamed(each) for each in listed] if isinstance(listed, list) else listed

    return messages


def _renamed(message: Any) -> Any:
    if not isinstance(message, dict) or "from" not in message:
        return message
    return {**message, "role": message["from"], "content": message.get("value")}


Draft = list[tuple[str, list[Part]]]  # roles, and what stands in their messages


def exchange(question: str, answer: str) -> Draft:
    """A question and its answer."""
    return [("user", split_text(question)), ("assistant", [answer])]


def drafted(messages: Iterable[RowMessage | Turn]) -> Draft:
    """What stands in messages, before its pictures are looked for."""
    return [(message.role, message.parts()) for message in messages]


_NOTHING = (None, "", [], {}, "[]", "{}", "null")


class ChatFields(PictureFields):
    """What may stand beside a conversation: pictures, a system prompt, and what is not read."""

    system: str | None = None
    system_prompt: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _can_be_read(cls, row: Any) -> Any:
        if isinstance(row, dict):
            for key in ("videos", "video", "audios", "audio", "tools", "objects", "rejected_images"):
                if row.get(key) not in _NOTHING:
                    raise ValueError(f"`{key}` is not read: a row is texts and pictures.")
            for key in ("label", "kto_tag"):
                if row.get(key) is False:
                    raise ValueError(f"`{key}` is false: its answer is one that is not wanted.")
        return row

    def beginning(self, draft: Draft) -> Draft:
        """The conversation behind its system prompt, unless it brings one itself."""
        prompt = self.system or self.system_prompt
        return [("system", [prompt]), *draft] if prompt and (not draft or draft[0][0] != "system") else draft


def chat_row(draft: Draft, fields: PictureFields, at: RowContext) -> Row:
    """A row from a conversation. Pictures that no part and no `<image>` mentions go before the first question.

    Raises:
        ValueError: Places and pictures differ in number, or there is nothing to learn.
    """
    draft = fields.beginning(draft) if isinstance(fields, ChatFields) else draft
    beside = fields.names
    mentioned = _mentioned(draft)
    if beside and not mentioned:
        draft = _shown_first(draft, len(beside))
        mentioned = _mentioned(draft)
    elif mentioned and beside == [part.picture for part in mentioned if isinstance(part, Shows)]:
        beside = []  # they are named twice
    places = mentioned.count(PICTURE)
    if places != len(beside):
        raise ValueError(f"{places} places for pictures, {len(beside)} pictures: they must be equally many.")
    rest = iter(beside)
    pictures, ids = at.pictures(
        fields, [part.picture if isinstance(part, Shows) else next(rest) for part in mentioned]
    )
    return Row(tuple(Message(role, _placed(parts)) for role, parts in draft), pictures, ids, at.source)


def _mentioned(draft: Draft) -> list[Placeholder | Shows]:
    """What stands for pictures, in its order."""
    return [part for _, parts in draft for part in parts if not isinstance(part, str)]


def _placed(parts: list[Part]) -> tuple[str | Placeholder, ...]:
    return tuple([part if isinstance(part, str) else PICTURE for part in parts])


def _shown_first(draft: Draft, count: int) -> Draft:
    """The conversation with places for so many pictures before its first question."""
    first = next((number for number, (role, _) in enumerate(draft) if role == "user"), None)
    if first is None:
        return draft
    role, parts = draft[first]
    return [*draft[:first], (role, [*[PICTURE] * count, *parts]), *draft[first + 1 :]]
