"""Recipes: every number of a training run, in one small YAML file."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint import DTYPES
from ..data.readers import DataSource, as_source
from .optimizers import OPTIMIZERS
from .schedule import cosine_rate, originals_rate

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """Numbers and choices of a training run. The defaults are MiniGPT-4's first stage.

    Args:
        learning_rate, min_learning_rate, warmup_learning_rate: Peak, floor and start.
        warmup_steps: Steps from start to peak.
        schedule: `cosine`, or `originals`: MiniGPT-4's, quirks included.
        epochs: Number of epochs.
        steps_per_epoch: Optimiser steps of an epoch; `None`: each picture once.
        weight_decay: On the projection's weight; its bias has none.
        optimizer: `adamw` (the originals), or `muon`: Muon on the weight and AdamW on the bias, which wants a
            learning rate of 0.04 and a weight decay of 1.0.
        betas: Of AdamW; the first is Muon's momentum.
        max_grad_norm: Gradients are clipped to this norm; 0: not at all, as the originals.
        pictures_per_step: Groups of rows in an optimiser step, over all processes; a group is a picture and its rows.
        rows_per_picture: Most rows of a picture in one group; `None`: all.
        pack_tokens: Most tokens in one forward pass. It sets the memory; the step is accumulated over its packs.
        share_prefix: Whether rows of a picture share a sequence; off, every row is plain. Loss and gradient are equal.
        loss: `token_mean` over the step (the originals), or `answer_mean`: each answer counts the same.
        max_answer_tokens: An answer is cut after so many tokens, and loses its end mark then (the originals'
            `max_txt_len`); `None`: never.
        prompts, prompt_probability: What captions are asked with; see [`CaptionPrompts`].
        augmentation: Whether pictures are cropped at random (the originals).
        views: With a feature cache and augmentation, number of cropped views per picture.
        cache_dtype: How a feature cache stores features: `float16`, `bfloat16` or `float32`.
        dtype: `auto`: the dtype of the model's files; or `float32`, `bfloat16`, `float16`. The projection learns in
            float32.
        attention: `auto`, or `sdpa`, `eager`, `flex_attention`: how the language model computes attention.
        gradient_checkpointing: Trade time for memory in the language model.
        lora: Rank of LoRA adapters on the language model; 0: it stays frozen, as the originals.
        shard_language: Spread the layers of the frozen language model over all processes (FSDP2), for models that one
            card cannot hold.
        load_in_8bit: Load the language model in 8 bits (bitsandbytes).
        validation: Share of the pictures that are kept for validation, or 0.
        exclude: Files of image ids that must not be trained on, such as those of evaluation sets.
        coco_twins: Visual Genome's `image_data.json`, which says which of its pictures are COCO's.
        on_bad_picture: `skip` or `raise`.
        max_bad_share: Training stops when more than this share of pictures is bad.
        log_steps, save_steps, eval_steps, sample_steps: Every how many steps; `None`: at the end of each epoch.
        keep_checkpoints: How many are kept.
        seed: What order, prompts and crops are drawn from.
        data: Data sources, when they are not given otherwise.
    """

    learning_rate: float = 1e-4
    min_learning_rate: float = 8e-5
    warmup_learning_rate: float = 1e-6
    warmup_steps: int = 5000
    schedule: str = "cosine"
    epochs: int = 4
    steps_per_epoch: int | None = 5000
    weight_decay: float = 0.05
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 0.0
    pictures_per_step: int = 256
    rows_per_picture: int | None = None
    pack_tokens: int = 1024
    share_prefix: bool = True
    loss: str = "token_mean"
    max_answer_tokens: int | None = None
    prompts: str | list[str] = "none"
    prompt_probability: float = 1.0
    augmentation: bool = False
    views: int = 1
    cache_dtype: str = "float16"
    dtype: str = "auto"
    attention: str = "auto"
    gradient_checkpointing: bool = False
    lora: int = 0
    shard_language: bool = False
    load_in_8bit: bool = False
    validation: float = 0.0
    exclude: list[str] = field(default_factory=list)
    coco_twins: str | None = None
    on_bad_picture: str = "skip"
    max_bad_share: float = 0.05
    log_steps: int = 10
    save_steps: int | None = None
    eval_steps: int | None = None
    sample_steps: int | None = None
    keep_checkpoints: int = 2
    seed: int = 42
    data: list[DataSource] = field(default_factory=list)

    def __post_init__(self):
        choices = {
            "schedule": ("cosine", "originals"),
            "optimizer": tuple(OPTIMIZERS),
            "loss": ("token_mean", "answer_mean"),
            "dtype": ("auto", *DTYPES),
            "attention": ("auto", "sdpa", "eager", "flex_attention"),
            "cache_dtype": tuple(DTYPES),
            "on_bad_picture": ("skip", "raise"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name in ("epochs", "pictures_per_step", "pack_tokens", "views", "log_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.optimizer == "muon" and self.lora:
            raise ValueError("optimizer: muon is for the projection alone, not for adapters; adamw goes with lora.")
        if self.shard_language and (self.lora or self.load_in_8bit):
            raise ValueError("shard_language spreads frozen layers as they are: not with lora or load_in_8bit.")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is a share of the pictures, from 0 to below 1; got {self.validation}.")

    @classmethod
    def load(cls, name: str | os.PathLike, **changes: Any) -> "Recipe":
        """A recipe of the package (`stage1`, `stage2`, `article-stair-vg`) or a YAML file of one's own.

        Args:
            name: Name or path.
            changes: Values that differ from it.

        Raises:
            FileNotFoundError: There is no such recipe.
            ValueError: It has a key that no recipe has, or a value that cannot be.
        """
        import yaml

        path = Path(name)
        if not path.is_file():
            path = RECIPES / f"{name}.yaml"
        if not path.is_file():
            shipped = ", ".join(sorted(each.stem for each in RECIPES.glob("*.yaml")))
            raise FileNotFoundError(f"There is no recipe {name}: name a YAML file, or one of {shipped}.")
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return cls.from_values({**values, **changes}, str(path))

    @classmethod
    def from_values(cls, values: dict[str, Any], name: str = "The recipe") -> "Recipe":
        """A recipe from a mapping.

        Raises:
            ValueError: An unknown key, or a value of the wrong type.
        """
        known = {each.name: each for each in fields(cls)}
        if unknown := sorted(values.keys() - known.keys()):
            raise ValueError(f"{name} has {', '.join(unknown)}, which no recipe has; known are {', '.join(known)}.")
        values = dict(values)
        # YAML 1.1 reads 1e-4 (no dot) as a text.
        for key in ("learning_rate", "min_learning_rate", "warmup_learning_rate", "weight_decay"):
            if key in values:
                try:
                    values[key] = float(values[key])
                except (TypeError, ValueError):
                    raise ValueError(f"{name}: {key} must be a number, got {values[key]!r}.") from None
        values["data"] = [as_source(each) for each in values.get("data") or []]
        values["betas"] = tuple(values.get("betas", cls.betas))
        return cls(**values)

    def with_(self, **changes: Any) -> "Recipe":
        """The same recipe with other values.

        Raises:
            ValueError: A key that no recipe has, or a value that cannot be.
        """
        if unknown := sorted(changes.keys() - {each.name for each in fields(self)}):
            known = ", ".join(each.name for each in fields(self))
            raise ValueError(f"No recipe has {', '.join(unknown)}; known are {known}.")
        return replace(self, **changes)

    def values(self) -> dict[str, Any]:
        """The recipe as plain values, to be written into a YAML file."""
        values = asdict(self)
        values["betas"] = list(self.betas)
        return values

    def rates(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Learning rate of a step (from 0), for epochs of this length."""
        numbers = {
            "peak": self.learning_rate,
            "floor": self.min_learning_rate,
            "start": self.warmup_learning_rate,
            "warmup_steps": self.warmup_steps,
        }
        if self.schedule == "originals":
            return partial(originals_rate, **numbers, steps_per_epoch=steps_per_epoch, epochs=self.epochs)
        return partial(cosine_rate, **numbers, total_steps=self.epochs * steps_per_epoch)
