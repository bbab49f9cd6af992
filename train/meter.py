"""Where a run's time goes, how much of the device it uses, and when it will be over."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from .operations import Operations, Size, count_operations, measured_peak
from .steps import Step

STAGES = ("decode", "encode", "language_model", "optimiser")
COUNTS = ("rows", "tokens", "supervised_tokens", "row_tokens", "computed_tokens", "operations")
PENDING = 1000  # pairs of events after which their times are read

Sums = Callable[..., list[float]]


class StageClock:
    """Seconds of each stage of training, in this process.

    On CUDA the stages lie between events on the stream, which nothing waits for before the times are asked for;
    elsewhere between two looks at the clock.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device):
        self._by_events = device.type == "cuda"
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._pending: list[tuple[str, Any, Any]] = []
        self._running: tuple[str, Any] | None = None

    def start(self, stage: str):
        """From now on time belongs to `stage`, until `stop`."""
        self._running = (stage, self._moment())

    def stop(self):
        """The stage that was started is over."""
        if self._running is None:
            return
        (stage, begin), end = self._running, self._moment()
        self._running = None
        if not self._by_events:
            self._seconds[stage] += end - begin
            return
        self._pending.append((stage, begin, end))
        if len(self._pending) >= PENDING:
            self._read()

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """What happens inside belongs to a stage."""
        self.start(name)
        yield
        self.stop()

    def _moment(self) -> Any:
        if not self._by_events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> list[float]:
        """Seconds of each of `STAGES` so far."""
        self._read()
        return list(self._seconds.values())

    def _read(self):
        if self._pending:
            self._pending[-1][2].synchronize()
        for stage, begin, end in self._pending:
            self._seconds[stage] += begin.elapsed_time(end) / 1000
        self._pending.clear()


class RunMeter:
    """Counts and times of a run over all processes, since the last line of the log and in all.

    Args:
        model: The model in training.
        size: Height and width of its pictures.
        device: Where it is.
        sums: Sums of numbers over all processes; all of them ask at the same time.
        world: Number of processes.
        uncounted: Why operations are not to be counted, or nothing.

    Attributes:
        counts: Of all processes so far: rows, tokens of their packs, supervised ones, tokens that the rows have when
            each stands by itself, tokens that the language model was given, and floating point operations.
        uncounted: Why no operations are counted, or nothing.
    """

    def __init__(self, model: Any, size: Size, device: torch.device, sums: Sums, world: int = 1, uncounted: str = ""):
        self.clock, self.counts = StageClock(device), dict.fromkeys(COUNTS, 0)
        self._sums, self._world, self.uncounted = sums, world, uncounted
        try:
            self.operations: Operations | None = None if uncounted else count_operations(model.config, size)
        except Exception as error:  # a family that does not run without content; others count as before
            reason = (str(error).splitlines() or [""])[0][:100]
            self.operations, self.uncounted = None, f"{type(error).__name__}: {reason}"
        self._dtype, self._device, self.peak = model.dtype, device, 0.0

    def begin(self, step: int, steps: int):
        """Training begins, at `step` of `steps`: measures what the devices can do, and starts all clocks; in all
        processes."""
        (self.peak,) = self._sums(measured_peak(self._device, self._dtype))
        self._first_step, self._steps = step, steps
        self._start = self._before = self._moment()

    def _moment(self) -> tuple[float, list[float], dict[str, int]]:
        return time.perf_counter(), self.clock.seconds(), dict(self.counts)

    def operations_of(self, step: Step, packed: bool) -> int:
        """Of this process's share of a step; 0 where they cannot be counted."""
        encoded = 0 if step.pixel_values is None else len(step.pixel_values)
        return self.operations.step(step.packs, encoded, packed) if self.operations else 0

    def since_last(self, step: int) -> dict[str, float]:
        """What the log says of the time since this was asked last; in all processes.

        Returns:
            `rows_per_second`, `tokens_per_second`, `supervised_tokens_per_row`, `packing_efficiency` (tokens of packs
            over tokens computed), `row_tokens_per_token` (tokens of rows by themselves over tokens computed),
            `time/STAGE` and `time/other` (shares of the time, means over the processes), `mfu` (operations over those
            the devices could have done) and `hours_left`.
        """
        before, self._before = self._before, self._moment()
        values = self._between(before, self._before)
        passed = self._before[0] - self._start[0]
        (passed,) = self._sums(passed)
        done = max(1, step - self._first_step)
        return values | {"hours_left": (self._steps - step) * passed / self._world / done / 3600}

    def whole(self) -> dict[str, float]:
        """The same of the whole training, without `hours_left`; in all processes."""
        return self._between(self._start, self._moment())

    def _between(self, before: tuple, after: tuple) -> dict[str, float]:
        own = [after[0] - before[0], *(now - then for now, then in zip(after[1], before[1], strict=True))]
        wall, *stages = self._sums(*own)
        gained = {name: after[2][name] - before[2][name] for name in COUNTS}
        seconds, computed = max(wall / self._world, 1e-9), max(1, gained["computed_tokens"])
        values = {
            "rows_per_second": gained["rows"] / seconds,
            "tokens_per_second": gained["tokens"] / seconds,
            "supervised_tokens_per_row": gained["supervised_tokens"] / max(1, gained["rows"]),
            "packing_efficiency": gained["tokens"] / computed,
            "row_tokens_per_token": gained["row_tokens"] / computed,
        }
        shares = [stage / max(wall, 1e-9) for stage in stages]
        values |= {f"time/{name}": share for name, share in zip(STAGES, shares, strict=True)}
        values["time/other"] = max(0.0, 1 - sum(shares))
        if self.operations and self.peak:
            values["mfu"] = gained["operations"] / (seconds * self.peak)
        return values

    def summary(self, whole: dict[str, float]) -> list[str]:
        """Lines that say where the time of a run went, from `whole`."""
        parts = ", ".join(f"{name.replace('_', ' ')} {whole[f'time/{name}']:.0%}" for name in (*STAGES, "other"))
        dtype = str(self._dtype).removeprefix("torch.")
        used = f"operations are not counted ({self.uncounted})"
        if "mfu" in whole:
            used = f"{whole['mfu']:.1%} of the {self.peak / 1e9:,.4g} GFLOP/s measured in {dtype}"
        return [
            f"Time: {parts}.",
            f"Use: {used}; {whole['rows_per_second']:,.4g} rows/s, packing efficiency "
            f"{whole['packing_efficiency']:.2f}, {whole['row_tokens_per_token']:.2f} tokens of rows a token computed.",
        ]
