"""What a run will take on this machine, hours, memory and disk, measured on a part of its first step; and what to
change where that is absurd."""

import copy
import os
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from ..checkpoint import DTYPES
from .distributed import from_all
from .encoder_gradient import StepPictures
from .features import FeatureCache
from .fingerprint import FINGERPRINT
from .metrics import peak_memory_gb
from .parts import learning_counts
from .recipe import Recipe
from .sharding import passes
from .sizing import sized
from .sources import pictures_of
from .steps import Step
from .store_files import files_of

PACK, PACK_ON_A_LARGE_GPU = 1024, 2048  # tokens
LARGE_GPU = 20.0  # GB
SECONDS = 20  # after which no further picture is encoded and no further pack computed
DAY = 24.0  # hours: what takes longer is worth a word
OFTEN = 1000  # times that a picture is seen


def tokens_of_a_pack(recipe: Recipe, device: torch.device) -> int:
    """`pack_tokens`, and what `auto` is for a device, the same for all processes. Between small packs a GPU waits for
    Python: a language model of 3.5 B goes through packs of 2048 in about half the time (`docs/gpu.md`), and holds
    twice the activations, 5 GB, for which a card must have room beside the weights."""
    if recipe.pack_tokens != "auto":
        return recipe.pack_tokens
    large = device.type != "cpu" and _memory_gb(device) > LARGE_GPU
    return min(from_all([PACK_ON_A_LARGE_GPU if large else PACK]))


