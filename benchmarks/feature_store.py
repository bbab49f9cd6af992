"""How features are best kept: random reads from several formats, the index of a store, decoding beside the encoder.

    python benchmarks/feature_store.py                  100,000 pictures of 48 KiB (5 GB a format, one after the other)
    python benchmarks/feature_store.py --quick          4,000 of them, from memory alone, and a smaller index
    python benchmarks/feature_store.py --folder /mnt/x  on another disk
    python benchmarks/feature_store.py --only fill      one part: formats, index, fill or draft

Formats: the package's store; Arrow IPC, memory-mapped; Parquet, row groups of 100; Lance where `pylance` is there. A
read is of 256 pictures at random, as a step of training: median and least of 20, and CPU time, from the disk (the
files' pages are dropped from the system's cache before) and from memory; each format in a process of its own, whose
memory and maps are counted. The index is that of a million pictures (64 bytes of features each, so that it fits a
disk), in 1,000 blocks. The last line is JSON.
"""

import argparse
import hashlib
import importlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jminigpt4.data.pictures import FilePicture, MemoryPicture
from jminigpt4.train.feature_store import Entry, FeatureStore

SHAPE, SMALL = (32, 768), (1, 32)
BLOCK, STEP, TURNS = 1000, 256, 20
FORMATS = ("store", "arrow", "parquet", "lance")
PARTS = ("formats", "index", "fill", "draft")


def entry(number: int) -> Entry:
    return Entry(f"pictures/{number:09}.jpg", 1, 2, hashlib.sha256(b"%d" % number).digest())


class Known(MemoryPicture):
    """A picture that is only a name, as [`entry`] has it."""

    def stamp(self) -> tuple[int, int]:
        return 1, 2


def known(number: int) -> Known:
    return Known(f"pictures/{number:09}.jpg", b"")


def open_store(folder: Path, shape: tuple[int, int]) -> FeatureStore:
    return FeatureStore(folder, {"weights": "benchmark", "weights_of": "checkpoint"}, shape)


