"""From the order of samples to what the model is given: the data of one optimiser step."""

import hashlib
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.columns import text_bytes
from ..data.rows import Group, Row
from .features import BadPicture, FeatureCache, PictureEncoder
from .groups import Groups
from .order import SampleOrder, choice
from .packing import IGNORED, EncodedGroup, EncodedRow, Pack, Packer
from .prompts import CaptionPrompts
from .recipe import Recipe
from .sources import SourceData

STEPS_AHEAD, MOST_WORKERS = 2, 8
LOOKS = 0.2  # seconds between looks of a worker at who its parent is


@dataclass
class Step:
    """One process's share of an optimiser step.

    Args:
        packs: What goes through the language model, one after the other.
        query_features: `(pictures, num_query_tokens, size)` from the cache, or `None`.
        pixel_values: `(pictures, 3, height, width)` to be encoded, or `None`.
        rows, tokens: Number of rows, and of tokens in the packs.
        row_tokens: Number of tokens that these rows have when each stands by itself.
        bad: Pictures that could not be read; their rows are not in the step.
    """

    packs: list[Pack]
    query_features: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None
    rows: int = 0
    tokens: int = 0
    row_tokens: int = 0
    bad: list[BadPicture] = field(default_factory=list)

    def __reduce__(self):
        """From a worker as bytes. Tensors would come through shared memory, and where that is full, as in a container
        of 64 MB or under a limit of file sizes, the step would never come and training wait for ever."""
        return _arrived, (pickle.dumps(vars(self), protocol=5),)


def _arrived(content: bytes) -> Step:
    return Step(**pickle.loads(content))


class RowEncoder:
    """Rows to token ids and labels.

    Args:
        processor: A [`JMiniGPT4Processor`].
        max_answer_tokens: The most tokens of an answer, its end mark counted; the conversation ends there.
    """

    def __init__(self, processor: Any, max_answer_tokens: int | None = None):
        self.processor, self.max_answer_tokens = processor, max_answer_tokens

    def encode(self, row: Row, source: int = 0, prompt: str = "") -> EncodedRow:
        """One row; see [`JMiniGPT4Processor.encode_segments`]."""
        encoded = self.processor.encode_segments(row.messages(prompt))
        ids, labels = list(encoded["input_ids"]), list(encoded["labels"])
        end = self._cut(labels)
        return EncodedRow(ids[:end], labels[:end], source)

    def _cut(self, labels: list[int]) -> int:
        """Where the first answer that is too long is cut, or the length of the row."""
        run = 0
        for index, label in enumerate(labels):
            run = run + 1 if label != IGNORED else 0
            if self.max_answer_tokens is not None and run > self.max_answer_tokens:
                return index
        return len(labels)

    def prefix(self, rows: Iterable[Row]) -> tuple[int, ...]:
        """The tokens before the first picture that all these rows begin with: constant over the run, as the language
        model sees nothing before them that learns."""
        common: list[int] | None = None
        for row in rows:
            ids = self.encode(row).input_ids
            if self.processor.image_token_id not in ids:
                continue
            ids = ids[: ids.index(self.processor.image_token_id)]
            if common is None:
                common = ids
            length = min(len(common), len(ids))
            common = common[: next((i for i in range(length) if common[i] != ids[i]), length)]
        return tuple(common or ())


@dataclass
class LongRows:
    """Rows that are longer than the language model's window: how many, and the first with its length in tokens."""

    count: int = 0
    first: Row | None = None
    length: int = 0

    def note(self, row: Row, length: int):
        if self.first is None:
            self.first, self.length = row, length
        self.count += 1


def within_window(
    sources: list[SourceData], encoder: RowEncoder, window: int | None
) -> tuple[list[SourceData], LongRows]:
    """The sources without the rows that are longer than the language model's window, and what these are.

    Only rows of groups that may be too long by a bound are made and encoded.

    Args:
        sources: Groups of rows.
        encoder: Rows to tokens.
        window: Most tokens the language model was made for; `None`: it has no such number.

    Raises:
        ValueError: Nothing of a source is left to train on.
    """
    long, kept = LongRows(), []
    if window is None:
        return sources, long
    for source in sources:
        prompt = max(source.prompts.prompts, key=len, default="")
        training = _fitting(source.training, encoder, prompt, window, long)
        validation = _fitting(source.validation, encoder, prompt, window, long)
        if not training:
            raise ValueError(f"Every row of {source.title} is longer than the model's window of {window} tokens.")
        kept.append(replace(source, training=training, validation=validation))
    return kept, long


def _fitting(groups: Groups, encoder: RowEncoder, prompt: str, window: int, long: LongRows) -> Groups:
    grouping, rows, empty = groups.grouping, [], []
    for chunk in groups.chunks():
        texts, pictures = grouping.longest[chunk].astype(np.int64), grouping.pictures[chunk].astype(np.int64)
        for number in chunk[_bound(texts, pictures, grouping.turns[chunk], encoder, prompt) > window].tolist():
            members = grouping.rows_of(number).tolist()
            lengths = [_length(grouping.table[each], encoder, prompt, window) for each in members]
            for row, length in zip(members, lengths, strict=True):
                if length > window:
                    long.note(grouping.table[row], length)
                    rows.append(row)
            if min(lengths) > window:
                empty.append(number)
    return groups.drop(np.array(empty, np.int64), np.array(rows, np.int64)) if rows else groups


def _bound(texts: Any, pictures: Any, turns: Any, encoder: RowEncoder, prompt: str) -> Any:
    """The most tokens of rows, numbers or arrays of them: a token has at least a byte, a template few."""
    return texts + len(prompt.encode()) + pictures * encoder.processor.num_query_tokens + 64 * (1 + turns)


