"""400 million rows on this machine, without a model: what a training process holds of them, and how fast steps come.

    python benchmarks/scale.py --quick      4 million beside 400 thousand rows, half a minute
    python benchmarks/scale.py              400 million beside 40 million rows; 9 GB of disk, given back afterwards

Everything that is measured is the package's own code on files of the true size, each in a process of its own. What
stands for data that does not fit here:

- *index of rows*: the grouping's files `rows.bin` and `starts.bin` are written in full (12 bytes a row: every picture
  has one caption); the columns that steps do not read are files without blocks on the disk.
- *rows*: batches of a real table of `--distinct` rows, which repeat: as many batches are looked up, in as many places,
  as for all rows, but their texts come from few pages, which stay in memory.
- *store*: the index's first halves of keys are written in full (8 bytes a picture, evenly spread); the rest of it is a
  file without blocks, so every picture is found in the same place of a real block of `--distinct` / 256 pictures, from
  whose rows features are read at random.
- *stream*: shards of 10,000 pictures, and the list of all their windows; one window of eight real shards of `--shard`
  tiny pictures each is fetched, from memory, and indexed.

Memory is the peak of the resident memory above what the process had with the libraries loaded; mapped pages count
while they are mapped. The last line is JSON.
"""

import argparse
import io
import json
import mmap
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

STEP, SHARD, WINDOW = 256, 10_000, 8  # pictures a step, pictures a shard, shards a window
SHAPE, DTYPE = (32, 768), "float16"  # of the features of a picture: 48 KiB
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)
PART = 1 << 24  # numbers written at a time


def memory(kind: str) -> float:
    """`VmRSS` or its peak `VmHWM` of this process, in MB (1e6 bytes)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024 / 1e6


class Peak:
    """Peak of the resident memory above what it was when this was made."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is forgotten
        self.before = memory("VmRSS")

    def __call__(self) -> float:
        return memory("VmHWM") - self.before


def without_blocks(path: Path, size: int):
    """A file of this size that takes no room: what is read is zeros."""
    with open(path, "wb") as file:
        file.truncate(size)


def counted(path: Path, count: int, dtype: str, first: int = 0, factor: int = 1, at: int = 0):
    """Writes `factor * (first … first + count - 1)` into a file, from byte `at` on."""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.seek(at)
        for start in range(first, first + count, PART):
            numbers = np.arange(start, min(start + PART, first + count), dtype=np.uint64) * np.uint64(factor)
            file.write(numbers.astype(dtype).tobytes())


def write_rows(folder: Path, rows: int, distinct: int):
    """The table and grouping of so many rows, each about a picture of its own."""
    from jminigpt4.data.readers import DataSource
    from jminigpt4.data.table import TABLE, open_table
    from jminigpt4.train.groups import COLUMNS, META

    lines = folder / "rows.jsonl"
    with open(lines, "w", encoding="utf-8") as file:
        for number in range(distinct):
            caption = f"{number}番の写真では、赤い車が{number % 7}台、白い建物の前の道に停まっています。"
            file.write(json.dumps({"image": f"{number:09d}.png", "caption": caption}, ensure_ascii=False) + "\n")
    table = open_table(DataSource(str(lines)), tables=folder / "tables")
    facts = json.loads((table.folder / TABLE).read_bytes())
    each = facts["starts"][1]
    starts = [*range(0, rows, each), rows]
    (table.folder / "real.json").write_text(json.dumps(len(facts["starts"]) - 1))
    (table.folder / TABLE).write_text(json.dumps(facts | {"starts": starts}))
    shutil.move(table.folder, folder / "table")
    grouping = folder / "grouping"
    grouping.mkdir()
    counted(grouping / "rows.bin", rows, "<u4")
    counted(grouping / "starts.bin", rows + 1, "<i8")
    for name, kind in COLUMNS.items():
        if name != "starts":
            without_blocks(grouping / f"{name}.bin", rows * np.dtype(kind).itemsize)
    for name in ("distinct", "repeated"):
        without_blocks(grouping / f"{name}.bin", 0)
    meta = {"groups": rows, "rows": rows, "pictures": rows, "content": "simulated", "dtype": "<u4"}
    (grouping / META).write_text(json.dumps(meta))


