"""A stronger language model mends texts, without inventing anything."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from ..data.pictures import Picture
from ..inference.endpoint import Endpoint, RefusedRequest, image_part
from .texts import Described, Edited

GIVEN_UP = "(削除)"
INSTRUCTION = f"""あなたは日本語の校正者です。次の文章は、ある画像の説明です。
規則に従って直し、直した文章だけを返してください。

1. 同じ語句や文の繰り返しは一度だけ残す。
2. 意味のない文字の並び、文字化け、日本語でない部分を取り除く。
3. 途中で終わっている文は、書かれている内容だけで結べるなら結び、結べないなら取り除く。
4. 誤字や文法の誤りを直し、自然な日本語の文章にする。
5. 書かれていない事物、数、名前、色、推測を加えない。画像にないと分かる内容も加えない。
6. 直しても画像の説明にならない場合は、{GIVEN_UP} とだけ返す。"""
WITH_PICTURE = "\n7. 画像も示します。画像と明らかに食い違う文は取り除く。画像から新しい内容を書き足さない。"
AT_ONCE = 8  # requests
MAX_TOKENS = 1024


class Editor:
    """Sends texts, and pictures only where that was asked for, to an OpenAI-compatible server.

    Args:
        endpoint: The server.
        pictures: Pictures by name, where they are to be shown; empty: texts alone leave this machine.
    """

    def __init__(self, endpoint: Endpoint, pictures: Mapping[str, Picture]):
        self.endpoint, self.pictures = endpoint, pictures

    def edited(self, texts: Sequence[Described]) -> Iterator[Edited]:
        """Texts as they come back.

        Raises:
            ValueError: The server takes no request like these.
            ConnectionError: The server stopped answering; what came before stays.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for done in as_completed([pool.submit(self._edit, text) for text in texts]):
                    yield done.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _edit(self, text: Described) -> Edited:
        shown = text.picture in self.pictures
        made = Edited(id=text.id, editor=self.endpoint.model, shown=shown, before=text.text, text="")
        try:
            said = self.endpoint.complete(self.messages(text), MAX_TOKENS, temperature=0.0)
        except RefusedRequest as error:
            return made.model_copy(update={"refused": str(error)})
        mended = said.text.strip()
        return made.model_copy(
            update={
                "text": "" if GIVEN_UP in mended else mended,
                "prompt_tokens": said.prompt_tokens,
                "completion_tokens": said.completion_tokens,
            }
        )

    def messages(self, text: Described) -> list[dict[str, Any]]:
        """The request about a text."""
        picture = self.pictures.get(text.picture)
        content: list[dict[str, Any]] = [{"type": "text", "text": text.text}]
        if picture is not None:
            content.insert(0, image_part(picture.read(), f"The picture {picture.name}"))
        instruction = INSTRUCTION + (WITH_PICTURE if picture is not None else "")
        user = content if picture is not None else text.text
        return [{"role": "system", "content": instruction}, {"role": "user", "content": user}]
