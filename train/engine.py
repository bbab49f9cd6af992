"""`train`: a model, data and a recipe in, a trained projection out; `dry_run`: what that will take."""

import copy
import json
import math
import os
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import PrinterCallback, TrainingArguments

from ..checkpoint import finished_file, locked_folder, remove_unfinished
from ..extras import require
from .distributed import TIMEOUT, from_first, init_processes, processes_here
from .export import check_exportable
from .export import export as export_model
from .features import BadPicture, FeatureCache, PictureEncoder
from .frozen import load_model, load_trained, save_trained
from .loss import PackLoss
from .metrics import METRICS, RECIPE_FILE, MetricsLog, check_comparable, draw_learning_curve
from .order import SampleOrder
from .packing import Packer
from .packing_proof import exact_packer, longest_groups
from .parts import check_options
from .plan import advice, fitting_in_memory, measure, repetition, tokens_of_a_pack
from .recipe import Recipe
from .reporting import Reports, check_report
from .resuming import check_resumable, describe_run
from .sampling import Samples
from .selection import CocoTwins
from .sharding import shard_language
from .sizing import by_heart, is_fresh, sized
from .sources import BadPictures, SourceData, fill_cache, read_data
from .steps import RowEncoder, Step, StepDataset, first_rows, leave_out_long
from .streaming import Stream, StreamProgress, sized_for_stream, streamed
from .trainer import ProjectionTrainer, newest_checkpoint
from .workers import spare_workers


@dataclass(frozen=True)
class Training:
    """What `train` returns.

    Args:
        model: The model with the trained projection, in eval mode.
        steps: Optimiser steps in all.
        loss: Training loss of the last logged steps.
        eval_loss: Loss on the validation pictures, or `None`.
        output: Folder with `projection.safetensors`, `metrics.jsonl`, `learning_curve.png`, `recipe.yaml` and the
            checkpoints.
        bad_pictures: Pictures that could not be read, by any process.
        answers: With `overfit`, the expected and the generated answer for each of the pictures; else empty.
    """

    model: Any
    steps: int
    loss: float
    eval_loss: float | None
    output: Path
    bad_pictures: list[BadPicture]
    answers: list[tuple[str, str]] = field(default_factory=list)


def train(
    model: Any,
    data: Any = None,
    output: str | os.PathLike = "run",
    recipe: Recipe | str | os.PathLike = "auto",
    *,
    processor: Any = None,
    cache: str | os.PathLike | None = None,
    projection: str | os.PathLike | None = None,
    resume: bool = True,
    max_steps: int | None = None,
    overfit: int | None = None,
    export: str | os.PathLike | None = None,
    report_to: str = "none",
    compare: str | os.PathLike | None = None,
    progress: bool = True,
    workers: int | None = None,
    **changes: Any,
) -> Training:
    """Trains the projection of a model on pictures and texts, and what else its recipe names; under torchrun or
    `accelerate launch`, in all processes together.

    Args:
        model: Folder or Hub name of a jminigpt4 checkpoint, or a loaded model (then give its `processor`).
        data: A file or folder, a [`DataSource`], a list of them, or a list of [`Row`]; by default the recipe's own.
        output: Folder of the run. A run that was interrupted goes on from its newest complete checkpoint.
        recipe: A [`Recipe`], the name of one, or a YAML file; by default `auto`, whose numbers follow from the size of
            the data.
        processor: The processor of a loaded model.
        cache: Folder or URL of the query-feature cache; without one, pictures are encoded once a step.
        projection: A projection to begin with: a file, or the output folder of another run (stage 2 after stage 1).
        resume: Whether to go on where an earlier run in `output` stopped; off, its checkpoints are an error.
        max_steps: Stop after so many optimiser steps.
        overfit: Learn so many pictures by heart, which shows that data, tokens and labels belong together.
        export: Folder to make, at the end, of the whole model with all that was trained; see [`export`].
        report_to: Where transformers' `Trainer` reports to, besides `metrics.jsonl`: `tensorboard` and `wandb` show
            samples with their pictures as well.
        compare: Output folder of another run, whose curves are drawn beside this one's in `learning_curve.png`.
        progress: Whether to show progress bars.
        workers: Processes that decode pictures for a cache, or prepare steps ahead; `None`: as many as the machine can
            spare, see [`spare_workers`].
        changes: Values of the recipe to change, such as `epochs=1`.

    Returns:
        [`Training`].

    Raises:
        FileExistsError: `output` holds checkpoints and `resume` is off, or `export` is there already.
        FileNotFoundError: Model, data, recipe or the run to compare with is not there.
        ImportError: The package that `report_to` names is not installed.
        ValueError: Data or recipe is not in order, too many pictures are bad, a loaded model is to be exported, or
            processes are not started as [`init_processes`] needs it.
    """
    if export is not None:
        if not isinstance(model, str | os.PathLike):
            raise ValueError("Only a model given as a folder or Hub name can be exported: its files are taken over.")
        if Path(export).exists():
            raise FileExistsError(f"{export} exists already: choose another folder for the exported model.")
    check_report(report_to)
    require("train", "yaml", "matplotlib")  # what is written at the end
    other = [] if compare is None else [check_comparable(Path(compare))]
    recipe = _recipe(recipe, **changes)
    if export is not None:
        check_exportable(model, recipe)
    given = (model, data, recipe, processor, cache, projection, max_steps, overfit, progress)
    run = _prepare(*given, output=Path(output), workers=workers)
    run.beside = other
    with run.held:
        result = run.train(Path(output), resume, report_to, progress, workers)
        if overfit is not None:
            result = replace(result, answers=run.answers())
    if export is not None:
        if run.state.is_main_process:
            export_model(model, output, export)
        run.state.wait_for_everyone()
    return result