def write_store(folder: Path, pictures: int, distinct: int):
    """A block of real features, and an index of so many pictures over it."""
    import torch

    from jminigpt4.train.feature_index import COLUMNS, HEADER, KINDS, NAME_BYTES, safetensors_header
    from jminigpt4.train.feature_store import Entry, FeatureStore

    store = FeatureStore(folder / "store", {"simulated": True}, SHAPE, DTYPE)
    features = torch.randn(distinct // 256, 1, *SHAPE).half()
    digests = [np.random.default_rng(number).bytes(32) for number in range(len(features))]
    store.write_block([Entry(f"{number}", 1, 1, digest) for number, digest in enumerate(digests)], features)
    import zlib

    names = np.array([b"block"], f"S{NAME_BYTES}")
    sizes = {"contents": 0, "pictures": pictures}
    columns = sorted(((kind, name) for kind in KINDS for name in COLUMNS), key=lambda each: each[1] == "tag")
    tensors: dict[str, Any] = {f"{kind}.{name}": (COLUMNS[name], (sizes[kind],)) for kind, name in columns}
    tensors["files"] = "U8", (1, NAME_BYTES)
    metadata = {"contents": str(pictures), "fingerprint": "simulated", "files_crc32": str(zlib.crc32(names.tobytes()))}
    header = safetensors_header(tensors, metadata)
    entries = json.loads(header[8:])
    path = folder / "index.safetensors"
    without_blocks(path, HEADER + entries["files"]["data_offsets"][1])
    with open(path, "r+b") as file:
        file.write(header)
        file.seek(HEADER + entries["files"]["data_offsets"][0])
        file.write(names.tobytes())
    spread = (1 << 64) // pictures
    counted(path, pictures, "<u8", factor=spread, at=HEADER + entries["pictures.high"]["data_offsets"][0])


def open_rows(folder: Path) -> Any:
    """The groups of the simulated rows, as a training process has them."""
    from jminigpt4.data.columns import Decoded
    from jminigpt4.data.table import RowTable
    from jminigpt4.train.groups import META, Grouping, split

    table = RowTable(folder / "table", "simulated")
    real = json.loads((folder / "table" / "real.json").read_text())
    table._batch = lru_cache(maxsize=1024)(lambda number: Decoded(table._reader.get_batch(number % real)))
    grouping = Grouping(table, folder / "grouping", {}, json.loads((folder / "grouping" / META).read_text()))
    return split(grouping, 0.0)[0]


def measure_training(folder: Path, steps: int) -> dict[str, float]:
    """Start and steps of a training process: order, rows, where features lie, and the features."""
    from jminigpt4.train.feature_index import Index, MappedIndex
    from jminigpt4.train.feature_store import FeatureStore
    from jminigpt4.train.order import SampleOrder

    peak, began = Peak(), time.perf_counter()
    groups = open_rows(folder)
    mapped = MappedIndex(folder / "index.safetensors")
    index = Index.over(mapped, ["block"])
    store = FeatureStore(folder / "store", {"simulated": True}, SHAPE, DTYPE)
    order = SampleOrder([len(groups)], STEP)
    found: dict[str, float] = {"start_seconds": time.perf_counter() - began, "start_mb": peak()}
    times = dict.fromkeys(("order", "rows", "index", "features"), 0.0)
    spread, block, random = (1 << 64) // len(groups), _rows_of_block(store), np.random.default_rng(0)
    for number in range(steps):
        step = number * (3 * order.steps_per_epoch) // steps  # all over three epochs
        marks = [time.perf_counter()]
        members = order.step(step)
        marks.append(time.perf_counter())
        rows = [row for _, group in members for row in groups[group].rows]
        marks.append(time.perf_counter())
        keys = np.zeros((len(members), 2), ">u8")
        keys[:, 0] = np.array([group for _, group in members], np.uint64) * np.uint64(spread)
        places, _ = index.find(keys.view(np.uint8).reshape(-1, 16), pictures=True)
        marks.append(time.perf_counter())
        features = np.stack([block[row] for row in random.integers(0, len(block), len(members))])
        marks.append(time.perf_counter())
        assert len(rows) == STEP and (places >= 0).all() and features.shape[0] == STEP
        for name, start, end in zip(times, marks, marks[1:], strict=False):
            times[name] += end - start
    found |= {f"{name}_ms": seconds / steps * 1e3 for name, seconds in times.items()}
    return found | {"steps_per_second": steps / sum(times.values()), "peak_mb": peak()}


def _rows_of_block(store: Any) -> np.ndarray:
    """The rows of the one block of a store, mapped: `(pictures, bytes of features and checksum)`."""
    from jminigpt4.train.feature_index import HEADER

    (path,) = Path(store.folder).glob("block-*")
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = store._bytes + 4
    return np.frombuffer(content, np.uint8, len(store) * length, HEADER).reshape(-1, length)


def measure_stream(folder: Path, rows: int, steps: int) -> dict[str, float]:
    """Steps of a stream at any place of all its windows."""
    from jminigpt4.data.growing_lines import append
    from jminigpt4.train.windows import HERE, ShardPlan, StreamOrder, Window, Windows

    peak, began = Peak(), time.perf_counter()
    shards = [f"https://server.example/pairs/{number:06d}.tar" for number in range(-(-rows // SHARD))]
    plan = ShardPlan([shards], WINDOW, 0)
    found = {"stream_plan_seconds": time.perf_counter() - began}
    here, before = folder / "windows", 0
    here.mkdir(exist_ok=True)
    lines = []
    for number in range(plan.windows_in_turn):
        members = [shard for _, shard in plan.members(number)]
        window = Window(
            number=number, first_step=before // STEP, before=[before], groups=[SHARD * len(members)], shards=members,
            rows="0" * 64,
        )  # fmt: skip
        before += SHARD * len(members)
        lines.append(window.model_dump())
    append(here / HERE, lines)
    order, began = StreamOrder(Windows(here), plan, STEP, 0, 10_000), time.perf_counter()
    order.step(0)
    found["stream_ledger_seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    for number in range(steps):
        assert len(order.step(number * (before // STEP) // steps)) == STEP
    return found | {"stream_step_ms": (time.perf_counter() - began) / steps * 1e3, "stream_peak_mb": peak()}


def measure_window(folder: Path, pictures: int) -> dict[str, float]:
    """A window of real shards: fetched, its rows read into a table, grouped, and ready for its first step."""
    import fsspec

    from jminigpt4.data.readers import DataSource
    from jminigpt4.train import Recipe
    from jminigpt4.train.distributed import init_processes
    from jminigpt4.train.selection import CocoTwins
    from jminigpt4.train.streaming import Stream

    state = init_processes()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number in range(pictures):
            for ending, data in (("png", PIXEL), ("txt", f"{number}番の写真では、赤い車が停まっています。".encode())):
                member = tarfile.TarInfo(f"{number:06d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    for number in range(WINDOW):
        fsspec.filesystem("memory").pipe(f"/pairs/{number:06d}.tar", content.getvalue())
    source = DataSource(f"memory://pairs/{{000000..{WINDOW - 1:06d}}}.tar", stream=True)
    peak, began, cpu = Peak(), time.perf_counter(), time.process_time()
    stream = Stream([source], Recipe(steps_per_epoch=1, epochs=1), CocoTwins(), folder / "run", state)
    (data,) = stream.first()
    seconds, rows = time.perf_counter() - began, len(data.training)
    stream.close()
    found = {"window_rows": rows, "window_seconds": seconds, "window_rows_per_second": rows / seconds}
    return found | {"window_cpu_seconds": time.process_time() - cpu, "window_peak_mb": peak()}


def in_a_process(*arguments: object) -> dict[str, Any]:
    """What this program prints, called by itself."""
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[40_000_000, 400_000_000])
    parser.add_argument("--distinct", type=int, default=1 << 16)
    parser.add_argument("--shard", type=int, default=SHARD)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rows, options.distinct, options.shard, options.steps = [400_000, 4_000_000], 1 << 15, 500, 40
    if options.part:
        name, folder = options.part
        print(json.dumps(_part(name, Path(folder), options.rows[-1], options)))
        return
    results = []
    with tempfile.TemporaryDirectory(prefix="jminigpt4-scale-") as top:
        for rows in options.rows:
            folder = Path(top) / str(rows)
            folder.mkdir()
            given = [
                "--rows",
                rows,
                "--distinct",
                options.distinct,
                "--shard",
                options.shard,
                "--steps",
                options.steps,
            ]
            found = {"rows": rows}
            for part in ("write", "training"):
                found |= in_a_process(*given, "--part", part, folder)
            shutil.rmtree(folder)
            results.append(found)
            print(", ".join(f"{name} {value:,.4g}" for name, value in found.items()), flush=True)
        window = in_a_process(*given, "--part", "window", top)
        print(", ".join(f"{name} {value:,.4g}" for name, value in window.items()))
    least, most = results[0], results[-1]
    grown = (most["peak_mb"] - least["peak_mb"]) * 1e6 / max(1, most["rows"] - least["rows"])
    print(json.dumps(most | window | {"peak_bytes_per_row": grown}))


def _part(name: str, folder: Path, rows: int, options: argparse.Namespace) -> dict[str, float]:
    if name == "write":
        began = time.perf_counter()
        write_rows(folder, rows, options.distinct)
        write_store(folder, rows, options.distinct)
        size = sum(each.stat().st_blocks * 512 for each in folder.rglob("*") if each.is_file())
        return {"write_seconds": time.perf_counter() - began, "disk_gb": size / 1e9}
    if name == "training":
        return measure_training(folder, options.steps) | measure_stream(folder, rows, options.steps)
    return measure_window(folder, options.shard)


if __name__ == "__main__":
    main()