def blocks(count: int, shape: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first picture, and features `(n, *shape)`, float16: noise, which no format compresses."""
    generator = np.random.default_rng(0)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        yield start, generator.standard_normal((size, *shape), np.float32).astype(np.float16)


def write_store(folder: Path, count: int, shape: tuple[int, int]):
    store = open_store(folder, shape)
    for start, features in blocks(count, shape):
        entries = [entry(number) for number in range(start, start + len(features))]
        store.write_block(entries, torch.from_numpy(features)[:, None])
    store.consolidate()


def write_table(folder: Path, count: int, shape: tuple[int, int], kind: str):
    """The other formats: a file of a thousand pictures each (Lance: fifty files)."""
    import pyarrow as pa

    folder.mkdir()
    size = int(np.prod(shape))
    column = pa.list_(pa.float16(), size) if kind == "lance" else pa.binary(2 * size)
    schema = pa.schema([("features", column)])

    def batches():
        for _, features in blocks(count, shape):
            if kind == "lance":
                array = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), size)
            else:
                array = pa.FixedSizeBinaryArray.from_buffers(
                    column, len(features), [None, pa.py_buffer(features.tobytes())]
                )
            yield pa.record_batch([array], schema=schema)

    if kind == "lance":
        lance: Any = importlib.import_module("lance")
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        lance.write_dataset(reader, str(folder / "set"), max_rows_per_file=max(BLOCK, count // 50))
        return
    import pyarrow.parquet as pq

    for number, batch in enumerate(batches()):
        path = folder / f"{number:06}.{kind}"
        if kind == "arrow":
            with pa.ipc.new_file(str(path), schema) as writer:
                writer.write(batch)
        else:
            table = pa.Table.from_batches([batch])
            pq.write_table(table, path, row_group_size=100, compression="none", use_dictionary=False)


def reader(folder: Path, shape: tuple[int, int], kind: str) -> Callable[[np.ndarray], object]:
    """What reads the features of pictures by their numbers, ready in memory."""
    if kind == "store":
        store = open_store(folder, shape)
        return lambda numbers: store.features([known(number) for number in numbers.tolist()])
    if kind == "lance":
        lance: Any = importlib.import_module("lance")
        opened = lance.dataset(str(folder / "set"))
        return lambda numbers: opened.take(numbers.tolist(), columns=["features"])
    return _arrow_reader(folder, shape) if kind == "arrow" else _parquet_reader(folder, shape)


def _arrow_reader(folder: Path, shape: tuple[int, int]):
    import pyarrow as pa

    size = 2 * int(np.prod(shape))
    columns = [pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).column(0) for path in sorted(folder.iterdir())]
    views = [np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, size) for column in columns]
    return lambda numbers: np.stack([views[number // BLOCK][number % BLOCK] for number in np.sort(numbers).tolist()])


def _parquet_reader(folder: Path, shape: tuple[int, int]):
    import pyarrow.parquet as pq

    size, paths, opened = 2 * int(np.prod(shape)), sorted(folder.iterdir()), {}

    def one(number: int) -> np.ndarray:
        file, row = divmod(number, BLOCK)
        if file not in opened:
            if len(opened) >= 128:
                opened.pop(next(iter(opened)))
            opened[file] = pq.ParquetFile(paths[file])
        group = opened[file].read_row_group(row // 100).column(0).chunk(0)
        return np.frombuffer(group.buffers()[1], np.uint8, size, (group.offset + row % 100) * size)

    return lambda numbers: np.stack([one(number) for number in np.sort(numbers).tolist()])


def forget(folder: Path):
    """Drops the files' pages from the system's cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> float:
    """MB of memory that count for this process, mapped files with them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def timed_reads(folder: Path, count: int, shape: tuple[int, int], kind: str, cold: bool) -> dict[str, float]:
    """In a process of its own: how long opening and a read take, and what they cost."""
    for module in {"lance": ["lance"], "store": []}.get(kind, ["pyarrow.parquet"]):
        importlib.import_module(module)
    if cold:
        forget(folder)
    before, mapped, began = resident(), maps(), time.perf_counter()
    read = reader(folder, shape, kind)
    opened = time.perf_counter() - began
    generator, seconds, spent = np.random.default_rng(cold), [], time.process_time()
    for _ in range(TURNS):
        numbers = generator.integers(0, count, STEP)
        began = time.perf_counter()
        read(numbers)
        seconds.append(time.perf_counter() - began)
    return {
        "open_ms": 1e3 * opened,
        "read_ms": 1e3 * float(np.median(seconds)),
        "least_ms": 1e3 * min(seconds),
        "cpu_ms": 1e3 * (time.process_time() - spent) / TURNS,
        "memory_mb": resident() - before,
        "maps": maps() - mapped,
    }


def formats(folder: Path, count: int, kinds: list[str], heats: tuple[str, ...]) -> dict:
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        if kind == "lance" and importlib.util.find_spec("lance") is None:
            print("lance: `pip install pylance` to measure it", flush=True)
            continue
        place = folder / kind
        began = time.perf_counter()
        if kind == "store":
            write_store(place, count, SHAPE)
        else:
            write_table(place, count, SHAPE, kind)
        wrote = time.perf_counter() - began
        found[kind] = {"write_s": round(wrote, 1)}
        for heat in heats:
            each = _apart("reads", str(place), str(count), kind, heat)
            found[kind][heat] = each
            print(
                f"{kind}, {count:,} pictures, from {heat}: {STEP} in {each['read_ms']:.1f} ms (least "
                f"{each['least_ms']:.1f}, CPU {each['cpu_ms']:.1f}), opened in "
                f"{each['open_ms']:.1f} ms, {each['memory_mb']:.0f} MB, {each['maps']} maps",
                flush=True,
            )
        shutil.rmtree(place)
    return found


def _apart(*arguments: str) -> dict:
    """A part of this program in a process of its own, and the numbers it found."""
    done = subprocess.run(
        [sys.executable, __file__, "--apart", *arguments], check=True, capture_output=True, text=True
    )
    return {key: round(value, 4) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def index(folder: Path, count: int) -> dict:
    place = folder / "index"
    began = time.perf_counter()
    write_store(place, count, SMALL)
    wrote = time.perf_counter() - began
    found = _apart("index", str(place), str(count)) | {"pictures": count, "write_s": round(wrote, 1)}
    print(
        f"index of {count:,} pictures in {count // BLOCK:,} blocks: opened in {found['open_ms']:.1f} ms and "
        f"{found['open_mb']:.1f} MB; {found['find_us']:.1f} µs to find a picture by its name; "
        f"{found['after_mb']:.1f} MB after all were looked for; {found['bytes']:.0f} bytes a picture on the disk",
        flush=True,
    )
    shutil.rmtree(place)
    return found


def timed_index(place: Path, count: int) -> dict[str, float]:
    open_store(place / "none", SMALL)  # what a process loads once
    before, began = resident(), time.perf_counter()
    store = open_store(place, SMALL)
    opened, used = time.perf_counter() - began, resident() - before
    assert len(store) == count
    order, began = np.random.default_rng(0).permutation(count), time.perf_counter()
    assert sum(1 for _ in store.missing(known(number) for number in order.tolist())) == 0
    seconds, after = time.perf_counter() - began, resident() - before
    size = sum(path.stat().st_size for path in place.glob("index-*"))
    return {
        "open_ms": 1e3 * opened,
        "open_mb": used,
        "find_us": 1e6 * seconds / count,
        "after_mb": after - order.nbytes / 1e6,
        "bytes": size / count,
    }


def photographs(folder: Path, count: int, size: tuple[int, int]) -> list[FilePicture]:
    """JPEGs of the drawings' sheet with grain, as many distinct ones."""
    from PIL import Image

    sheet = Image.open(Path(__file__).with_name("drawings.webp")).convert("RGB")
    generator, pictures = np.random.default_rng(0), []
    for number in range(count):
        x, y = (int(generator.integers(0, 800)) for _ in range(2))
        pixels = np.asarray(sheet.crop((x, y, x + 1600, y + 1200)).resize(size)).astype(np.int16)
        pixels = (pixels + generator.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels).save(path, "JPEG", quality=90)
        pictures.append(FilePicture(str(path)))
    return pictures


def fill(folder: Path, count: int) -> dict:
    """The demo's encoder over photographs of 640x480, with and without workers."""
    from jminigpt4 import DEMO
    from jminigpt4.inference.loading import be_quiet, load_checkpoint
    from jminigpt4.train.features import FeatureCache, PictureEncoder

    be_quiet()
    model, processor = load_checkpoint(DEMO, "cpu")
    place = folder / "photographs"
    place.mkdir()
    pictures = photographs(place, count, (640, 480))
    found: dict[str, Any] = {"pictures": count}
    for workers in (0, 1, 2):
        cache = FeatureCache(folder / f"filled-{workers}", PictureEncoder(model, processor))
        began, wall = time.process_time(), time.perf_counter()
        cache.fill(pictures, progress=False, workers=workers)
        own, wall = time.process_time() - began, time.perf_counter() - wall
        found[f"workers_{workers}"] = {"ms_of_own_cpu": round(1e3 * own / count, 2), "per_s": round(count / wall, 1)}
        spent = f"{1e3 * own / count:.1f} ms of CPU time of the encoder's process a picture"
        print(f"fill, {workers} workers: {spent}, {count / wall:.0f}/s", flush=True)
        first = FeatureCache(folder / "filled-0", PictureEncoder(model, processor))
        found[f"workers_{workers}"]["equal"] = torch.equal(cache.features(pictures), first.features(pictures))
    shutil.rmtree(place)
    return found


def draft(folder: Path, count: int) -> dict:
    """What Pillow's `draft`, which decodes a JPEG at a fraction of its size, saves, and how features differ then."""
    from PIL import Image

    from jminigpt4 import DEMO
    from jminigpt4.inference.loading import be_quiet, load_checkpoint

    be_quiet()
    model, processor = load_checkpoint(DEMO, "cpu", "float32")
    prepare, found = processor.image_processor, {}
    side = (prepare.size["width"], prepare.size["height"])

    def whole(content: bytes) -> torch.Tensor:
        return prepare(images=[prepare.to_rgb(content, "")], do_convert_rgb=False, return_tensors="pt")["pixel_values"]

    def drafted(content: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(content))
        image.draft("RGB", side)
        return prepare(images=[image.convert("RGB")], do_convert_rgb=False, return_tensors="pt")["pixel_values"]

    for size in ((640, 480), (2048, 1536)):
        contents = [picture.read() for picture in photographs(folder, count, size)]
        spent, features = {}, {}
        for way in (whole, drafted):
            began = time.process_time()
            pixels = torch.cat([way(content) for content in contents])
            spent[way.__name__] = 1e3 * (time.process_time() - began) / len(contents)
            with torch.no_grad():
                features[way.__name__] = model.get_query_features(pixels)
        difference = float((features["whole"] - features["drafted"]).norm() / features["whole"].norm())
        found[f"{size[0]}x{size[1]}"] = {name: round(ms, 2) for name, ms in spent.items()} | {
            "features_differ": round(difference, 4)
        }
        print(
            f"draft, JPEG of {size[0]}x{size[1]}: {spent['whole']:.1f} ms decoded whole, {spent['drafted']:.1f} ms "
            f"drafted; features differ by {difference:.1%} of their norm",
            flush=True,
        )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most a minute")
    parser.add_argument("--pictures", type=int, help="how many, for the formats")
    parser.add_argument("--indexed", type=int, help="how many, for the index")
    parser.add_argument("--folder", help="where to write; default: the system's for temporary files")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("--apart", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.apart:
        part, place, count, *rest = options.apart
        if part == "reads":
            print(json.dumps(timed_reads(Path(place), int(count), SHAPE, rest[0], rest[1] == "disk")))
        else:
            print(json.dumps(timed_index(Path(place), int(count))))
        return
    count = options.pictures or (4_000 if options.quick else 100_000)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        for part in options.only or PARTS:
            if part == "formats":
                heats = ("memory",) if options.quick else ("disk", "memory")
                found[part] = {"pictures": count, **formats(folder, count, options.format or list(FORMATS), heats)}
            elif part == "index":
                found[part] = index(folder, options.indexed or (100_000 if options.quick else 1_000_000))
            else:
                work, fewer, most = (fill, 24, 512) if part == "fill" else (draft, 4, 16)
                found[part] = work(folder, fewer if options.quick else most)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
