"""Shared-prefix packing: all answers about a picture stand in one sequence behind one copy of its prompt.

    one pack        │ prompt of picture A │ answer 1 │ answer 2 │ prompt of picture B │ answer 1 │ …
    group           │ 0                   │ 0        │ 0        │ 1                   │ 1        │
    segment         │ 0                   │ 1        │ 2        │ 0                   │ 1        │

A position sees earlier positions of its own group, either in the prompt (segment 0) or in its own segment; positions
are counted as in separate rows. The prompt's last position predicts the first token of every segment: its output is
the same in all of them and is compared with each. The last token of a row predicts nothing and is left out. So each
supervised position sees exactly the keys it would see in its own row: loss and gradient are those of separate rows.
"""

from dataclasses import dataclass, fields, replace

import torch

IGNORED = -100


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as token ids with labels (not shifted; -100 where nothing is learnt), and the number of its source."""

    input_ids: list[int]
    labels: list[int]
    source: int = 0

    @property
    def first_learnt(self) -> int:
        """Index of the first label, or the length of the row when there is none."""
        return next((index for index, label in enumerate(self.labels) if label != IGNORED), len(self.labels))

    @property
    def last_learnt(self) -> int:
        """Index of the last label, or 0 when there is none: no token from there on is looked at by anything learnt."""
        return next((index for index in range(len(self.labels) - 1, 0, -1) if self.labels[index] != IGNORED), 0)


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """Rows about the same pictures; `pictures` says which of the step's pictures these are, in order."""

    rows: tuple[EncodedRow, ...]
    pictures: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """One sequence of `length` tokens, a batch of one for the language model.

    Args:
        input_ids, position_ids, group, segment: `(length,)`, int64; see the module's drawing.
        supervised: `(n,)` positions whose output predicts a target; the last of a shared prompt once per segment.
        targets: `(n,)` token ids.
        weights: `(n,)` float32, what each target's loss counts: 1, or 1 / tokens of its answer.
        sources: `(n,)` number of the data source of each target.
        pictures: `(places,)` which of the step's pictures stands at each place for one.
        prefix: Token ids before the first picture that are not in the sequence: their keys and values are given.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    group: torch.Tensor
    segment: torch.Tensor
    supervised: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    sources: torch.Tensor
    pictures: torch.Tensor
    prefix: tuple[int, ...] = ()

    def to(self, device: torch.device | str) -> "Pack":
        """The same with all tensors on `device`."""
        tensors = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "prefix"}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def attention_mask(pack: Pack) -> torch.Tensor:
    """Who sees whom, `(1, 1, length, prefix + length)`, bool."""
    position = torch.arange(len(pack.input_ids), device=pack.input_ids.device)
    seen = (
        (pack.group[:, None] == pack.group)
        & ((pack.segment == 0) | (pack.segment[:, None] == pack.segment))
        & (position[:, None] >= position)
    )
    prefix = seen.new_ones(len(position), len(pack.prefix))
    return torch.cat([prefix, seen], dim=1)[None, None]


def shared_length(rows: tuple[EncodedRow, ...]) -> int:
    """Number of leading tokens that all rows have in common and learn nothing from; 0 for a single row."""
    if len(rows) < 2:
        return 0
    first = rows[0].input_ids
    length = min(row.first_learnt for row in rows)
    for row in rows[1:]:
        length = next((i for i in range(length) if row.input_ids[i] != first[i]), length)
    return length


class Packer:
    """Groups of rows to packs.

    Args:
        image_token_id: Id of the image token.
        num_query_tokens: Image tokens of one picture.
        pack_tokens: Most tokens of a pack; only a single longer row makes a longer one.
        prefix: Token ids that stand before the first picture in most rows; left out of a pack whose rows all begin
            with them.
        mean_per_answer: Whether each answer counts 1, whatever its length, instead of each token.
    """

    def __init__(
        self,
        image_token_id: int,
        num_query_tokens: int,
        pack_tokens: int = 1024,
        prefix: tuple[int, ...] = (),
        mean_per_answer: bool = False,
        share: bool = True,
    ):
        self.image_token_id, self.num_query_tokens = image_token_id, num_query_tokens
        self.pack_tokens, self.prefix, self.mean_per_answer = pack_tokens, tuple(prefix), mean_per_answer
        self.share = share

    def pack(self, groups: list[EncodedGroup]) -> list[Pack]:
        """All groups of a step in as few packs as first fit finds; loss and gradient do not depend on it."""
        bins: dict[bool, list[list[_Layout]]] = {True: [], False: []}
        for layout in (layout for group in groups for layout in self._fitting(group)):
            candidates = bins[layout.skipped > 0]
            fitting = (each for each in candidates if layout.length + _length(each) <= self.pack_tokens)
            chosen = next(fitting, None)
            if chosen is None:
                candidates.append([layout])
            else:
                chosen.append(layout)
        return [self._assemble(layouts) for candidates in bins.values() for layouts in candidates]

    def _fitting(self, group: EncodedGroup) -> list["_Layout"]:
        """The group, or halves of it until each fits or is a single row."""
        layout = self._lay_out(group)
        if len(group.rows) == 1 or (layout.length <= self.pack_tokens and self.share):
            return [layout]
        half = len(group.rows) // 2
        parts = (group.rows[:half], group.rows[half:])
        return [each for rows in parts for each in self._fitting(EncodedGroup(rows, group.pictures))]

    def _lay_out(self, group: EncodedGroup) -> "_Layout":
        shared = shared_length(group.rows)
        skipped = len(self.prefix)
        begins = all(tuple(row.input_ids[:skipped]) == self.prefix for row in group.rows)
        # The last position left out must have nothing to predict.
        if not begins or min(row.first_learnt for row in group.rows) <= skipped:
            skipped = 0
        return _Layout(group, max(shared, skipped), skipped)

    def _assemble(self, layouts: list["_Layout"]) -> Pack:
        columns: dict[str, list] = {each.name: [] for each in fields(Pack)}
        for number, layout in enumerate(layouts):
            self._append(columns, number, layout)
        weights = torch.tensor(columns.pop("weights"), dtype=torch.float32)
        columns.pop("prefix")
        tensors = {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}
        return Pack(**tensors, weights=weights, prefix=self.prefix if layouts[0].skipped else ())

    def _append(self, columns: dict[str, list], number: int, layout: "_Layout"):
        group, begin = layout.group, layout.shared
        self._append_tokens(columns, group.rows[0].input_ids, range(layout.skipped, begin), number, 0, group.pictures)
        prompt_end = len(columns["input_ids"]) - 1
        for segment, row in enumerate(group.rows, 1):
            offset = len(columns["input_ids"]) - begin
            stretch = range(begin, row.last_learnt)
            self._append_tokens(columns, row.input_ids, stretch, number, segment, group.pictures)
            # Position i predicts token i + 1; the first token of a segment is predicted by the prompt.
            learnt = [index for index in range(max(begin, 1), len(row.labels)) if row.labels[index] != IGNORED]
            columns["supervised"] += [offset + index - 1 if index > begin else prompt_end for index in learnt]
            columns["targets"] += [row.labels[index] for index in learnt]
            columns["weights"] += self._weights(learnt)
            columns["sources"] += [row.source] * len(learnt)

    def _append_tokens(
        self,
        columns: dict[str, list],
        ids: list[int],
        stretch: range,
        number: int,
        segment: int,
        pictures: tuple[int, ...],
    ):
        columns["input_ids"] += ids[stretch.start : stretch.stop]
        columns["position_ids"] += stretch
        columns["group"] += [number] * len(stretch)
        columns["segment"] += [segment] * len(stretch)
        first, last = (
            ids[:end].count(self.image_token_id) // self.num_query_tokens for end in (stretch.start, stretch.stop)
        )
        columns["pictures"] += pictures[first:last]

    def _weights(self, learnt: list[int]) -> list[float]:
        if not self.mean_per_answer:
            return [1.0] * len(learnt)
        weights, run = [], []
        for index in learnt:
            if run and index != run[-1] + 1:
                weights += [1 / len(run)] * len(run)
                run = []
            run.append(index)
        return weights + [1 / len(run)] * len(run) if run else weights


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a group lies in a pack: `shared` leading tokens once, the first `skipped` of them not in the pack."""

    group: EncodedGroup
    shared: int
    skipped: int

    @property
    def length(self) -> int:
        return self.shared - self.skipped + sum(row.last_learnt - self.shared for row in self.group.rows)


def _length(layouts: list[_Layout]) -> int:
    return sum(layout.length for layout in layouts)
