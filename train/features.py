"""Query features: the frozen half of the model is run once per picture, not once per row and epoch.

A [`FeatureCache`] is a [`FeatureStore`] and what fills it on one machine: worker processes read and decode pictures
while the encoder is at work on those before them.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..checkpoint import DTYPES
from ..data.pictures import Picture
from .augmentation import random_resized_crop
from .distributed import from_all, processes_here
from .feature_store import Entry, FeatureStore
from .fingerprint import encoder_fingerprint, is_older, older_digest, read_fingerprint
from .store_files import files_of
from .workers import ahead, spare_workers

PICTURES_A_BLOCK = 1000  # what a killed process can lose, and 48 MB
PICTURES_A_TASK = 8  # that a worker decodes at a time
# Pictures that are known by content under a new name go with the next block, or alone when they are so many blocks'.
BLOCKS_OF_NAMES = 64


@dataclass(frozen=True, slots=True)
class BadPicture:
    """A picture that cannot be used, and why."""

    name: str
    reason: str


class PictureEncoder:
    """Pictures to query features with the frozen half of a model.

    Args:
        model: A [`JMiniGPT4ForConditionalGeneration`].
        processor: Its [`JMiniGPT4Processor`].
        views: Number of augmented views per picture; 0: the plain picture, one view.
        batch_size: Pictures encoded at a time.
    """

    def __init__(self, model: Any, processor: Any, views: int = 0, batch_size: int = 16):
        self.model, self.image_processor = model, processor.image_processor
        self.views, self.batch_size = views, batch_size

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: a process that prepares steps decodes pictures and encodes none."""
        return vars(self) | {"model": None}

    def pixel_values(self, content: bytes, name: str, seeds: Iterable[int | None]) -> torch.Tensor:
        """One view of a picture per seed (`None`: the plain picture), `(views, 3, height, width)`.

        Raises:
            ValueError: The picture cannot be decoded; the message names it.
        """
        image = self.image_processor.to_rgb(content, name)
        size = self.image_processor.size
        views = [
            image if seed is None else random_resized_crop(image, (size["height"], size["width"]), seed)
            for seed in seeds
        ]
        return self.image_processor(images=views, do_convert_rgb=False, return_tensors="pt")["pixel_values"]

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(n, 3, height, width)` to query features `(n, num_query_tokens, size)`, on the model's device."""
        encoder = self.model.model.vision_model
        with torch.no_grad():
            parts = [
                self.model.get_query_features(part.to(self.model.device, encoder.dtype))
                for part in pixel_values.split(self.batch_size)
            ]
        return torch.cat(parts)

    def encode_alike(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As [`encode`], always `batch_size` pictures at a time, the last ones beside zeros: how many are computed
        together changes the last bits of their features, which ones does not."""
        short = -len(pixel_values) % self.batch_size
        padded = torch.cat([pixel_values, pixel_values.new_zeros((short, *pixel_values.shape[1:]))])
        return self.encode(padded)[: len(pixel_values)]

    def features(self, query_features: torch.Tensor | None, pixel_values: torch.Tensor | None) -> torch.Tensor | None:
        """Query features of a step's pictures on the model's device: taken from a cache, or encoded now."""
        if pixel_values is not None:
            return self.encode(pixel_values)
        return query_features.to(self.model.device) if query_features is not None else None

    def view_seeds(self, digest: bytes) -> list[int | None]:
        """Seeds of the views of a picture: a function of its content, so that every process draws the same."""
        if not self.views:
            return [None]
        start = int.from_bytes(digest[:6], "big")
        return [start + view for view in range(self.views)]

    def fingerprint(self, dtype: str, folder: str | os.PathLike | None = None) -> dict[str, Any]:
        """What features depend on; see [`encoder_fingerprint`].

        Args:
            dtype: How they are stored.
            folder: A cache that older versions may have filled, which knew encoders by another digest.
        """
        fingerprint = encoder_fingerprint(self.model, self.image_processor, self.views, dtype)
        if folder is not None and is_older(read_fingerprint(files_of(folder), os.fspath(folder))):
            fingerprint["encoder"] = older_digest(self.model)
        return fingerprint


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture that was read: known by its content already, or decoded, or bad.

    Args:
        name: Its name.
        entry: As it lies on the disk; `None` if it cannot be read.
        pixels: Its views, `(views, 3, height, width)`, float32; `None` if its features are there.
        reason: Why it is bad.
    """

    name: str
    entry: Entry | None = None
    pixels: np.ndarray | None = None
    reason: str = ""


class PictureDecoder(Dataset):
    """Pictures to pixel values, where there is no model: in worker processes, or on another machine.

    Args:
        encoder: Says how.
        known: Whether features of a picture with this SHA-256 are there: it is not decoded then.
    """

    def __init__(self, encoder: PictureEncoder, known: Callable[[bytes], bool] = lambda digest: False):
        self.encoder, self.known = encoder, known

    def __getitem__(self, index: list[Picture]) -> list[Decoded]:
        """Pictures, which a loader hands to its workers in the place of their numbers."""
        return [self.decode(picture) for picture in index]

    def decode(self, picture: Picture) -> Decoded:
        """One picture."""
        try:
            size, time = picture.stamp()
            content = picture.read()
            entry = Entry(picture.name, size, time, hashlib.sha256(content).digest())
            if self.known(entry.digest):
                return Decoded(picture.name, entry)
            seeds = self.encoder.view_seeds(entry.digest)
            return Decoded(picture.name, entry, self.encoder.pixel_values(content, picture.name, seeds).numpy())
        except (OSError, ValueError) as error:
            return Decoded(picture.name, reason=str(error))


@dataclass(slots=True)
class _Block:
    """Pictures on their way into a block of the store.

    Args:
        encoder: Encodes them, `batch_size` views at a time.
        dtype: How features are stored.
    """

    encoder: PictureEncoder
    dtype: torch.dtype
    entries: list[Entry] = field(default_factory=list)
    known: list[Entry] = field(default_factory=list)
    digests: set[bytes] = field(default_factory=set)
    waiting: list[torch.Tensor] = field(default_factory=list)
    encoded: list[torch.Tensor] = field(default_factory=list)

    def add(self, entry: Entry, pixels: np.ndarray):
        self.entries.append(entry)
        self.digests.add(entry.digest)
        self.waiting += torch.from_numpy(pixels).unbind()
        while len(self.waiting) >= self.encoder.batch_size:
            self._encode()

    def _encode(self):
        batch, self.waiting = self.waiting[: self.encoder.batch_size], self.waiting[self.encoder.batch_size :]
        self.encoded.append(self.encoder.encode_alike(torch.stack(batch)).to("cpu", self.dtype))

    def write(self, store: FeatureStore):
        """All of them into the store."""
        if self.waiting:
            self._encode()
        views = torch.cat(self.encoded) if self.encoded else torch.empty((0, *store.shape), dtype=self.dtype)
        store.write_block(self.entries, views.unflatten(0, (len(self.entries), store.views)), self.known)


class FeatureCache:
    """Query features of pictures, kept in a folder; see [`FeatureStore`].

    Args:
        folder: The cache's folder, made when it is not there, or a URL.
        encoder: What computes features that are missing.
        dtype: `"float16"`, `"bfloat16"` or `"float32"`: how features are stored.

    Raises:
        ValueError: The folder holds features of another encoder, preprocessing, number of views, dtype or precision.
    """

    def __init__(self, folder: str | os.PathLike, encoder: PictureEncoder, dtype: str = "float16"):
        self.folder, self.encoder, self.dtype = os.fspath(folder), encoder, dtype
        shape = encoder.model.model.query_tokens.shape[1:]
        self.store = FeatureStore(
            folder, encoder.fingerprint(dtype, folder), tuple(shape), dtype, max(1, encoder.views)
        )

    def __contains__(self, picture: Picture) -> bool:
        return picture in self.store

    def __len__(self) -> int:
        return len(self.store)

    def missing(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """Those of the pictures that are not in the cache; see [`FeatureStore.missing`]."""
        return self.store.missing(pictures)

    def features(self, pictures: Sequence[Picture], view: int | list[int] = 0) -> torch.Tensor:
        """Features of pictures, `(n, num_query_tokens, size)`, in the cache's dtype; see [`FeatureStore.features`]."""
        return self.store.features(pictures, view)

    def fill(
        self,
        pictures: Iterable[Picture],
        rank: int = 0,
        world: int = 1,
        pictures_per_file: int = PICTURES_A_BLOCK,
        progress: bool = True,
        watch: Callable[[BadPicture], None] | None = None,
        workers: int = 0,
        total: int | None = None,
    ) -> list[BadPicture]:
        """Computes what is missing, and returns the pictures that cannot be read.

        Args:
            pictures: All pictures of the data, of any number; each is encoded once.
            rank, world: This process encodes every `world`-th picture from `rank` on.
            pictures_per_file: How many pictures go into one file, which is what a killed run can lose.
            progress: Whether to show a progress bar.
            watch: Called with each bad picture as it is met; may raise to stop.
            workers: Processes that read and decode pictures for the encoder. The features are the same to the bit.
            total: How many pictures there are, where `pictures` is no list, for the progress bar.
        """
        self.store.refresh()
        bad: list[BadPicture] = []
        total = len(pictures) if isinstance(pictures, Sized) else total
        share = None if total is None else len(range(rank, total, world))
        with tqdm(total=share, desc="query features", unit="picture", disable=not progress, delay=1) as bar:
            missing = self.missing(_counted(islice(pictures, rank, None, world), bar))
            block = self._new_block()
            for each in self._decoded(missing, workers):
                if each.entry is None:
                    bad.append(BadPicture(each.name, each.reason))
                    if watch:
                        watch(bad[-1])
                    continue
                if (
                    each.pixels is None
                    or each.entry.digest in block.digests
                    or self.store.has_content(each.entry.digest)
                ):
                    block.known.append(each.entry)
                else:
                    block.add(each.entry, each.pixels)
                if len(block.entries) >= pictures_per_file or len(block.known) >= BLOCKS_OF_NAMES * pictures_per_file:
                    block.write(self.store)
                    block = self._new_block()
                    if self.store.has_grown:
                        self._take_stock(rank == 0)
            block.write(self.store)
        return bad

    def _take_stock(self, first: bool):
        """Lets go of keys that the index has by now; the first process writes it."""
        self.store.refresh()
        if first:
            self.store.consolidate()

    def _new_block(self) -> _Block:
        return _Block(self.encoder, DTYPES[self.dtype])

    def _decoded(self, pictures: Iterator[Picture], workers: int) -> Iterator[Decoded]:
        """The pictures in their order, decoded by worker processes if there are enough of them to begin any."""
        tasks = iter(partial(_task, pictures), [])
        first = list(islice(tasks, 1 + workers))
        decoder = PictureDecoder(self.encoder, self.store.has_content)
        loader = DataLoader(
            decoder,
            batch_size=None,
            sampler=chain(first, tasks),
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # not the run's own, which would draw other numbers then
            **ahead(workers if len(first) > workers else 0),
        )
        return chain.from_iterable(loader)


def _counted(pictures: Iterable[Picture], bar: tqdm) -> Iterator[Picture]:
    for picture in pictures:
        bar.update()
        yield picture


def _task(pictures: Iterator[Picture]) -> list[Picture]:
    return list(islice(pictures, PICTURES_A_TASK))


def _as_it_is(decoded: list[Decoded]) -> list[Decoded]:
    return decoded


def fill_together(
    cache: FeatureCache,
    pictures: Iterable[Picture],
    state: PartialState,
    progress: bool = True,
    watch: Callable[[BadPicture], None] | None = None,
    workers: int | None = None,
    total: int | None = None,
) -> list[BadPicture]:
    """Computes what a cache misses, every process of the group its share, and returns the bad pictures of all.

    Args:
        cache: The cache, the same folder in all processes.
        pictures, watch: As of [`FeatureCache.fill`]; all processes name the same pictures, in the same order.
        state: From `init_processes`.
        progress: Whether the first process shows a progress bar.
        workers: Processes that decode for each of these; `None`: as many as the machine can spare, see
            [`spare_workers`].
        total: As of [`FeatureCache.fill`].
    """
    first, store = state.is_main_process, cache.store
    if first:
        store.files.remove_unfinished()
    state.wait_for_everyone()  # what another process has just begun is not to be taken for a leftover
    if workers is None:
        workers = spare_workers(cache.encoder.model.device, processes_here())
    share = state.process_index, state.num_processes
    bad = cache.fill(pictures, *share, progress=progress and first, watch=watch, workers=workers, total=total)
    bad = from_all(bad)  # every process has written its files by then
    store.refresh()
    if first:
        store.consolidate()
        if unchecked := store.unchecked:
            tqdm.write(
                f"{unchecked} files of {cache.folder} are of a version without checksums: damage in them goes "
                "unnoticed. `jminigpt4 features` into another folder makes a cache with checksums."
            )
    state.wait_for_everyone()
    store.refresh()
    return bad
