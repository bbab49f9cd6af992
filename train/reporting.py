"""What transformers' reports to TensorBoard and Weights & Biases lack: the recipe, and samples with their pictures."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback, get_available_reporting_integrations

from .recipe import Recipe

WITH_PICTURES = ("tensorboard", "wandb")
LARGEST = 384  # pixels of a side of a picture in a report


def check_report(report_to: str):
    """Whether transformers can report there: said before anything is loaded.

    Raises:
        ImportError: Its package is not installed, or transformers knows no such place.
    """
    available = get_available_reporting_integrations()
    if report_to in ("none", "all", *available):
        return
    remedy = f"`pip install {report_to}` brings it, and " if report_to in WITH_PICTURES else ""
    raise ImportError(
        f"Nothing can be reported to {report_to!r}, whose package is not installed: {remedy}here there are "
        f"{', '.join(['none', *available])}."
    )


class Reports(TrainerCallback):
    """Writes the recipe and the samples of a run where transformers' own callbacks write its numbers.

    Args:
        callbacks: Those of the trainer.
        recipe: The run's.
    """

    def __init__(self, callbacks: list[Any], recipe: Recipe):
        self.recipe = recipe
        self._boards = [each for each in callbacks if isinstance(each, TensorBoardCallback)]
        self._wandbs = [each._wandb for each in callbacks if isinstance(each, WandbCallback)]
        self._own_runs = [wandb for wandb in self._wandbs if wandb.run is None]

    def __bool__(self) -> bool:
        return bool(self._boards or self._wandbs)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if not state.is_world_process_zero:
            return
        values = self.recipe.model_dump(mode="json")
        for board in self._boards:
            lines = "\n".join(f"    {name}: {value}" for name, value in values.items())
            board.tb_writer.add_text("recipe", lines)
        for wandb in self._wandbs:
            wandb.config.update({"recipe": values}, allow_val_change=True)

    def samples(self, step: int, lines: list[dict[str, Any]], pictures: list[Image.Image]):
        """Answers at a step, each beside its picture; the first process alone calls this.

        Args:
            step: Optimiser steps so far.
            lines: As of `samples.jsonl`.
            pictures: One for each of them, RGB.
        """
        shown = [picture.copy() for picture in pictures]
        for picture in shown:
            picture.thumbnail((LARGEST, LARGEST))
        captions = [f"answer: {line['answer']}  \nexpected: {line['expected']}" for line in lines]
        for board in self._boards:
            for number, (picture, caption) in enumerate(zip(shown, captions, strict=True)):
                board.tb_writer.add_image(f"samples/{number}", np.array(picture), step, dataformats="HWC")
                board.tb_writer.add_text(f"samples/{number}", caption, step)
        for wandb in self._wandbs:
            images = [wandb.Image(each, caption=text) for each, text in zip(shown, captions, strict=True)]
            wandb.log({"samples": images, "train/global_step": step})

    def finish(self):
        """Closes what the run has opened, so that the next one of this process reports to a place of its own."""
        for board in self._boards:
            if board.tb_writer is not None:
                board.tb_writer.close()
        for wandb in self._own_runs:
            wandb.finish()