def dry_run(
    model: Any,
    data: Any = None,
    recipe: Recipe | str | os.PathLike = "auto",
    *,
    output: str | os.PathLike = "run",
    cache: str | os.PathLike | None = None,
    export: str | os.PathLike | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What a run will take on this machine: one step, forward and backward, without learning from it. Writes nothing.

    Args:
        model, data, recipe, output, cache, export: As of [`train`], whose errors these are as well.
        options: `processor`, `projection`, `max_steps`, `overfit`, `progress` and changes of [`train`].

    Returns:
        `steps` of the run; `rows`, `tokens`, `packs` and `supervised_tokens_per_row` of the first step, over all
        processes; the `loss` of its first pack; `seconds` of a step, `seconds_encoding` of its pictures and
        `measured_share`, how much of its tokens was computed (a long step is scaled up); `peak_memory_gb` so far of
        the process that took most, the `optimizer_memory_gb` that a run needs on top, two float32 numbers for every
        parameter that learns, and the `memory_gb` of the `device`; `hours` of all steps and validations at this
        pace, `cache_hours` of features that are not in the cache; `disk_gb` and `free_disk_gb`; and `advice`,
        sentences that say what to change.
    """
    run = _prepare(model, data, recipe, cache=cache, fill=False, **options)
    with run.held, fitting_in_memory(run.packer.pack_tokens):
        plan = run.dry_run(cache, Path(output), None if export is None else Path(export))
    return plan | {"advice": advice(run, plan, cache)}


def _prepare(*arguments: Any, **named: Any) -> "Run":
    """See [`_prepared`]; what is begun here ends with the run, or with an error on the way to it."""
    with ExitStack() as held:
        run = _prepared(held, *arguments, **named)
        run.held = held.pop_all()
    return run


def _prepared(
    held: ExitStack,
    model: Any,
    data: Any,
    recipe: Recipe | str | os.PathLike,
    processor: Any = None,
    cache: str | os.PathLike | None = None,
    projection: str | os.PathLike | None = None,
    max_steps: int | None = None,
    overfit: int | None = None,
    progress: bool = True,
    output: Path | None = None,
    fill: bool = True,
    workers: int | None = None,
    **changes: Any,
) -> "Run":
    """All that comes before the first step; arguments as of `train`, and `fill`: off, steps encode their pictures even
    where there is a cache, and nothing is written. A stream without an `output` leaves nothing behind."""
    state = init_processes()
    recipe = _recipe(recipe, **changes)
    check_options(recipe, cache, projection)
    if overfit is not None:
        recipe, max_steps = by_heart(recipe, overfit), max_steps or 200
    data, twins, stream = data if data is not None else recipe.data, CocoTwins(recipe.coco_twins), None
    if shards := streamed(data, recipe, cache, max_steps):
        stream = held.enter_context(closing(Stream(shards, recipe, twins, output, state)))
    sources = stream.first() if stream else read_data(data, recipe, twins)
    if overfit is not None:
        sources = _first_groups(sources, overfit)
    sizes = sum(len(each.training) for each in sources), sum(len(each.validation) for each in sources)
    model, processor = load_model(model, processor, recipe)
    fit = partial(leave_out_long, model.config.get_text_config(), RowEncoder(processor, recipe.max_answer_tokens))
    sources = fit(sources, state.is_main_process)
    spread = shard_language(model, state) if recipe.shard_language else []
    if model.device != state.device:
        model.to(state.device)
    if projection is not None:
        load_trained(model, Path(projection))
    if stream is not None:
        stream.rows.fit = fit
        if overfit is None:
            recipe, sizes = sized_for_stream(recipe, stream.rows.share, max_steps, sizes[1])
        stream.recipe = recipe
    if recipe.auto:
        recipe, taken = sized(recipe, *sizes, is_fresh(model.model.language_projection), max_steps)
        if state.is_main_process:
            tqdm.write(taken)
    encoder = PictureEncoder(model, processor, views=recipe.cached_views if cache else 0)
    bad = BadPictures(recipe, sources)
    pictures: PictureEncoder | FeatureCache = encoder
    if cache is not None and fill:
        pictures = FeatureCache(cache, encoder, recipe.cache_dtype)
        sources = fill_cache(pictures, sources, bad, state, progress, workers)
    run = Run(model, processor, sources, encoder, pictures, recipe, bad, state, max_steps, None if overfit else stream)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(run.loss, [f"model.{name}" for name in spread])
    return run


def _recipe(recipe: Recipe | str | os.PathLike, **changes: Any) -> Recipe:
    return (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).with_(**changes)


def _first_groups(sources: list[SourceData], count: int) -> list[SourceData]:
    kept = []
    for source in sources:
        if count > 0:
            kept.append(replace(source, training=source.training[:count]))
            count -= len(kept[-1].training)
    return kept


class Run:
    """A model with its data, ready to train.

    Args:
        model, processor: From `load_model`.
        sources: Groups of rows of each data source.
        encoder: Encodes pictures.
        pictures: Where steps take pictures from: `encoder`, or the cache.
        recipe: The numbers.
        bad: Takes note of bad pictures.
        state: accelerate's: which of how many processes this is.
        max_steps: Stop after so many steps.
        stream: Where the steps' groups come from, if not from `sources`, which are its first window then.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        sources: list[SourceData],
        encoder: PictureEncoder,
        pictures: PictureEncoder | FeatureCache,
        recipe: Recipe,
        bad: BadPictures,
        state: PartialState,
        max_steps: int | None,
        stream: Stream | None = None,
    ):
        self.stream, self.held = stream, ExitStack()  # what ends with the run
        self.model, self.processor, self.sources, self.encoder = model, processor, sources, encoder
        self.pictures, self.recipe, self.bad, self.state = pictures, recipe, bad, state
        self.beside: list[Path] = []  # runs whose learning curves are drawn beside this one's
        self.loss, self.device = PackLoss(model), state.device or torch.device("cpu")
        self.rows = RowEncoder(processor, recipe.max_answer_tokens)
        groups = [source.training for source in sources]
        self.packer = Packer(
            model.config.image_token_id,
            model.config.num_query_tokens,
            tokens_of_a_pack(recipe, self.device),
            prefix=() if _no_prefix(recipe) else self.rows.prefix(first_rows(groups, 3)),
            mean_per_answer=recipe.loss == "answer_mean",
            share=recipe.share_prefix,
        )
        weights = [source.weight for source in sources]
        if stream is None:
            order = SampleOrder(
                [len(each) for each in groups],
                recipe.pictures_per_step,
                recipe.seed,
                [1.0 if weight is None else weight for weight in weights] if any(weights) else None,
                recipe.steps_per_epoch,
            )
        else:
            order, groups = stream.order(recipe.steps_per_epoch or max_steps or 1), stream.groups()
        total = recipe.epochs * order.steps_per_epoch
        self.steps = self._dataset(groups, order, recipe, min(total, max_steps or total))
        self.validation = self._validation()
        self.description = describe_run(order, recipe, sources, isinstance(pictures, FeatureCache))

    def _dataset(self, groups: list, order: Any, recipe: Recipe, steps: int) -> StepDataset:
        return StepDataset(
            groups,
            order,
            self.rows,
            self.packer,
            recipe,
            [source.prompts for source in self.sources],
            self.pictures,
            steps,
            self.state.process_index,
            self.state.num_processes,
            str if self.stream is None else self.stream.rows.name_of,
        )

    @property
    def size(self) -> float:
        """Number of groups to learn from; of a stream, nobody knows."""
        return math.inf if self.stream else sum(len(source.training) for source in self.sources)

    def _begin(self, checkpoint: Path | None):
        """Has a stream fetch what comes after a checkpoint."""
        if self.stream is not None:
            self.stream.start(int(checkpoint.name.partition("-")[2]) if checkpoint else 0, len(self.steps))

    def _validation(self) -> StepDataset | None:
        held = [source.validation for source in self.sources]
        if not any(held):
            return None
        order = SampleOrder([len(each) for each in held], self.recipe.pictures_per_step, self.recipe.seed)
        return self._dataset(held, order, self.recipe.with_(augmentation=False), order.steps_per_epoch)

    def train(
        self,
        output: Path,
        resume: bool = True,
        report_to: str = "none",
        progress: bool = True,
        workers: int | None = None,
    ) -> Training:
        """Trains from the newest checkpoint in `output`, or from the start; arguments as of `train`.

        Raises:
            BlockingIOError: Another process trains in `output`.
            ValueError: A step does not fit into the device's memory, or as of the function `train`.
        """
        with self._alone_in(output), fitting_in_memory(self.packer.pack_tokens):
            return self._train(output, resume, report_to, progress, workers)

    @contextmanager
    def _alone_in(self, output: Path) -> Generator[None]:
        with ExitStack() as held:
            refused = None
            if self.state.is_main_process:
                try:
                    held.enter_context(locked_folder(output))
                except OSError as error:
                    refused = error
            if refused := from_first(refused):  # all processes stop, or none
                raise refused
            yield
            self.state.wait_for_everyone()

    def _train(self, output: Path, resume: bool, report_to: str, progress: bool, workers: int | None) -> Training:
        if self.state.is_main_process:
            remove_unfinished(output)
        # What was unfinished may be put back as a checkpoint: the first process looks after that, and all take its.
        checkpoint = from_first(newest_checkpoint(output) if self.state.is_main_process else None)
        if checkpoint is not None:
            if not resume:
                raise FileExistsError(f"{output} holds {checkpoint.name} of an earlier run: choose another output.")
            for each in check_resumable(checkpoint, self.description):
                self.bad.found.setdefault(each.name, each)
        self._begin(checkpoint)
        self._prove_packing()
        trainer = self._trainer(output, report_to, progress, workers)
        if self.state.is_main_process:
            _write_recipe(self.recipe, output)
        self._note_warmup()
        often = repetition(self.recipe, len(self.steps), self.size)
        if often and self.state.is_main_process:
            tqdm.write(f"Warning: {often}")
        if checkpoint is None:
            self.first_loss()
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        if self.validation is not None and len(self.steps) % self.eval_steps:
            evaluated.append(trainer.evaluate()["eval_loss"])
        if self.state.is_main_process:
            self._write_results(output)
            self.reports.finish()
        self.state.wait_for_everyone()
        self.model.eval()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return Training(
            model=self.model,
            steps=result.global_step,
            loss=losses[-1] if losses else math.nan,
            eval_loss=evaluated[-1] if evaluated else None,
            output=output,
            bad_pictures=list(self.bad.found.values()),
        )

    @property
    def _epoch(self) -> int:
        return min(self.steps.order.steps_per_epoch, len(self.steps))

    @property
    def eval_steps(self) -> int:
        """Every how many steps the validation pictures are looked at."""
        return self.recipe.eval_steps or self._epoch

    def _trainer(self, output: Path, report_to: str, progress: bool, workers: int | None) -> ProjectionTrainer:
        if workers is None:  # steps from a cache take next to no time
            encodes = isinstance(self.steps.pictures, PictureEncoder)
            workers = spare_workers(self.device, processes_here()) if encodes else 0
        arguments = TrainingArguments(
            output_dir=str(output),
            max_steps=len(self.steps),
            per_device_train_batch_size=1,
            max_grad_norm=self.recipe.max_grad_norm,
            # rinna's files are float16: what passes through such a model needs its gradient scaled.
            fp16=self.model.dtype == torch.float16 and self.device.type == "cuda",
            use_cpu=self.device.type == "cpu",
            ddp_timeout=int(TIMEOUT.total_seconds()),
            logging_steps=self.recipe.log_steps,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=self.recipe.save_steps or self._epoch,
            eval_strategy="steps" if self.validation is not None else "no",
            eval_steps=self.eval_steps,
            seed=self.recipe.seed,
            report_to=report_to,
            disable_tqdm=True,
            dataloader_num_workers=workers,
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
        )
        # One process trains on one device: its packs cannot be split as batches are, by `torch.nn.DataParallel`.
        arguments._n_gpu = min(1, arguments.n_gpu)
        titles = [source.title for source in self.sources]
        trainer = ProjectionTrainer(
            self.loss,
            arguments,
            self.recipe,
            self.steps,
            self.validation,
            self.encoder,
            titles,
            self.bad,
            self.description,
        )
        trainer.remove_callback(PrinterCallback)
        if self.stream is not None:
            trainer.add_callback(StreamProgress(self.stream, self.bad))
        trainer.add_callback(MetricsLog(output, trainer.meter, progress))
        self.reports = Reports(trainer.callback_handler.callbacks, self.recipe)
        trainer.add_callback(self.reports)
        if self.recipe.sample_steps or self.reports:
            trainer.add_callback(self._samples(output, self.recipe.sample_steps or self._epoch))
        return trainer

    def _samples(self, output: Path, steps: int) -> Samples:
        held = (group for source in self.sources for group in source.validation or source.training)
        rows = [group.rows[0] for group in islice((group for group in held if group.pictures), 4)]
        return Samples(
            self.model, self.processor, rows, self.encoder, output, steps,
            everywhere=self.recipe.shard_language, encoder_learns=self.recipe.encoder_learns, reports=self.reports,
        )  # fmt: skip

    def answers(self) -> list[tuple[str, str]]:
        """The expected and the generated answer to the first row about each group of pictures in training."""
        rows = [group.rows[0] for source in self.sources for group in source.training]
        lines = Samples(self.model, self.processor, rows, self.encoder, Path(), 1).lines(0)
        return [(line["expected"], line["answer"]) for line in lines]

    def _write_results(self, output: Path):
        save_trained(self.model, output)
        if self.bad.found:
            lines = [json.dumps({"picture": each.name, "reason": each.reason}) for each in self.bad.found.values()]
            with finished_file(output / "bad_pictures.jsonl") as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if bad_rows := [json.dumps(asdict(each)) for source in self.sources for each in source.bad_rows]:
            with finished_file(output / "bad_rows.jsonl") as temporary:
                temporary.write_text("\n".join(bad_rows) + "\n", encoding="utf-8")
        if (output / METRICS).is_file():
            draw_learning_curve(output / METRICS, output / "learning_curve.png", *self.beside)

    def _first_step(self) -> Step:
        """The first share of a step that holds something to learn, the same one in every process.

        Raises:
            ValueError: There is none, or too many pictures turned out to be bad on the way.
        """
        shares = copy.copy(self.steps)
        here = sum(len(source.training) for source in self.sources) // self.recipe.pictures_per_step
        for index in range(len(self.steps) if self.stream is None else max(1, here)):
            for rank in range(self.steps.world):
                shares.rank = rank
                step = shares[index]
                for bad in step.bad:
                    self.bad.note(bad)
                if step.packs:
                    return step
        raise ValueError("No row of the data has a token to learn: are all pictures bad?")

    def _prove_packing(self):
        """Steps of plain rows where packs are not exact; found before anything is learnt, in a resumed run as well."""
        groups = longest_groups(self.sources, self.rows, self.packer.pack_tokens)
        packer = exact_packer(self.loss, self.packer, groups, self.state.is_main_process)
        for steps in (self.steps, self.validation):
            if steps is not None:
                steps.packer = packer

    @torch.no_grad()
    def first_loss(self) -> float:
        """Loss of the first pack before anything is learnt; says what is probably wrong where the number shows it.

        A loss of ln(vocabulary) means that the language model knows nothing: MiniGPT-4's users met 10.375 = ln 32000
        with the wrong or unloaded language model, and NaN where float16 overflowed.

        Raises:
            ValueError: The loss is not a number, or no row has a token to learn.
        """
        step = self._first_step()
        self.model.eval()
        pack, pixels = step.packs[0], None
        if step.pixel_values is not None and len(pack.pictures):
            shown, places = pack.pictures.unique(return_inverse=True)
            pack, pixels = replace(pack, pictures=places), step.pixel_values[shown]
        features = self.encoder.features(step.query_features, pixels)
        loss = self.loss(pack.to(self.device), features).mean().item()
        if not math.isfinite(loss):
            dtype = str(self.model.dtype).removeprefix("torch.")
            raise ValueError(
                f"The loss before the first step is {loss}: the language model in {dtype} overflows, or its weights "
                "are not numbers. Load it with dtype bfloat16 or float32, and check that its files are whole."
            )
        blind = math.log(self.model.config.text_config.vocab_size)
        if self.state.is_main_process and abs(loss - blind) < 0.02 * blind:
            tqdm.write(
                f"Warning: the loss before the first step is {loss:.3f} and ln(vocabulary) is {blind:.3f}: the "
                "language model guesses blindly. Were its weights loaded, and are they this tokenizer's?"
            )
        return loss

    def _note_warmup(self):
        """Says it in a line when the learning rate never leaves its warm-up: such a run learns next to nothing."""
        steps, recipe = len(self.steps), self.recipe
        if steps <= recipe.warmup_steps and self.state.is_main_process:
            per_epoch = self.steps.order.steps_per_epoch
            highest = max(map(recipe.rates(per_epoch), {steps - 1, min(steps, per_epoch) - 1}))
            tqdm.write(
                f"Warning: the {steps:,} steps of this run end before the {recipe.warmup_steps:,} of the warm-up: the "
                f"learning rate gets to {highest:.2g} and not to {recipe.learning_rate:.2g}. Set warmup_steps, or "
                "train longer."
            )

    def dry_run(self, cache: str | os.PathLike | None, output: Path, export: Path | None) -> dict[str, Any]:
        """See the function [`dry_run`]."""
        self._note_warmup()
        self._begin(None)
        self._prove_packing()
        loss = self.first_loss()
        plan = measure(self, cache, output, export)
        return plan | {"loss": loss, "device": self.device.type}


def _no_prefix(recipe: Recipe) -> bool:
    """A language model that learns, or has adapters, makes something else of the prefix every time, recomputed layers
    cannot take a filled cache, and spread layers would meet in a pass that only some processes need."""
    return bool(recipe.language_learns or recipe.gradient_checkpointing or recipe.shard_language)


def _write_recipe(recipe: Recipe, output: Path):
    import yaml

    text = yaml.safe_dump(recipe.values(), allow_unicode=True, sort_keys=False)
    with finished_file(output / RECIPE_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
