"""Answers on fixed pictures while the projection learns."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TrainerCallback

from ..data.rows import Row
from ..inference.answering import Answer, AnswerGenerator, Prompt
from .features import PictureEncoder
from .reporting import Reports

BATCH_SIZE = 8  # rows answered at a time


class Samples(TrainerCallback):
    """Writes the model's greedy answers on a few rows to `samples.jsonl`, time and again while it learns.

    Args:
        model, processor: The model in training and its processor.
        rows: The rows whose last answer the model is asked for.
        pictures: Encodes their pictures, once.
        output: Folder of the run.
        steps: Every how many steps.
        max_new_tokens: Longest answer.
        everywhere: Whether all processes must answer for one to do so; the first alone writes.
        encoder_learns: Whether pictures are encoded anew each time.
        reports: Where else answers and pictures are written.
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
        encoder_learns: bool = False,
        reports: Reports | None = None,
    ):
        self.model, self.processor, self.pictures, self.rows = model, processor, pictures, rows
        self.path, self.steps, self.max_new_tokens = output / "samples.jsonl", steps, max_new_tokens
        self.everywhere, self.encoder_learns, self.reports = everywhere, encoder_learns, reports
        self._generator = AnswerGenerator(model, processor)
        self._features: dict[Any, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        first, due = state.is_world_process_zero, state.global_step % self.steps == 0
        if (first or self.everywhere) and (due or state.global_step == state.max_steps):
            lines = self.lines(state.global_step)
            if first:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                if self.reports:
                    self.reports.samples(state.global_step, lines, self._shown())

    def lines(self, step: int) -> list[dict[str, Any]]:
        """All answers at step `step`, beside what was expected."""
        return [
            {"step": step, "image_ids": row.image_ids, "expected": row.answer, "answer": answer}
            for row, answer in zip(self.rows, self.answers(), strict=True)
        ]

    def _shown(self) -> list[Image.Image]:
        """The first picture of each row."""
        to_rgb = self.pictures.image_processor.to_rgb
        return [to_rgb(picture.read(), picture.name) for picture in (row.pictures[0] for row in self.rows)]

    def answers(self) -> list[str]:
        """The model's answers in the places of the rows' last ones, in the order of the rows."""
        was_training = self.model.training
        self.model.eval()
        if self.encoder_learns:
            self._features.clear()
        try:
            return [
                answer.text
                for start in range(0, len(self.rows), BATCH_SIZE)
                for answer in self._answer(self.rows[start : start + BATCH_SIZE])
            ]
        finally:
            self.model.train(was_training)

    def _answer(self, rows: list[Row]) -> list[Answer]:
        prompts = []
        for row in rows:
            segments = self.processor.encode_segments(row.messages()[:-1], add_generation_prompt=True)
            prompts.append(Prompt(segments["input_ids"], tuple(row.pictures)))
        for picture in (picture for row in rows for picture in row.pictures):
            if picture not in self._features:
                view = self.pictures.pixel_values(picture.read(), picture.name, [None])
                self._features[picture] = self.pictures.encode(view)[0]
        return self._generator.answers(prompts, self._features, max_new_tokens=self.max_new_tokens, do_sample=False)
