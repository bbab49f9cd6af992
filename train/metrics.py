"""What a run tells: JSON lines, a progress bar with throughput, a learning curve."""

import itertools
import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from ..checkpoint import finished_file, naming_full_disk
from ..data.json_files import json_lines
from .meter import RunMeter
from .recipe import Recipe

METRICS, RECIPE_FILE = "metrics.jsonl", "recipe.yaml"
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


class MetricsLog(TrainerCallback):
    """Writes every logged number as a line of `metrics.jsonl`, and shows progress with rows/s, tokens/s, how much of
    the device is used and when the run will be over; at the end, where its time went.

    Args:
        output: Folder of the run.
        meter: The trainer's.
        progress: Whether to show the bar.
    """

    def __init__(self, output: Path, meter: RunMeter, progress: bool = True):
        self.path, self.meter, self.progress = output / METRICS, meter, progress
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if state.is_world_process_zero:
            keep_lines_up_to(self.path, state.global_step)
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="train",
                unit="step",
                disable=not self.progress,
                dynamic_ncols=True,
            )
        self.meter.begin(state.global_step, state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any):
        self.meter.clock.stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        if state.global_step >= state.max_steps:
            control.should_log = True  # the loss since the last multiple of `log_steps`, or of a run shorter than it

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any):
        if not state.is_world_process_zero:
            return
        line = {"step": state.global_step, **logs, "peak_memory_gb": peak_memory_gb()}
        with naming_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self._bar is not None and "loss" in line:
            used = f", {line['mfu']:.0%} of peak" if "mfu" in line else ""
            self._bar.set_postfix_str(
                f"loss {line['loss']:.3f}, {line['rows_per_second']:.1f} rows/s, "
                f"{line['tokens_per_second']:.0f} tokens/s{used}, ends {expected_end(line['hours_left'])}"
            )
        if "train_runtime" in line and "time/other" in line:
            self.on_train_end(args, state, control)  # the bar is complete: what is said now stands below it
            for text in self.meter.summary(line):
                tqdm.write(text)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if self._bar is not None:
            self._bar.close()


def expected_end(hours: float) -> str:
    """The local time in so many hours, with its date unless it is near."""
    end = datetime.now() + timedelta(hours=hours)
    return end.strftime("%H:%M" if hours < 12 else "%Y-%m-%d %H:%M")


def keep_lines_up_to(path: Path, step: int):
    """Drops the lines of steps that a resumed run takes again."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with finished_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def peak_memory_gb() -> float:
    """Most memory this process has held, in GB (1e9 bytes): of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [line for _, line in json_lines(path)]


def draw_learning_curve(metrics: Path, picture: Path, compare: Path | None = None):
    """Loss (of every source where there are several, and of validation) and learning rate over steps, as a PNG.

    Args:
        metrics: The `metrics.jsonl` of a run.
        picture: Where the picture is written.
        compare: Folder of another run, whose curves are drawn dotted beside them, both with their optimisers.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    other = None if compare is None else compare / METRICS
    _draw_losses(axes, read_metrics(metrics), _title(metrics) if other else "", "-")
    if other:
        _draw_losses(axes, read_metrics(other), f"{_title(other)}, {other.parent.name}", ":")
    axes.set(xlabel="step", ylabel="loss per target")
    if axes.lines:
        axes.legend(loc="upper right")
    rates = [(line["step"], line["learning_rate"]) for line in read_metrics(metrics) if "learning_rate" in line]
    if rates:
        second = axes.twinx()
        second.plot(*zip(*rates, strict=True), color="0.75", linewidth=1, label="learning rate")
        second.set_ylabel("learning rate")
    with finished_file(picture) as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_losses(axes: Any, lines: list[dict[str, Any]], title: str, style: str):
    names = sorted({key for line in lines for key in line if key == "loss" or key.startswith("loss/")})
    for name, colour in zip([*names, "eval_loss"], itertools.cycle(COLOURS), strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            label = {"loss": "training", "eval_loss": "validation"}.get(name, name.removeprefix("loss/"))
            # There are few evaluations, in a short run a single one: a line alone would not show it.
            marked: dict[str, Any] = {"marker": "o", "color": "black"} if name == "eval_loss" else {"color": colour}
            label = f"{label} ({title})" if title else label
            axes.plot(*zip(*points, strict=True), label=label, linestyle=style, **marked)


def _title(metrics: Path) -> str:
    """The optimiser of a run."""
    return Recipe.load(metrics.with_name(RECIPE_FILE)).optimizer


def check_comparable(run: Path) -> Path:
    """The folder of a run that another one can be compared with.

    Raises:
        FileNotFoundError: It has no `metrics.jsonl` or no `recipe.yaml`.
        ValueError: They are damaged.
    """
    for name in (METRICS, RECIPE_FILE):
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} has no {name}: name the output folder of a run to compare with.")
    read_metrics(run / METRICS)
    Recipe.load(run / RECIPE_FILE)
    return run
