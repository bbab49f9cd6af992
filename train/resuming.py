"""What a checkpoint says of its run, and whether another run may go on from it."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..schema import explain
from .features import BadPicture
from .order import SampleOrder
from .recipe import Recipe
from .sources import SourceData

Schema = TypeVar("Schema", bound=BaseModel)

RUN = "run.json"

# Values of the recipe that a run may go on with when they have changed, and why. All others are refused.
MAY_CHANGE = {
    "epochs": "a run may become longer or shorter; the learning rate follows from the next step on",
    "pack_tokens": "sets the memory: loss and gradient are equal",
    "share_prefix": "sets the memory: loss and gradient are equal",
    "gradient_checkpointing": "sets the memory: loss and gradient are equal",
    "attention": "how attention is computed, not what",
    "shard_language": "where layers lie, not what they are",
    "dtype": "a run that overflows in float16 may go on in bfloat16 or float32",
    "exclude": "what it left is in the digests of the rows",
    "coco_twins": "what it left is in the digests of the rows",
    "data": "files may have moved: their rows are in the digests",
    "on_bad_picture": "when to stop, not what is learnt",
    "on_bad_row": "what it left is in the digests of the rows",
    "max_bad_share": "when to stop, not what is learnt",
    "log_steps": "when something is written",
    "save_steps": "when something is written",
    "eval_steps": "when something is written",
    "sample_steps": "when something is written",
    "keep_checkpoints": "how many are kept",
}


class RunDescription(BaseModel, extra="forbid"):
    """What a step of a run is a function of.

    Args:
        order: Of [`SampleOrder.describe`].
        recipe: Those values of the recipe that must not change.
        rows: SHA-256 of the rows and caption prompts of each source, in training and for validation.
        cached: Whether pictures come from a feature cache, which crops and rounds otherwise than streaming.
        bad_pictures: Those met so far.
    """

    order: dict[str, Any]
    recipe: dict[str, Any]
    rows: dict[str, str]
    cached: bool
    bad_pictures: list[BadPicture] = []


class _Position(BaseModel):
    """Of transformers' `trainer_state.json`, what a run goes on from."""

    global_step: int


def describe_run(order: SampleOrder, recipe: Recipe, sources: list[SourceData], cached: bool) -> RunDescription:
    """The description of a run that has met no bad picture."""
    values = {name: value for name, value in recipe.values().items() if name not in MAY_CHANGE}
    rows = {f"rows of source {number}": digest(source) for number, source in enumerate(sources, 1)}
    return RunDescription(order=order.describe(), recipe=values, rows=rows, cached=cached)


def digest(source: SourceData) -> str:
    """SHA-256 over what a source teaches: every text, role and id of a picture in its order, and its prompts."""
    parts = (source.prompts.prompts, source.prompts.probability, source.training.digest(), source.validation.digest())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def check_resumable(checkpoint: Path, run: RunDescription) -> list[BadPicture]:
    """Makes sure that a run is the one that a checkpoint belongs to, and that the checkpoint is whole.

    Returns:
        The bad pictures that had been met when it was written.

    Raises:
        ValueError: Something has changed that must not, or something is missing or damaged.
    """
    for name in (RUN, "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        if not (checkpoint / name).is_file():
            raise _not_whole(checkpoint, f"has no {name}")
    if not any(checkpoint.glob("rng_state*.pth")):
        raise _not_whole(checkpoint, "has no random state (rng_state.pth)")
    _read(_Position, checkpoint / "trainer_state.json")
    stored = _read(RunDescription, checkpoint / RUN)
    if stored.order.get("kind") != run.order["kind"]:
        raise ValueError(
            f"{checkpoint} is of a version that drew the order of samples in another way: going on would show some "
            "pictures twice and others never. Finish it with that version, or begin in another output folder with it "
            "as `projection`."
        )
    changes = [*_changes(stored.order, run.order), *_changes(stored.recipe, run.recipe)]
    named = {name for name, _, _ in changes}
    changes += [each for each in _changes(stored.rows, run.rows) if "groups of each source" not in named]
    changes += _changes({"cache": stored.cached}, {"cache": run.cached})
    if changes:
        text = "; ".join(f"{name} was {_short(before)} and is {_short(now)}" for name, before, now in changes[:3])
        raise ValueError(
            f"{checkpoint} belongs to another run: {text}. Going on would mix the two. Take the data and recipe it "
            "was begun with, or another output folder; to begin with its weights, pass it as `projection`."
        )
    return stored.bad_pictures


def _read(schema: type[Schema], path: Path) -> Schema:
    try:
        return schema.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise explain(error, path) from None


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    now = json.loads(json.dumps(now))
    names = dict.fromkeys([*before, *now])
    return [(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _not_whole(checkpoint: Path, what: str) -> ValueError:
    return ValueError(
        f"{checkpoint} {what}: it is not whole, or of another version. Remove it to go on from the one before, or "
        "begin in another output folder with it as `projection`."
    )
