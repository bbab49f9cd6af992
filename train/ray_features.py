"""Query features on a Ray cluster, by Ray Data: pictures are read and decoded in tasks on its CPUs, encoded by actors,
one a device, and written into the store in blocks, as on one machine and by the same functions.

Ray does again what a dead node was doing. What it cannot do is go on after the death of the program that started it;
the store can: what it holds is left out, and all that is lost are the blocks that were not written.
"""

import logging
import os
import pickle
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoint import DTYPES
from ..data.pictures import Picture
from ..extras import require
from .feature_store import FeatureStore
from .features import PICTURES_A_BLOCK, BadPicture, Decoded, FeatureCache, PictureDecoder, PictureEncoder
from .frozen import load_model
from .recipe import Recipe

DECODED_TOGETHER = 64  # pictures of a task: their pixels, 39 MB at 224 x 224, travel to an encoder as one object
# Pictures whose names are with Ray at a time. Behind each such part the encoders are made anew.
PART = 1 << 21
REACHED_WITHIN = 10  # seconds


@dataclass(frozen=True)
class Job:
    """What is computed, with what, and into which store.

    Args:
        model: Folder or Hub name of the checkpoint.
        cache: Folder or URL of the store.
        recipe: Views, precision, and how features are stored.
        batch_size: Pictures encoded at a time.

    All nodes reach checkpoint, store and data under the same names.
    """

    model: str
    cache: str
    recipe: Recipe
    batch_size: int = 16

    def open_cache(self) -> FeatureCache:
        """The store, with an encoder on the device of this process.

        Raises:
            ValueError: The store holds features of another encoder than this node's.
        """
        from accelerate import PartialState

        from .. import register
        from ..inference.loading import be_quiet

        register()
        be_quiet()
        model, processor = load_model(self.model, None, self.recipe)
        model = model.to(PartialState().device or torch.device("cpu"))
        encoder = PictureEncoder(model, processor, self.recipe.cached_views, self.batch_size)
        return FeatureCache(self.cache, encoder, self.recipe.cache_dtype)


def fill_on_ray(
    job: Job,
    pictures: Iterable[Picture],
    address: str | None = None,
    encoders: int | None = None,
    pictures_per_block: int = PICTURES_A_BLOCK,
    progress: bool = True,
    total: int | None = None,
) -> tuple[FeatureStore, list[BadPicture]]:
    """Computes what a store misses on a Ray cluster.

    Args:
        job: What, with what, and into which store.
        pictures: Distinct pictures.
        address: Of a running cluster; by default what `RAY_ADDRESS` says, else one of this machine alone.
        encoders: Number of actors that encode; by default one a GPU, and without GPUs one a node.
        pictures_per_block: About how many go into one block.
        progress: Whether to show a progress bar.
        total: How many pictures there are at most, for the bar.

    Returns:
        The store, and the pictures that cannot be read.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: There is no cluster at the address.
        ValueError: A node has another encoder than the store.
    """
    require("scale", "ray")
    import ray

    _connect(address)
    try:
        # Not here: this machine may have no GPU, and another precision by that.
        size, resources = _places(encoders)
        store, encoder = ray.get(ray.remote(**resources)(_opened).remote(job))
        store.files.remove_unfinished()
        bad: list[BadPicture] = []
        remaining = iter(pictures)
        with tqdm(total=total, desc="query features", unit="picture", disable=not progress) as bar:
            while part := list(islice(remaining, PART)):
                for done, found in _results(job, store, encoder, part, pictures_per_block, size, resources):
                    bar.update(done)
                    bad += found
                store.refresh()
                store.consolidate()  # for the processes that open it next
    except ray.exceptions.RayError as error:
        raise _own(error) from None
    finally:
        ray.shutdown()
    return store, bad


