"""Recipes: every number of a training run, in one small YAML file."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ..data.readers import DataSource, as_source
from ..schema import explain
from .optimizers import OPTIMIZERS
from .parts import ENCODER, Part, check_parts
from .prompts import STOCK
from .schedule import cosine_rate, originals_rate

RECIPES = Path(__file__).parent / "recipes"
LATER = {"learn", "learning_rates", "projection", "window_shards", "stream_folder"}


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 (no dot) as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _prompts(value: Any) -> Any:
    if value in STOCK if isinstance(value, str) else _are_texts(value):
        return value
    raise ValueError(f"expected one of {', '.join(STOCK)}, or a list of texts, got {str(value)[:80]!r}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _optimizer(value: Any) -> Any:
    if isinstance(value, str) and value not in OPTIMIZERS:
        raise ValueError(f"expected one of {', '.join(OPTIMIZERS)}, got {value[:80]!r}")
    return value


def _source(value: Any) -> Any:
    if not isinstance(value, DataSource | dict | str | os.PathLike):
        raise ValueError(f"a data source is a path or a mapping with `path`, got {str(value)[:80]!r}")
    return as_source(value)


def _parts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# Numbers that may be `auto`, for `sized` to say once the data is there; and what stands for them until then.
AUTO: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 1e9,
    "min_learning_rate": 0.0,
    "warmup_learning_rate": 0.0,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "epochs": 1,
    "pictures_per_step": 1,
    "validation": 0.0,
    "save_steps": None,
    "eval_steps": None,
    "sample_steps": None,
}

Number = Annotated[float, BeforeValidator(_number)]
Rate = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Beta = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrNone = Annotated[int, Field(ge=0, le=10**9)]


class Recipe(BaseModel):
    """Numbers and choices of a training run. The defaults are MiniGPT-4's first stage.

    Args:
        learning_rate, min_learning_rate, warmup_learning_rate: Peak, floor and start.
        warmup_steps: Steps from start to peak.
        schedule: `cosine`, or `originals`: MiniGPT-4's, quirks included.
        learn: Which parts learn, of `projection` (the article's), `qformer` (with the query tokens), `vision` (image
            encoder and the norm behind it) and `language`: all of its weights, or adapters where `lora` is set.
        learning_rates: Peak learning rate of parts that have one of their own, such as `{qformer: 1e-5}`; it rises
            and falls with `learning_rate`.
        projection: `mlp`: two layers with a GELU between them, as LLaVA-1.5; `linear`: one layer. `None`: as the model
            has it. Where it has another, the model's own is left out and the new one starts at random.
        epochs: Number of epochs.
        steps_per_epoch: Optimiser steps of an epoch; `None`: each picture once.
        weight_decay: On the projection's weight; its bias has none. Nor have biases, norms and embeddings of other
            parts that learn.
        optimizer: `adamw` (the originals), or `muon`: Muon on the weight and AdamW on the bias, which wants a
            learning rate of 0.04 and a weight decay of 1.0. Other parts learn by AdamW, each with a rate of its own in
            `learning_rates`.
        betas: Of AdamW; the first is Muon's momentum.
        max_grad_norm: Gradients are clipped to this norm; 0: not at all, as the originals.
        pictures_per_step: Groups of rows in an optimiser step, over all processes; a group is a picture and its rows.
        rows_per_picture: Most rows of a picture in one group; `None`: all.
        pack_tokens: Most tokens in one forward pass. It sets the memory; the step is accumulated over its packs.
            `auto`: 1024, and 2048 on a GPU of more than 20 GB.
        share_prefix: Whether rows of a picture share a sequence; off, every row is plain. Loss and gradient are equal.
        loss: `token_mean` over the step (the originals), or `answer_mean`: each answer counts the same.
        max_answer_tokens: An answer is cut after so many tokens, and loses its end mark then (the originals'
            `max_txt_len`); `None`: never.
        prompts, prompt_probability: What captions are asked with; see [`CaptionPrompts`].
        augmentation: Whether pictures are cropped at random (the originals).
        views: With a feature cache and augmentation, number of cropped views per picture.
        cache_dtype: How a feature cache stores features: `float16`, `bfloat16` or `float32`.
        dtype: `auto`: the dtype of the model's files; or `float32`, `bfloat16`, `float16`. What learns, learns in
            float32: an image encoder or language model that does is held so, and computed in this dtype.
        attention: `auto`, or `sdpa`, `eager`, `flex_attention`: how the language model computes attention.
        gradient_checkpointing: Trade time for memory in the language model.
        lora: Rank of LoRA adapters on the language model; 0: none, it stays frozen, as the originals, or learns whole
            where `learn` names it.
        shard_language: Spread the layers of the frozen language model over all processes (FSDP2), for models that one
            card cannot hold.
        load_in_8bit: Load the language model in 8 bits (bitsandbytes).
        validation: Share of the pictures that are kept for validation, or 0.
        exclude: Files of image ids that must not be trained on, such as those of evaluation sets.
        coco_twins: Visual Genome's `image_data.json`, which says which of its pictures are COCO's.
        on_bad_picture: `skip` or `raise`.
        on_bad_row: `raise`, or `skip`: rows that lack something are left out, counted and listed.
        max_bad_share: Training stops when more than this share of pictures, or of rows, is bad.
        log_steps, save_steps, eval_steps: Every how many steps; `None`: at the end of each epoch.
        sample_steps: Every how many steps the model answers on four fixed pictures; `None`: at the end of each epoch
            if the run reports to TensorBoard or Weights & Biases, else never.
        keep_checkpoints: How many are kept.
        seed: What order, prompts and crops are drawn from.
        window_shards: Of sources that stream, how many shards lie on the machine together and are mixed; as many more
            are fetched ahead. The more, the better the rows are mixed, and the more disk it takes.
        stream_folder: Where they lie; by default in the output folder.
        data: Data sources, when they are not given otherwise.

    Optimiser, learning rates, weight decay, warm-up, epochs, pictures a step, validation and the steps of saving,
    validating and sampling may be `auto`: the size of the data says them then; see [`sized`].
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    learning_rate: Annotated[Number, Field(gt=0)] = 1e-4
    min_learning_rate: Rate = 8e-5
    warmup_learning_rate: Rate = 1e-6
    warmup_steps: CountOrNone = 5000
    schedule: Literal["cosine", "originals"] = "cosine"
    learn: Annotated[list[Part], BeforeValidator(_parts), Field(min_length=1)] = ["projection"]
    learning_rates: dict[Part, Annotated[Number, Field(gt=0)]] = {}
    projection: Literal["linear", "mlp"] | None = None
    epochs: Count = 4
    steps_per_epoch: Count | None = 5000
    weight_decay: Rate = 0.05
    optimizer: Annotated[str, BeforeValidator(_optimizer)] = "adamw"
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)
    max_grad_norm: Rate = 0.0
    pictures_per_step: Count = 256
    rows_per_picture: Count | None = None
    pack_tokens: Count | Literal["auto"] = "auto"
    share_prefix: bool = True
    loss: Literal["token_mean", "answer_mean"] = "token_mean"
    max_answer_tokens: Count | None = None
    prompts: Annotated[Any, BeforeValidator(_prompts)] = "none"
    prompt_probability: Share = 1.0
    augmentation: bool = False
    views: Count = 1
    cache_dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = "auto"
    gradient_checkpointing: bool = False
    lora: CountOrNone = 0
    shard_language: bool = False
    load_in_8bit: bool = False
    validation: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    exclude: list[str] = []
    coco_twins: str | None = None
    on_bad_picture: Literal["skip", "raise"] = "skip"
    on_bad_row: Literal["skip", "raise"] = "raise"
    max_bad_share: Share = 0.05
    log_steps: Count = 10
    save_steps: Count | None = None
    eval_steps: Count | None = None
    sample_steps: Count | None = None
    keep_checkpoints: Count = 2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    window_shards: Count = 8
    stream_folder: str | None = None
    data: list[Annotated[DataSource, BeforeValidator(_source)]] = []

    _auto: tuple[str, ...] = ()

    def __init__(self, where: str = "The recipe", /, **values: Any):
        auto = tuple(name for name in AUTO if isinstance(given := values.get(name), str) and given == "auto")
        try:
            super().__init__(**values | {name: AUTO[name] for name in auto})
        except ValidationError as error:
            unknown = [str(each["loc"][0]) for each in error.errors() if each["type"] == "extra_forbidden"]
            if unknown:
                known = ", ".join(type(self).model_fields)
                raise ValueError(
                    f"{where} has {', '.join(unknown)}, which no recipe has; known are {known}."
                ) from None
            raise explain(error, where) from None
        self._auto = auto

    @property
    def auto(self) -> tuple[str, ...]:
        """Names of the numbers that are left to the data."""
        return self._auto

    @model_validator(mode="after")
    def _belongs_together(self) -> "Recipe":
        if self.optimizer == "muon" and self.lora:
            raise ValueError("optimizer: muon is for the projection alone, not for adapters; adamw goes with lora")
        if self.shard_language and (self.lora or self.load_in_8bit):
            raise ValueError("shard_language spreads frozen layers as they are: not with lora or load_in_8bit")
        check_parts(self)
        lower = ["min_learning_rate"] + (["warmup_learning_rate"] if self.warmup_steps else [])
        for name in lower:
            if getattr(self, name) > self.learning_rate:
                raise ValueError(
                    f"{name} {getattr(self, name):g} is above learning_rate {self.learning_rate:g}, which is the peak"
                )
        return self

    @classmethod
    def load(cls, name: str | os.PathLike, **changes: Any) -> "Recipe":
        """A recipe of the package (`auto`, `small`, `stage1` …) or a YAML file of one's own.

        Args:
            name: Name or path.
            changes: Values that differ from it.

        Raises:
            FileNotFoundError: There is no such recipe.
            ValueError: It has a key that no recipe has, or a value that cannot be.
        """
        path = Path(name)
        if not path.is_file():
            path = RECIPES / f"{name}.yaml"
        if not path.is_file():
            shipped = ", ".join(sorted(each.stem for each in RECIPES.glob("*.yaml")))
            raise FileNotFoundError(f"There is no recipe {name}: name a YAML file, or one of {shipped}.")
        values = read_yaml(path.read_bytes(), str(path))
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no keys with values, but {str(values)[:80]!r}.")
        return cls.from_values({**values, **changes}, str(path))

    @classmethod
    def from_values(cls, values: dict[Any, Any], where: str = "The recipe") -> "Recipe":
        """A recipe from a mapping.

        Args:
            values: Values by key; what is not there has its default.
            where: File or option that they came from, for the error.

        Raises:
            ValueError: An unknown key, or a value that cannot be.
        """
        return cls(where, **{str(key): value for key, value in values.items()})

    def with_(self, **changes: Any) -> "Recipe":
        """The same recipe with other values.

        Raises:
            ValueError: A key that no recipe has, or a value that cannot be.
        """
        return self.from_values({**self.values(), **changes})

    def values(self) -> dict[str, Any]:
        """The recipe as plain values, to be written into a YAML file. What later versions brought is left out where it
        is as if it were not there: a run that was begun before them goes on."""
        values = self.model_dump() | {"betas": list(self.betas)} | dict.fromkeys(self.auto, "auto")
        fields = type(self).model_fields
        return {name: value for name, value in values.items() if name not in LATER or value != fields[name].default}

    @property
    def encoder_learns(self) -> bool:
        """Whether query features change from step to step."""
        return not ENCODER.isdisjoint(self.learn)

    @property
    def learns_projection_alone(self) -> bool:
        """Whether nothing else learns, adapters neither: the article's way."""
        return self.learn == ["projection"] and not self.lora

    @property
    def learns_whole_language(self) -> bool:
        """Whether the language model's own weights learn, not adapters on them."""
        return "language" in self.learn and not self.lora

    @property
    def learns_whole_parts(self) -> bool:
        """Whether something learns that the backward pass of a pack may miss: what lies before the features, or
        parameters of a language model that it does not use. A last pass reaches all, so that no process waits."""
        return self.encoder_learns or self.learns_whole_language

    @property
    def language_learns(self) -> bool:
        """Whether the language model changes, by itself or by adapters."""
        return bool(self.lora) or "language" in self.learn

    @property
    def cached_views(self) -> int:
        """Cropped views of a picture in a feature cache; 0: the plain picture."""
        return self.views if self.augmentation else 0

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


def read_yaml(text: str | bytes, where: str) -> Any:
    """What a text of YAML says, in plain values.

    Raises:
        ValueError: It is no YAML, or has tags of more than plain values.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except (
        Exception
    ) as error:  # PyYAML ends in errors of many kinds: KeyError for `!!bool x`, IndexError for `!!int ""`
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{where} is not YAML of plain values: {reason}.") from None
