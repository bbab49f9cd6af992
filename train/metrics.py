"""What a run tells: JSON lines, a progress bar with throughput, a learning curve."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback

from ..checkpoint import finished_file, naming_full_disk
from ..data.json_files import json_lines


class MetricsLog(TrainerCallback):
    """Writes every logged number as a line of `metrics.jsonl` and shows progress with rows/s, tokens/s and ETA.

    Args:
        output: Folder of the run.
        throughput: Counters of the trainer: rows, tokens and supervised tokens of all processes.
        progress: Whether to show the bar.
    """

    def __init__(self, output: Path, throughput: dict[str, int], progress: bool = True):
        self.path, self.throughput, self.progress = output / "metrics.jsonl", throughput, progress
        self._bar: tqdm | None = None
        self._last = (time.perf_counter(), dict(throughput))

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
        self._last = (time.perf_counter(), dict(self.throughput))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        if state.global_step >= state.max_steps:
            control.should_log = True  # the loss since the last multiple of `log_steps`, or of a run shorter than it

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any):
        if not state.is_world_process_zero:
            return
        line = {"step": state.global_step, **{key: value for key, value in logs.items() if key != "total_flos"}}
        if "loss" in logs:
            line |= self._rates()
        line["peak_memory_gb"] = peak_memory_gb()
        with naming_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self._bar is not None and "loss" in line:
            self._bar.set_postfix_str(
                f"loss {line['loss']:.3f}, {line['rows_per_second']:.1f} rows/s, "
                f"{line['tokens_per_second']:.0f} tokens/s"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any):
        if self._bar is not None:
            self._bar.close()

    def _rates(self) -> dict[str, float]:
        now, counts = time.perf_counter(), dict(self.throughput)
        (before, last), self._last = self._last, (now, counts)
        gained = {key: counts[key] - last[key] for key in counts}
        seconds = max(now - before, 1e-9)
        return {
            "rows_per_second": gained["rows"] / seconds,
            "tokens_per_second": gained["tokens"] / seconds,
            "supervised_tokens_per_row": gained["supervised_tokens"] / max(1, gained["rows"]),
        }


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


def draw_learning_curve(metrics: Path, picture: Path):
    """Loss (of every source where there are several, and of validation) and learning rate over steps, as a PNG."""
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    names = sorted({key for line in lines for key in line if key == "loss" or key.startswith("loss/")})
    for name in [*names, "eval_loss"]:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            label = {"loss": "training", "eval_loss": "validation"}.get(name, name.removeprefix("loss/"))
            axes.plot(*zip(*points, strict=True), label=label, linestyle="--" if name == "eval_loss" else "-")
    axes.set(xlabel="step", ylabel="loss per target")
    if axes.lines:
        axes.legend(loc="upper right")
    rates = [(line["step"], line["learning_rate"]) for line in lines if "learning_rate" in line]
    if rates:
        second = axes.twinx()
        second.plot(*zip(*rates, strict=True), color="0.75", linewidth=1, label="learning rate")
        second.set_ylabel("learning rate")
    with finished_file(picture) as temporary:
        figure.savefig(temporary, dpi=120)
