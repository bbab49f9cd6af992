"""transformers' `Trainer` with the packed loss: it brings the loop, devices, data parallelism and reporting."""

import math
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..checkpoint import finished_folder
from .distributed import from_all, from_first
from .encoder_gradient import StepPictures
from .features import BadPicture, PictureEncoder
from .frozen import load_trained, save_trained
from .loss import PackLoss
from .meter import RunMeter
from .optimizers import OPTIMIZERS
from .packing import Pack
from .parts import parameter_groups
from .recipe import Recipe
from .resuming import RUN, RunDescription
from .schedule import RateSchedule
from .sharding import passes
from .sources import BadPictures
from .steps import Step, StepDataset, prepared_ahead

TRAINER_STATE = "trainer_state.json"


class ProjectionTrainer(Trainer):
    """Trains what the model leaves unfrozen, one [`Step`] per optimiser step.

    Args:
        loss: The model with its loss.
        arguments: transformers' own; `gradient_accumulation_steps` stays 1, as a step is accumulated over its packs.
        recipe: Optimiser, schedule, checkpoints.
        steps: The training steps.
        validation: Steps of the validation pictures, or `None`.
        pictures: Encodes pictures of steps that come without features.
        sources: Names of the data sources, for the log.
        bad: Takes note of bad pictures.
        run: What checkpoints say of the run.
    """

    def __init__(
        self,
        loss: PackLoss,
        arguments: TrainingArguments,
        recipe: Recipe,
        steps: StepDataset,
        validation: StepDataset | None,
        pictures: PictureEncoder,
        sources: list[str],
        bad: BadPictures,
        run: RunDescription,
    ):
        self.recipe, self.validation, self.pictures, self.bad = recipe, validation, pictures, bad
        self.sources, self.run, self.pack_loss = sources, run, loss
        self._per_source = torch.zeros(len(sources), 2, dtype=torch.float64)
        self.steps, self.trained, self.output = steps, loss.model, Path(arguments.output_dir or ".")
        optimizer = make_optimizer(loss, recipe)
        schedule = RateSchedule(optimizer, recipe.rates(steps.order.steps_per_epoch))
        optimizers: Any = (optimizer, schedule)
        super().__init__(
            model=loss,
            args=arguments,
            train_dataset=steps,
            eval_dataset=validation,
            optimizers=optimizers,
        )
        size = pictures.image_processor.size
        shape = (size["height"], size["width"])
        uncounted = "parts that learn whole are not" if recipe.learns_whole_parts else ""
        self.meter = RunMeter(loss.model, shape, self.args.device, self._sums, self.args.world_size, uncounted)

    def get_train_dataloader(self) -> DataLoader:
        """Steps in their order; see `prepared_ahead`."""
        return prepared_ahead(self.steps, self.args.dataloader_num_workers)

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """The next step; what training waits for is the time of decoding."""
        with self.meter.clock.stage("decode"):
            return super().get_batch_samples(*arguments, **named)

    def training_step(self, model: nn.Module, inputs: Step, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over the packs of a step; gradients are exchanged with the last of them.

        Returns:
            Loss of the whole step over all processes, as the recipe defines it.

        Raises:
            ValueError: The loss is not a number.
        """
        model.train()
        with self.meter.clock.stage("encode"):
            pictures = StepPictures(self.pictures, self.recipe, inputs)
        forwards = self._passes(inputs.packs, pictures.features)
        total = self._count(inputs, sum(len(pack.input_ids) for pack, _ in forwards))
        with self.meter.clock.stage("language_model"):
            loss = self._learn(model, forwards or [(None, None)], total)
        if self.recipe.learns_whole_parts:
            with self.meter.clock.stage("encode"):
                pictures.backward(model)
        (loss,) = self._sums(loss)
        self.meter.clock.start("optimiser")  # which `MetricsLog` stops; clipping is a part of it
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss of step {self.state.global_step + 1} is {loss}: the language model overflows in "
                f"{str(self.pictures.model.dtype).removeprefix('torch.')}, or the learning rate is too high. Go on "
                "from the last checkpoint with dtype bfloat16 or float32, or begin again with a lower learning rate."
            )
        return torch.tensor(loss, device=self.args.device)

    def _learn(self, model: nn.Module, forwards: list, total: float) -> float:
        loss = 0.0
        for number, (pack, features) in enumerate(forwards, 1):
            last = number == len(forwards) and not self.recipe.learns_whole_parts
            with nullcontext() if last else _without_exchange(model):
                loss += self._backward(model, pack, features, total)
        return loss

    def _backward(self, model: nn.Module, pack: Any, features: Any, total: float) -> float:
        with self.compute_loss_context_manager():
            losses = model(pack, features)
        weighted = losses if pack is None else losses * pack.weights
        share = weighted.sum() / max(total, torch.finfo(torch.float32).tiny)
        if share.requires_grad:
            # Data parallelism averages gradients over processes, but the step is a sum over them.
            self.accelerator.backward(share * self.args.world_size)
        if pack is not None:
            self._note_sources(pack, losses.detach())
        return share.item()

    def _passes(self, packs: list[Pack], features: torch.Tensor | None) -> list[tuple[Pack, torch.Tensor | None]]:
        return passes(packs, features, self.pictures.model.config, self.args.device, self.recipe.shard_language)

    def _note_sources(self, pack: Pack, losses: torch.Tensor):
        sources, losses, counted = pack.sources.cpu(), losses.cpu().double(), (pack.weights > 0).cpu().double()
        self._per_source[:, 0].index_add_(0, sources, losses * counted)
        self._per_source[:, 1].index_add_(0, sources, counted)

    def _count(self, step: Step, computed: int) -> float:
        """Takes note of a step's size and bad pictures in all processes, and returns the weight of all its targets."""
        weight = sum(float(pack.weights.sum()) for pack in step.packs)
        supervised = sum(len(pack.targets) for pack in step.packs)
        own = (step.rows, step.tokens, supervised, step.row_tokens, computed, self.floating_point_ops(step))
        weight, *counts, bad = self._sums(weight, *own, len(step.bad))
        for name, count in zip(self.meter.counts, counts, strict=True):
            self.meter.counts[name] += int(count)
        if bad:
            self._watch_all(step.bad)
        return weight

    def _watch_all(self, bad: list[BadPicture]):
        """Every process learns of every bad picture, so that all stop or none."""
        for each in from_all(bad):
            self.bad.note(each)

    def _sums(self, *values: float) -> list[float]:
        """Sums of numbers over all processes."""
        if self.args.world_size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return self.accelerator.reduce(numbers, "sum").tolist()

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        """Nothing: the weights of a step's packs are its number of items."""
        return None

    def floating_point_ops(self, inputs: Step) -> int:
        """Of this process's share of a step; see `operations.py`."""
        return self.meter.operations_of(inputs, self.pack_loss.packed)

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Adds the loss of each source and the use of time since the last time, and the epoch of the data."""
        if "loss" in logs:
            sums = self._sums(*self._per_source.flatten().tolist())
            for name, loss, count in zip(self.sources, sums[::2], sums[1::2], strict=True):
                if count and len(self.sources) > 1:
                    logs[f"loss/{name}"] = loss / count
            self._per_source.zero_()
            logs |= self.meter.since_last(self.state.global_step)
        if "train_runtime" in logs:
            logs |= self.meter.whole()
        self.state.epoch = self.state.global_step / self.steps.order.steps_per_epoch
        super().log(logs)

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Loss on the validation pictures, as the recipe defines it, over all of them."""
        self.model.eval()
        sums, bad = torch.zeros(2, dtype=torch.float64), []
        workers = self.args.dataloader_num_workers
        for step in prepared_ahead(self.validation, workers) if self.validation is not None else ():
            bad += step.bad
            features = self.pictures.features(step.query_features, step.pixel_values)
            for pack, pictures in self._passes(step.packs, features):
                # In double precision on the CPU: Apple's GPUs have none.
                weights = pack.weights.cpu().double()
                losses = self.model(pack, pictures).cpu().double()
                sums += torch.stack([(losses * weights).sum(), weights.sum()])
        loss, weight = self._sums(*sums.tolist())
        self._watch_all(bad)
        metrics = {f"{metric_key_prefix}_loss": loss / weight if weight else math.nan}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train()
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any):
        """What learns, optimiser, schedule, random state and position, complete or not at all."""
        folder = self.output / f"checkpoint-{self.state.global_step}"
        if self.args.world_size == 1:
            with finished_folder(folder, replace=True) as temporary:
                self._write_checkpoint(temporary)
        else:
            # One process makes the folder and renames it; the others add their random state in between.
            made = finished_folder(folder, replace=True) if self.args.process_index == 0 else nullcontext()
            with made as temporary:
                shared: Any = from_first(temporary)
                self._write_checkpoint(shared)
                self.accelerator.wait_for_everyone()
            self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._remove_old_checkpoints()

    def _write_checkpoint(self, folder: Path):
        try:
            self._write_state(folder)
        except (RuntimeError, SafetensorError) as error:  # how torch and safetensors tell of a full disk
            raise OSError(f"{folder.parent} cannot take a checkpoint: {str(error).splitlines()[0]}") from None

    def _write_state(self, folder: Path):
        self._save_rng_state(str(folder))
        if self.args.should_save:
            save_trained(self.trained, folder)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self.state.save_to_json(str(folder / TRAINER_STATE))
            run = self.run.model_copy(update={"bad_pictures": list(self.bad.found.values())})
            (folder / RUN).write_text(run.model_dump_json(indent=2), encoding="utf-8")

    def _remove_old_checkpoints(self):
        kept = re.compile(r"checkpoint-(\d+)")
        folders = [each for each in self.output.iterdir() if kept.fullmatch(each.name)]
        folders.sort(key=lambda each: int(each.name.partition("-")[2]))
        for folder in folders[: -self.recipe.keep_checkpoints]:
            shutil.rmtree(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None):
        load_trained(self.trained, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        with _whole(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None):
        with _whole(checkpoint):
            super()._load_rng_state(checkpoint)


@contextmanager
def _whole(checkpoint: str | None) -> Generator[None]:
    """Around the reading of a checkpoint's files: damage in them, whatever it does to torch, is a `ValueError`."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{checkpoint} is damaged: {reason}. Remove it to go on from the one before.") from None


def _without_exchange(model: nn.Module) -> Any:
    """Gradients stay in this process. (accelerate's own such context does nothing in a group of one, where data
    parallelism waits for every parameter all the same.)"""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def make_optimizer(loss: Any, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over what learns; parts beside the projection are groups of their own."""
    learning: Any = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    if recipe.learn != ["projection"] or recipe.learning_rates:
        learning = parameter_groups(loss.model, recipe)
    return OPTIMIZERS[recipe.optimizer](learning, recipe)


def newest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run: only complete ones bear the name `checkpoint-<step>`."""
    found = get_last_checkpoint(str(output))
    return Path(found) if found else None
