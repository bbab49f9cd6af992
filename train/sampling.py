"""Answers on fixed pictures while the projection learns."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..data.rows import Row
from .features import PictureEncoder


class Samples(TrainerCallback):
    """Every so many steps writes the model's greedy answers on a few rows to `samples.jsonl`.

    Args:
        model, processor: The model in training and its processor.
        rows: The rows whose last answer the model is asked for.
        pictures: Encodes their pictures, once.
        output: Folder of the run.
        steps: Every how many steps.
        max_new_tokens: Longest answer.
        everywhere: Whether all processes must answer for one to do so; the first alone writes.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        rows: list[Row],
        pictures: PictureEncoder,
        output: Path,
        steps: int,
        max_new_tokens: int = 48,
        everywhere: bool = False,
    ):
        self.model, self.processor, self.pictures, self.rows = model, processor, pictures, rows
        self.path, self.steps, self.max_new_tokens = output / "samples.jsonl", steps, max_new_tokens
        self.everywhere = everywhere
        self._features: dict[int, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        first, due = state.is_world_process_zero, state.global_step % self.steps == 0
        if (first or self.everywhere) and (due or state.global_step == state.max_steps):
            lines = self.lines(state.global_step)
            if first:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def lines(self, step: int) -> list[dict[str, Any]]:
        """All answers at step `step`, beside what was expected."""
        was_training = self.model.training
        self.model.eval()
        try:
            return [
                {"step": step, "image_ids": row.image_ids, "expected": row.answer, "answer": answer}
                for row, answer in ((row, self.answer(number, row)) for number, row in enumerate(self.rows))
            ]
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def answer(self, number: int, row: Row) -> str:
        """The model's answer in the place of a row's last one."""
        ids = self.processor.encode_segments(row.messages()[:-1], add_generation_prompt=True)["input_ids"]
        ids = torch.tensor([ids], device=self.model.device)
        generated = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **self._pictures(number, row),
        )
        return self.processor.post_process_image_text_to_text(generated[:, ids.shape[1] :])[0]

    def _pictures(self, number: int, row: Row) -> dict[str, torch.Tensor]:
        if not row.pictures:
            return {}
        if number not in self._features:
            views = [self.pictures.pixel_values(each.read(), each.name, [None]) for each in row.pictures]
            self._features[number] = self.pictures.encode(torch.cat(views))
        return {"query_features": self._features[number]}