def _smaller(pack_tokens: int) -> int:
    return max(64, pack_tokens // 2)


@contextmanager
def fitting_in_memory(pack_tokens: int) -> Generator[None]:
    """Around what computes steps: a device whose memory is too small is one sentence.

    Args:
        pack_tokens: Of the run.

    Raises:
        ValueError: It is; the message names what makes a step smaller.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"The device's memory is too small ({reason}) `--set pack_tokens={_smaller(pack_tokens)}` or "
            "`--set gradient_checkpointing=true` need less for the same gradient; so does `--set load_in_8bit=true`."
        ) from None


def repetition(recipe: Recipe, steps: int, pictures: float) -> str:
    """A warning where each picture would be seen absurdly often, with its remedy; else nothing."""
    times = steps * recipe.pictures_per_step / pictures
    if times <= OFTEN:
        return ""
    better, taken = sized(Recipe.load("auto"), int(pictures), 0)
    return (
        f"{steps:,} steps of {recipe.pictures_per_step:,} would show each of the {pictures:,} pictures {times:,.0f} "
        f"times. `--recipe auto` suits them: {taken.partition(';')[0].partition(': ')[2]}. Or set epochs and "
        f"steps_per_epoch."
    )


def measure(run: Any, cache: str | os.PathLike | None, output: Path, export: Path | None) -> dict[str, Any]:
    """A step of a run, forward and backward, as far as `SECONDS` reach; the rest is scaled up by pictures and tokens.

    Args:
        run: A `Run` whose steps encode their pictures.
        cache: Folder of the feature cache, or `None`.
        output, export: Where the run will write.

    Returns:
        As of `dry_run`.
    """
    missing = 0 if cache is None else _missing(run, cache)
    began = time.perf_counter()
    step = run.steps[0]
    prepared = time.perf_counter() - began
    if run.recipe.learns_whole_parts:
        encoding, computing, share = 0.0, _compute_whole(run, step), 1.0
    else:
        features, encoding = _encode(run.encoder, step, run.device)
        computing, share = _compute(run, step, features)
    supervised = sum(len(pack.targets) for pack in step.packs)
    encoded = 0 if step.pixel_values is None else len(step.pixel_values)
    own = (step.rows, step.tokens, len(step.packs), supervised, encoded)
    taken = (prepared, encoding, computing, share, peak_memory_gb())
    counts, times = zip(*from_all([(own, taken)]), strict=True)
    rows, tokens, packs, supervised, encoded = (sum(each) for each in zip(*counts, strict=True))
    prepared, encoding, computing = (max(each) for each in list(zip(*times, strict=True))[:3])
    updating = _update(run)
    each_picture = (prepared + encoding) / max(1, encoded)
    seconds = computing + updating + (0.0 if cache else prepared + encoding)
    # The language model takes about as long backward as forward: nothing of it is learnt.
    validating = (0.0 if cache else prepared + encoding) + computing / 2
    validations = 0 if run.validation is None else len(run.validation) * -(-len(run.steps) // run.eval_steps)
    hours = (len(run.steps) * seconds + validations * validating) / 3600
    needed = _disk_gb(run, cache, missing, export)
    return {
        "steps": len(run.steps),
        "rows": rows,
        "tokens": tokens,
        "packs": packs,
        "supervised_tokens_per_row": supervised / max(1, rows),
        "seconds": seconds,
        "seconds_encoding": prepared + encoding,
        "measured_share": min(each[3] for each in times),
        "peak_memory_gb": max(each[4] for each in times),
        "optimizer_memory_gb": 8 * sum(learning_counts(run.model).values()) / 1e9,
        "memory_gb": _memory_gb(run.device),
        "hours": hours,
        "cache_hours": missing * each_picture / 3600 if cache else 0.0,
        "disk_gb": needed,
        "free_disk_gb": shutil.disk_usage(_existing(output)).free / 1e9,
    }


def _missing(run: Any, cache: str | os.PathLike) -> int:
    """How many views of pictures are not in the cache."""
    pictures = pictures_of(run.sources)
    views = run.recipe.cached_views or 1
    if FINGERPRINT not in files_of(cache).names():
        return views * sum(1 for _ in pictures)
    held = FeatureCache(cache, run.encoder, run.recipe.cache_dtype)
    return views * sum(1 for _ in held.missing(pictures))


def _encode(encoder: Any, step: Step, device: torch.device) -> tuple[torch.Tensor | None, float]:
    """Query features of a step's pictures, and seconds for all of them. Once `SECONDS` are over, pictures that are not
    encoded take the features of one that is."""
    if step.pixel_values is None:
        return None, 0.0
    encoder.encode(step.pixel_values[:1])  # the first call of a process sets things up
    began, parts = time.perf_counter(), []
    for part in step.pixel_values.split(encoder.batch_size):
        parts.append(encoder.encode(part))
        _wait(device)
        if time.perf_counter() - began > SECONDS:
            break
    seconds, features = time.perf_counter() - began, torch.cat(parts)
    missing = len(step.pixel_values) - len(features)
    whole = torch.cat([features, features[:1].expand(missing, -1, -1)])
    return whole, seconds * len(whole) / len(features)


def _compute(run: Any, step: Step, features: torch.Tensor | None) -> tuple[float, float]:
    """Seconds of all packs of a step, forward and backward, and which share of their tokens was computed for that."""
    run.model.train()
    spread = run.recipe.shard_language  # all processes must take part in every pass
    began, tokens = time.perf_counter(), 0
    every = sum(len(pack.input_ids) for pack in step.packs)
    for pack, pictures in passes(step.packs, features, run.model.config, run.device, spread):
        torch.autograd.backward(run.loss(pack, pictures).sum())
        _wait(run.device)
        tokens += len(pack.input_ids)
        if time.perf_counter() - began > SECONDS and not spread:
            break
    run.model.zero_grad(set_to_none=True)
    share = min(1.0, tokens / every) if every else 1.0
    return (time.perf_counter() - began) / share, share


def _compute_whole(run: Any, step: Step) -> float:
    """Seconds of a whole step, forward and backward, where image encoder, Q-Former or language model learn."""
    run.loss.train()
    began = time.perf_counter()
    pictures = StepPictures(run.encoder, run.recipe, step)
    for pack, features in passes(step.packs, pictures.features, run.model.config, run.device, False):
        torch.autograd.backward(run.loss(pack, features).sum())
    pictures.backward(run.loss)
    _wait(run.device)
    run.model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def _update(run: Any) -> float:
    """Seconds of the optimiser, on a copy of the projection; where more learns, on one of its largest tensor, scaled
    up by the number of parameters."""
    from .trainer import make_optimizer

    if run.recipe.learns_projection_alone:
        layer, share = copy.deepcopy(run.model.model.language_projection).requires_grad_(True), 1.0
        optimizer = make_optimizer(layer, run.recipe)
    else:
        learning = [each for each in run.model.parameters() if each.requires_grad]
        layer = torch.nn.ParameterList([max(learning, key=torch.numel).detach().clone()])
        share = sum(map(torch.numel, layer)) / sum(map(torch.numel, learning))
        optimizer = torch.optim.AdamW(layer.parameters())
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    began = time.perf_counter()
    optimizer.step()
    _wait(run.device)
    return (time.perf_counter() - began) / share


def _wait(device: torch.device):
    """For an accelerator that computes behind one's back."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _memory_gb(device: torch.device) -> float:
    """Of the GPU, else of the machine, in GB (1e9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return psutil.virtual_memory().total / 1e9


def _disk_gb(run: Any, cache: str | os.PathLike | None, views: int, export: Path | None) -> float:
    """Checkpoints, with two numbers of the optimiser for each that learns; features; and at most a whole model."""
    learning = sum(each.numel() for each in run.model.parameters() if each.requires_grad)
    size = 4 * learning * (1 + 3 * (run.recipe.keep_checkpoints + 1))
    if cache is not None:
        queries = run.model.model.query_tokens[0].numel()
        size += views * queries * DTYPES[run.recipe.cache_dtype].itemsize
    if export is not None:
        size += sum(each.numel() * each.element_size() for each in run.model.parameters())
    return size / 1e9


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def advice(run: Any, plan: dict[str, Any], cache: str | os.PathLike | None) -> list[str]:
    """What to change, a sentence each; nothing where the run is reasonable."""
    said = []
    pictures = run.size
    if often := repetition(run.recipe, plan["steps"], pictures):
        said.append(often)
    elif plan["hours"] > DAY:
        daily = int(DAY * plan["steps"] / plan["hours"])
        said.append(f"In a day this machine makes {daily:,} of the {plan['steps']:,} steps: `--max-steps {daily}`.")
    alone = plan["hours"] * plan["seconds_encoding"] / max(plan["seconds"], 1e-9)
    shown = plan["steps"] * run.recipe.pictures_per_step
    if cache is None and shown > 2 * pictures and alone > max(0.2, 0.2 * plan["hours"]):
        views = run.recipe.cached_views or 1
        once = alone * views * pictures / shown
        said.append(
            f"Encoding pictures takes {_time(alone)} of this: `--cache FOLDER` does it once for all, {_time(once)}."
        )
    if plan["peak_memory_gb"] + plan["optimizer_memory_gb"] > 0.9 * plan["memory_gb"]:
        smaller = _smaller(run.packer.pack_tokens)
        said.append(
            f"Memory is nearly full: `--set pack_tokens={smaller}` or `--set gradient_checkpointing=true` needs less."
        )
    if plan["disk_gb"] > plan["free_disk_gb"]:
        said.append(f"The disk is too full by {plan['disk_gb'] - plan['free_disk_gb']:.1f} GB: choose another folder.")
    return said


def lines(plan: dict[str, Any]) -> Iterator[str]:
    """A plan as the verb prints it."""
    share = plan["measured_share"]
    how = "timed: a whole step" if share == 1 else f"timed: {share:.0%} of the tokens of a step, scaled up"
    yield (
        f"{plan['steps']:,} steps: {_time(plan['hours'])} on {plan['device']}, {plan['seconds']:.3g} s a step ({how})"
    )
    if plan["cache_hours"]:
        yield f"before them, query features for the cache: {_time(plan['cache_hours'])}"
    more = f" and {_size(plan['optimizer_memory_gb'])} for the optimiser" if plan["optimizer_memory_gb"] > 0.1 else ""
    yield f"memory: {plan['peak_memory_gb']:.3g} GB at most so far{more}, of {plan['memory_gb']:.3g} GB"
    yield f"disk: {_size(plan['disk_gb'])} at most, {plan['free_disk_gb']:,.0f} GB are free"
    yield (
        f"the first step: {plan['rows']:,} rows, {plan['tokens']:,} tokens in {plan['packs']:,} packs, "
        f"{plan['supervised_tokens_per_row']:.3g} tokens to learn a row, loss {plan['loss']:.4g} before training"
    )
    yield from (f"change: {each}" for each in plan["advice"])


def _time(hours: float) -> str:
    if hours < 2 / 60:
        return f"{hours * 3600:.0f} seconds"
    return f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:,.1f} hours"


def _size(gb: float) -> str:
    return f"{gb * 1000:.3g} MB" if gb < 1 else f"{gb:,.1f} GB"
