"""Rows on disk: how fast they are indexed, how soon a second run starts, what a training process holds of them.

    python benchmarks/data.py --quick       10,000 and 40,000 rows over 2,000 pictures, at most a minute
    python benchmarks/data.py               1 and 10 million rows over 100,000 pictures
    python benchmarks/data.py --rows 1000000 --pictures 1000000 --steps 100

Captions as JSON lines and pictures of 70 bytes are written to a temporary folder and deleted afterwards. Each line of
the table is two processes of their own, without a model:

- *indexing*: rows a second of the first run, all that comes before a model is loaded, and its peak memory;
- *start*: seconds of the same in a second run;
- *memory*: peak of its resident memory above what it had before, libraries loaded, while it reads the groups of
  `--steps` steps of 256, evenly over three epochs; mapped pages count while they are mapped;
- *step*: milliseconds a step takes to be read, and microseconds until it is known which groups the first step of epoch
  1,000 holds; at last the same of 400 million groups, and of two sources of as many mixed 115 to 14.

The last line is JSON: `rows_per_second`, `start_seconds`, `peak_mb` and `step_ms` of the largest number of rows,
`bytes_per_row`, by how much the peak grows from the smallest to the largest, and `far_step_ms` of 400 million groups.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)
CAPTION = "{}番の写真では、赤い車が{}台、白い建物の前の道に停まっています。"
STEP, FAR, LARGE = 256, 1000, 400_000_000


def write(folder: Path, rows: int, pictures: int) -> Path:
    """Captions of pictures in no order: each picture comes up evenly often."""
    path = folder / f"{rows}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            picture = number * 7919 % pictures
            caption = CAPTION.format(number, number % 7)
            file.write(f'{{"image": "pictures/{picture:08d}.png", "caption": "{caption}"}}\n')
    return path


def write_pictures(folder: Path, pictures: int):
    (folder / "pictures").mkdir()
    for number in range(pictures):
        (folder / "pictures" / f"{number:08d}.png").write_bytes(PIXEL)


def in_a_process(*arguments: object, rows_folder: Path) -> dict[str, Any]:
    """What this program prints, called by itself."""
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | {"JMINIGPT4_ROWS": str(rows_folder)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory(kind: str) -> float:
    """`VmRSS` or its peak `VmHWM` of this process, in MB (1e6 bytes)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024 / 1e6


def measured(path: Path, steps: int) -> dict[str, float]:
    """Of one process: the data read, and the groups of some steps."""
    from jminigpt4.train import Recipe
    from jminigpt4.train.distributed import init_processes
    from jminigpt4.train.order import SampleOrder
    from jminigpt4.train.selection import CocoTwins
    from jminigpt4.train.sources import read_data

    init_processes()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is forgotten
    before, began, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    (source,) = read_data(str(path), Recipe(validation=0.01), CocoTwins())
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    order = SampleOrder([len(source.training)], STEP)
    began = time.perf_counter()
    order.step(FAR * order.steps_per_epoch)
    found["far_us"] = (time.perf_counter() - began) * 1e6
    began, shown = time.perf_counter(), 0
    for step in range(0, 3 * order.steps_per_epoch, max(1, 3 * order.steps_per_epoch // steps)):
        shown += sum(len(source.training[group].rows) for _, group in order.step(step))
    taken = len(range(0, 3 * order.steps_per_epoch, max(1, 3 * order.steps_per_epoch // steps)))
    found["step_ms"] = (time.perf_counter() - began) / taken * 1e3
    return found | {"rows_a_step": shown / taken, "peak_mb": memory("VmHWM") - before}


def far_step(sizes: list[int], weights: list[float] | None) -> float:
    """Milliseconds of the first step of epoch `FAR`, of an order that has drawn nothing before; least of five."""
    from jminigpt4.train.order import SampleOrder

    times = []
    for seed in range(5):
        began = time.perf_counter()
        order = SampleOrder(sizes, STEP, seed, weights)
        order.step(FAR * order.steps_per_epoch)
        times.append((time.perf_counter() - began) * 1e3)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure, options.steps)))
        return
    if options.quick:
        options.rows, options.pictures, options.steps = [10_000, 40_000], 2_000, 20
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.pictures)
        print(
            "rows | indexing, rows/s (CPU) | its peak, MB | start, s (CPU) | peak, MB | step, ms (rows) | far step, us"
        )
        for rows in options.rows:
            path = write(Path(folder), rows, options.pictures)
            given = ("--measure", path, "--steps", options.steps)
            first, second = (in_a_process(*given, rows_folder=Path(folder) / "tables") for _ in range(2))
            path.unlink()
            results.append((rows, first, second))
            print(
                f"{rows:,} | {rows / first['seconds']:,.0f} ({rows / first['cpu_seconds']:,.0f}) | "
                f"{first['peak_mb']:,.0f} | {second['seconds']:.2f} "
                f"({second['cpu_seconds']:.2f}) | {second['peak_mb']:,.0f} | "
                f"{second['step_ms']:.1f} ({second['rows_a_step']:,.0f}) | {second['far_us']:.0f}",
                flush=True,
            )
    alone, mixed = far_step([LARGE], None), far_step([LARGE, LARGE], [115.0, 14.0])
    print(f"first step of epoch {FAR:,}: {alone:.2f} ms of {LARGE:,} groups, {mixed:.2f} ms of two such sources")
    (least, _, smallest), (most, first, last) = results[0], results[-1]
    grown = (last["peak_mb"] - smallest["peak_mb"]) * 1e6 / (most - least) if most > least else 0.0
    summary = {"rows": most, "rows_per_second": round(most / first["seconds"]), "start_seconds": last["seconds"]}
    summary |= {"peak_mb": last["peak_mb"], "bytes_per_row": grown, "step_ms": last["step_ms"]}
    print(json.dumps(summary | {"far_step_ms": max(alone, mixed)}))


if __name__ == "__main__":
    main()