def _length(row: Row, encoder: RowEncoder, prompt: str, window: int) -> int:
    """Tokens of a row; of one that is far from the window, the bound."""
    bound = _bound(text_bytes(row), len(row.pictures), len(row.conversation), encoder, prompt)
    return bound if bound <= window else len(encoder.encode(row, prompt=prompt).input_ids)


class StepDataset(Dataset):
    """All steps of a run; item `s` is this process's share of step `s`, whatever steps were taken before.

    Args:
        sources: Groups of rows of each source.
        order: Which of them are in a step.
        encoder: Rows to tokens.
        packer: Groups to packs.
        recipe: Seed, augmentation, views.
        prompts: Caption prompts of each source.
        pictures: What encodes pictures, or the cache that has them.
        steps: Number of steps.
        rank, world: Number of this process, and of all.
    """

    def __init__(
        self,
        sources: list[Groups],
        order: SampleOrder,
        encoder: RowEncoder,
        packer: Packer,
        recipe: Recipe,
        prompts: list[CaptionPrompts],
        pictures: "PictureEncoder | FeatureCache",
        steps: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.sources, self.order, self.encoder, self.packer = sources, order, encoder, packer
        self.recipe, self.prompts, self.pictures = recipe, prompts, pictures
        self.steps, self.rank, self.world = steps, rank, world

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Step:
        epoch = index // self.order.steps_per_epoch
        members = self.order.step(index, self.rank, self.world)
        groups = [self.sources[source][group] for source, group in members]
        if isinstance(self.pictures, FeatureCache):
            result, readable = self._cached(self.pictures, groups, epoch)
        else:
            result, readable = self._streamed(self.pictures, groups, epoch)
        encoded = []
        for (source, number), group in zip(members, groups, strict=True):
            if all(picture.name in readable for picture in group.pictures):
                prompt = self.prompts[source].choose(epoch, source, number)
                rows = tuple(self.encoder.encode(row, source, prompt) for row in group.rows)
                rows = tuple(row for row in rows if row.first_learnt < len(row.labels))
                if rows:
                    encoded.append(EncodedGroup(rows, tuple(readable[each.name] for each in group.pictures)))
        result.packs = self.packer.pack(encoded)
        result.rows = sum(len(group.rows) for group in encoded)
        result.tokens = sum(len(pack.input_ids) for pack in result.packs)
        result.row_tokens = sum(len(row.input_ids) for group in encoded for row in group.rows)
        return result

    def _cached(self, cache: FeatureCache, groups: list[Group], epoch: int) -> tuple[Step, dict[str, int]]:
        distinct = {picture.name: picture for group in groups for picture in group.pictures}
        views = [
            choice(self.recipe.views, self.recipe.seed, epoch, _number(name)) if self.recipe.augmentation else 0
            for name in distinct
        ]
        features = cache.features(list(distinct.values()), views)
        return Step([], query_features=features), {name: index for index, name in enumerate(distinct)}

    def _streamed(self, encoder: PictureEncoder, groups: list[Group], epoch: int) -> tuple[Step, dict[str, int]]:
        """Every picture once, for all rows about it."""
        views, bad, readable = [], [], {}
        for name, picture in {each.name: each for group in groups for each in group.pictures}.items():
            seed = _number(f"{self.recipe.seed} {epoch} {name}") if self.recipe.augmentation else None
            try:
                view = encoder.pixel_values(picture.read(), name, [seed])
            except (OSError, ValueError) as error:
                bad.append(BadPicture(name, str(error)))
            else:
                readable[name] = len(views)
                views.append(view)
        pixels = torch.cat(views) if views else None
        return Step([], pixel_values=pixels, bad=bad), readable


def prepared_ahead(steps: StepDataset, workers: int) -> DataLoader:
    """Steps in their order, made by index, so that resuming skips them without reading any.

    Args:
        steps: The steps.
        workers: Processes that read, decode and tokenise the next steps while one is learnt from, each up to
            `STEPS_AHEAD` of them; 0: nothing is prepared ahead.
    """
    return DataLoader(
        steps,
        batch_size=1,
        collate_fn=_only,
        num_workers=workers,
        prefetch_factor=STEPS_AHEAD if workers else None,
        worker_init_fn=_end_with_parent,
    )


def _end_with_parent(number: int):
    """In a worker: ends it soon after the process that it works for. torch's own watch lets a worker leave, but it
    waits for ever then to hand on a step that nobody reads."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def spare_workers(steps: StepDataset, device: torch.device, processes: int) -> int:
    """How many processes should prepare the steps ahead: as many as can, up to `MOST_WORKERS`, before a GPU, and one
    before a CPU, which learns more slowly than one process decodes.

    None where steps are read from a cache, which takes next to no time; where a process is not a fork, as a program
    without `if __name__ == "__main__"` would begin anew in it; and where each process that trains has one core.

    Args:
        steps: The steps.
        device: What the language model runs on.
        processes: Processes that train on this machine.
    """
    start = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if not isinstance(steps.pictures, PictureEncoder) or start != "fork":
        return 0
    spare = len(os.sched_getaffinity(0)) // processes - 1
    return max(0, min(spare, 1 if device.type == "cpu" else MOST_WORKERS))


def _only(steps: list[Step]) -> Step:
    return steps[0]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def first_rows(sources: list[Groups], count: int) -> Iterator[Row]:
    """Some rows of every source."""
    for groups in sources:
        for group in groups[:count]:
            yield group.rows[0]
