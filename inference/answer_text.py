"""Tokens of an answer on their way to a reader: when they make text, and which of them are the answer."""

import re

from ..processing_jminigpt4 import JMiniGPT4Processor

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
UNFINISHED = "\ufffd"  # what tokenizers decode a character to of which only some bytes are there


class AnswerText:
    """Text of an answer that grows token by token.

    What is released is never taken back: half a character, the beginning of something that may become a line break or
    a stop string, and white space that may be the last, wait for the tokens behind them. All released pieces together
    are the answer as `processor.trim_answer` gives it.

    Args:
        processor: Its tokenizer decodes; its `newline`, `stop_strings` and `trim_answer` are those of the format.
    """

    def __init__(self, processor: JMiniGPT4Processor):
        self._processor = processor
        self._marks = [*processor.stop_strings, *([processor.newline] if processor.newline else [])]
        self.token_ids: list[int] = []
        self.text = ""
        # Number of tokens, and their text, at which nothing behind them can change that text any more.
        self._settled = [(0, "")]

    def push(self, token_id: int) -> str:
        """Takes one token; returns the text that it completes, often a character or two, sometimes nothing."""
        self.token_ids.append(token_id)
        decoded = self._decode(len(self.token_ids))
        # One invalid byte makes tokenizers decode the whole run of byte tokens before it to U+FFFD: a run is decoded
        # anew behind each of its characters.
        if BYTE_TOKEN.fullmatch(self._piece(token_id)) and not decoded.endswith(UNFINISHED):
            self._settled.append((len(self.token_ids), decoded))
        complete = decoded.rstrip(UNFINISHED)
        if self._end_of_answer(complete) is None:
            complete = complete[: len(complete) - self._mark_begun(complete)]
        return self._release(complete)

    def finish(self) -> str:
        """Returns what was held back, and shortens `token_ids` to those of the text: without a stop string that they
        may run into, and without the bytes of a last character that was cut off."""
        length = len(self.token_ids)
        shortest = max(0, length - 3)
        while length > shortest and self._decode(length).endswith(UNFINISHED):
            length -= 1
        text = self._decode(length).rstrip(UNFINISHED)
        piece = self._release(text)
        end = self._end_of_answer(text)
        while end is not None and len(self._decode(length)) > end:
            length -= 1
        self.token_ids = self.token_ids[:length]
        return piece

    def _decode(self, length: int) -> str:
        start, text = next(settled for settled in reversed(self._settled) if settled[0] <= length)
        return text + self._processor.tokenizer.decode(self.token_ids[start:length], skip_special_tokens=True)

    def _piece(self, token_id: int) -> str:
        return str(self._processor.tokenizer.convert_ids_to_tokens(token_id))

    def _release(self, complete: str) -> str:
        visible = self._processor.trim_answer(complete)
        piece = visible[len(self.text) :]
        self.text += piece
        return piece

    def _end_of_answer(self, text: str) -> int | None:
        """Number of characters before the first stop string; `None` when there is none."""
        return min((text.find(stop) for stop in self._processor.stop_strings if stop in text), default=None)

    def _mark_begun(self, text: str) -> int:
        """Number of characters at the end of `text` that may be the beginning of a mark of the format."""
        starts = (mark[:length] for mark in self._marks for length in range(1, len(mark)))
        return max((len(start) for start in starts if text.endswith(start)), default=0)
