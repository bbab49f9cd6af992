"""Tokens on their way from the thread that generates to the one that reads."""

import queue
from collections.abc import Iterator

import torch
from transformers.generation.streamers import BaseStreamer


class TokenQueue(BaseStreamer):
    """Streamer of one row that hands its new tokens to another thread, which iterates over it.

    Args:
        eos_ids: Tokens that end an answer and are no part of it.
    """

    def __init__(self, eos_ids: set[int]):
        self._eos_ids = eos_ids
        self._tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: torch.LongTensor):
        # `generate` puts the prompt first.
        if self._prompt_seen:
            self.put_all(value.flatten().tolist())
        self._prompt_seen = True

    def put_all(self, token_ids: list[int]):
        for token_id in token_ids:
            if token_id not in self._eos_ids:
                self._tokens.put(token_id)

    def end(self):
        self._tokens.put(None)

    def __iter__(self) -> Iterator[int]:
        while (token_id := self._tokens.get()) is not None:
            yield token_id