def _connect(address: str | None):
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    given: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
    try:
        _reach(address or "")
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **given)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(f"There is no Ray cluster at {address or 'this machine'}: {reason}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Every task makes one object, also when it is done again and passes over what was written in between: where a node
    # has died, Ray looks for the objects of the first time.
    context.target_max_block_size = None
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _reach(address: str):
    """Looks whether something listens at `host:port`: Ray tries for minutes.

    Raises:
        OSError: Nothing does.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN).close()


def _places(encoders: int | None) -> tuple[int, dict[str, Any]]:
    """Number of encoders, and what each asks Ray for."""
    import ray

    there = ray.cluster_resources()
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    if gpus:
        return encoders or gpus, {"num_gpus": 1, "num_cpus": 0}
    size = encoders or sum(node["Alive"] for node in ray.nodes())
    # With a core for each there must be one left to decode.
    return size, {"num_cpus": 1 if size < cpus else 0}


def _opened(job: Job) -> tuple[FeatureStore, PictureEncoder]:
    """The store and the encoder without its model, as a node that encodes has them."""
    cache = job.open_cache()
    return cache.store, cache.encoder


def _results(
    job: Job,
    store: FeatureStore,
    encoder: PictureEncoder,
    part: list[Picture],
    pictures_per_block: int,
    size: int,
    resources: dict[str, Any],
) -> Iterator[tuple[int, list[BadPicture]]]:
    """Numbers of pictures that are done, and the bad ones among them, as they come."""
    import pyarrow as pa
    import ray

    tables = [
        pa.table({"picture": pa.array([pickle.dumps(each) for each in part[at : at + DECODED_TOGETHER]], pa.binary())})
        for at in range(0, len(part), DECODED_TOGETHER)
    ]
    as_arrow: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=size, initial_size=size)
    opened = pickle.dumps(store)
    decoded = ray.data.from_arrow(tables).map_batches(_decode, fn_args=(opened, encoder), **as_arrow)
    encoded = decoded.map_batches(_Encoding, fn_constructor_args=(job,), compute=pool, **resources, **as_arrow)
    # Ray joins whole tasks until there are so many pictures, and would make a second block of the rest.
    block = -(-pictures_per_block // DECODED_TOGETHER) * DECODED_TOGETHER
    written = encoded.map_batches(_write, batch_size=block, fn_args=(opened,), **as_arrow)
    for batch in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for done, bad in zip(batch["done"].to_pylist(), batch["bad"].to_pylist(), strict=True):
            yield done, pickle.loads(bad)


@lru_cache(maxsize=1)
def _here(store: bytes) -> FeatureStore:
    """A store as it was when the first task of this process came: opening it takes a while, and others come."""
    return pickle.loads(store)


def _decode(table: Any, opened: bytes, encoder: PictureEncoder) -> Any:
    """Pictures to what is known of them and, where they must be encoded, their pixels; none for those in the store."""
    store = _here(opened)
    pictures = [pickle.loads(picture) for picture in table["picture"].to_pylist()]
    decoder = PictureDecoder(encoder, store.has_content)
    return _table([(each, each.pixels) for each in map(decoder.decode, store.missing(pictures))], "pixels")


class _Encoding:
    """An actor: pixels to features, on its device."""

    def __init__(self, job: Job):
        self.encoder, self.dtype = job.open_cache().encoder, DTYPES[job.recipe.cache_dtype]

    def __call__(self, table: Any) -> Any:
        size = self.encoder.image_processor.size
        shape = (-1, 3, size["height"], size["width"])
        decoded, pixels = _columns(table, "pixels")
        new = [np.frombuffer(each, np.float32).reshape(shape) for each in pixels if each]
        features = iter(())
        if new:
            views = self.encoder.encode_alike(torch.from_numpy(np.concatenate(new))).to("cpu", self.dtype)
            features = iter(views.view(torch.uint8).unflatten(0, (len(new), -1)).numpy())
        rows = [(each, next(features) if old else None) for each, old in zip(decoded, pixels, strict=True)]
        return _table(rows, "features")


def _write(table: Any, opened: bytes) -> Any:
    """Features into the store, as one block; what is left are the number of pictures and the bad ones."""
    import pyarrow as pa

    store = _here(opened)
    entries, known, rows = [], [], []
    decoded, features = _columns(table, "features")
    for each, content in zip(decoded, features, strict=True):
        if each.entry is not None and content:
            entries.append(each.entry)
            rows.append(np.frombuffer(content, np.uint8))
        elif each.entry is not None:
            known.append(each.entry)
    dtype = DTYPES[store.dtype]
    content = torch.from_numpy(np.stack(rows)).view(dtype) if rows else torch.empty(0, dtype=dtype)
    store.write_block(entries, content.reshape(len(entries), store.views, *store.shape), known)
    bad = [BadPicture(each.name, each.reason) for each in decoded if each.entry is None]
    return pa.table({"done": pa.array([len(decoded)]), "bad": pa.array([pickle.dumps(bad)], pa.binary())})


def _table(rows: list[tuple[Decoded, np.ndarray | None]], kind: str) -> Any:
    """What is known of pictures, and the bytes of their pixels or features, where there are any."""
    import pyarrow as pa

    decoded = [pickle.dumps(replace(each, pixels=None)) for each, _ in rows]
    content = [None if array is None else array.tobytes() for _, array in rows]
    return pa.table({"decoded": pa.array(decoded, pa.binary()), kind: pa.array(content, pa.large_binary())})


def _columns(table: Any, kind: str) -> tuple[list[Decoded], list[Any]]:
    decoded = [pickle.loads(each) for each in table["decoded"].to_pylist()]
    return decoded, [each.as_buffer() if each.is_valid else None for each in table[kind]]


def _own(error: BaseException) -> Exception:
    """The error of our own code that Ray has wrapped, in its own words; else Ray's last line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValueError | OSError | ImportError) and not hasattr(cause, "cause"):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RuntimeError(f"Ray has given up: {lines[-1][:500] if lines else type(error).__name__}")
