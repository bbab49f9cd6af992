"""The data of a run: sources to groups of rows, without what cannot or must not be trained on."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from ..data.first_look import LOOKED_FOR, look_at, too_many
from ..data.id_lists import read_ids, unmatched_line
from ..data.pictures import Picture
from ..data.readers import DataSource, as_source, refuse
from ..data.rows import BadRow, Row
from ..data.table import RowList, Rows, RowTable, open_table
from .features import BadPicture, FeatureCache, fill_together
from .groups import Grouping, Groups, distinct_pictures, group, split
from .prompts import CaptionPrompts
from .recipe import Recipe
from .selection import CocoTwins, not_in, rows_about
from .sizing import validation_share


@dataclass(frozen=True)
class SourceData:
    """The groups of one source, what its captions are asked with, and the rows that were left out as bad."""

    title: str
    training: Groups
    validation: Groups
    prompts: CaptionPrompts
    weight: float | None
    bad_rows: Sequence[BadRow] = ()


def read_data(data: Any, recipe: Recipe, twins: CocoTwins) -> list[SourceData]:
    """Sources to groups of rows for training and validation, without what must not be trained on.

    Rows are mapped from their tables on disk; where one is still to be made, the first process makes it.

    Raises:
        FileNotFoundError: A data file is missing, or more pictures are than the recipe allows.
        ValueError: There is no data, all of a source is excluded, a row is bad and the recipe does not allow it, or
            most pictures are none.
    """
    with PartialState().main_process_first():
        sources = _sources(data, recipe)
        if not sources:
            raise ValueError("There is no data: name files, or a recipe with `data`.")
        excluded = _excluded_ids(recipe.exclude, [table for _, table in sources], twins)
        groupings = [grouping_of(table, excluded, recipe, twins) for _, table in sources]
    share = held_share(recipe, groupings)
    result = []
    for number, ((source, _), grouping) in enumerate(zip(sources, groupings, strict=True)):
        look_through(source, grouping, recipe)
        result.append(data_of(source, grouping, recipe, number, share))
        if not result[-1].training:
            raise ValueError(
                f"Nothing of {source.title} is left to train on: its rows have no pictures, are excluded, or all "
                "fall into the validation share."
            )
    return result


def grouping_of(table: Rows, excluded: set[str], recipe: Recipe, twins: CocoTwins) -> Grouping:
    """The groups of a table that a recipe trains on or validates with, without those about excluded pictures."""
    # Where the language model does not learn, a row without a picture has a gradient of zero.
    without_pictures = bool(recipe.language_learns)
    return group(table, rows_about(excluded, table, twins), twins, recipe.rows_per_picture, without_pictures)


def held_share(recipe: Recipe, groupings: list[Grouping]) -> float:
    """The share of groups that is kept for validation."""
    return validation_share(sum(map(len, groupings))) if "validation" in recipe.auto else recipe.validation


def look_through(source: DataSource, grouping: Grouping, recipe: Recipe):
    """Looks whether the pictures of a source are where it says; see [`look_at`], whose errors these are."""
    most = recipe.max_bad_share if recipe.on_bad_picture == "skip" else 0.0
    look_at(_evenly_chosen(split(grouping, 0.0)[0]), source.title, most, grouping.meta["pictures"])


def data_of(source: DataSource, grouping: Grouping, recipe: Recipe, number: int, share: float) -> SourceData:
    """The groups of source `number`, of which `share` is for validation."""
    training, validation = split(grouping, share)
    prompts = _prompts(source, recipe, recipe.seed + number)
    return SourceData(source.title, training, validation, prompts, source.weight, grouping.table.bad)


def _evenly_chosen(groups: Groups) -> list[Picture]:
    """Pictures of evenly chosen groups, enough to look for `LOOKED_FOR` of them."""
    return list(distinct_pictures([groups[:: -(-len(groups) // LOOKED_FOR) or 1]]))


def _prompts(source: DataSource, recipe: Recipe, seed: int) -> CaptionPrompts:
    wording = source.prompts if source.prompts is not None else recipe.prompts
    often = source.prompt_probability if source.prompt_probability is not None else recipe.prompt_probability
    return CaptionPrompts(wording, often, seed)


def _excluded_ids(lists: list[str], tables: list[Rows], twins: CocoTwins) -> set[str]:
    """Ids of all exclusion lists; says which of them match nothing, as a list of another spelling excludes nothing."""
    excluded: set[str] = set()
    for path in lists:
        ids = read_ids(path)
        if (unmatched := not_in(ids, tables, twins)) and PartialState().is_main_process:
            tqdm.write(f"exclude: {unmatched_line(path, unmatched, ids)}")
        excluded |= ids.keys()
    return excluded


def _sources(data: Any, recipe: Recipe) -> list[tuple[DataSource, Rows]]:
    if isinstance(data, str | os.PathLike | dict | DataSource):
        data = [data]
    if data and all(isinstance(each, Row) for each in data):
        by_source: dict[str, list[Row]] = {}
        for row in data:
            by_source.setdefault(row.source, []).append(row)
        return [(DataSource(path="", name=name), RowList(rows)) for name, rows in by_source.items()]
    read = [as_source(each) for each in data or []]
    if streams := [source for source in read if source.stream]:
        raise ValueError(
            f"{streams[0].path} is a stream, and what is looked at again has to be here: leave `stream` out and have "
            "its files on this machine."
        )
    return [(source, read_table(source, recipe, PartialState().is_main_process)) for source in read]


def read_table(source: DataSource, recipe: Recipe, aloud: bool, **options: Any) -> RowTable:
    """The rows of a source, as far as the recipe allows bad ones among them; `options` as of [`open_table`].

    Raises:
        ValueError: A row is bad and the recipe does not allow it, or too many are; or as of [`open_table`].
    """
    table = open_table(source, refuse if recipe.on_bad_row == "raise" else None, aloud, **options)
    count, every = len(table.bad), len(table) + len(table.bad)
    if too_many(count, every, recipe.max_bad_share):
        raise ValueError(
            f"{count:,} of {every:,} rows of {source.title} are bad, more than max_bad_share "
            f"{recipe.max_bad_share}. The first: {table.bad[0].reason}"
        )
    if count and aloud:
        tqdm.write(f"{count:,} of {every:,} rows of {source.title} are left out, the first: {table.bad[0].reason}")
    return table


class BadPictures:
    """Counts and lists bad pictures, and stops when the recipe says so.

    Args:
        recipe: `on_bad_picture` and `max_bad_share`.
        sources: The data, whose pictures are counted once one is bad.
    """

    def __init__(self, recipe: Recipe, sources: list[SourceData]):
        self.recipe, self._sources = recipe, sources
        self.found: dict[str, BadPicture] = {}

    @cached_property
    def pictures(self) -> int:
        """Number of pictures of the data."""
        return sum(1 for _ in pictures_of(self._sources))

    def note(self, bad: BadPicture):
        """Takes a bad picture into the list.

        Raises:
            ValueError: The recipe does not allow bad pictures, or fewer of them.
        """
        self.found[bad.name] = bad
        if self.recipe.on_bad_picture == "raise":
            raise ValueError(f"{bad.reason} (on_bad_picture is `raise`; `skip` leaves its rows out.)")
        if too_many(len(self.found), self.pictures, self.recipe.max_bad_share):
            raise ValueError(
                f"{len(self.found)} of {self.pictures} pictures cannot be read, more than max_bad_share "
                f"{self.recipe.max_bad_share}. The last: {bad.reason} Is the picture folder the right one?"
            )


def pictures_of(sources: list[SourceData]) -> Iterator[Picture]:
    """The pictures of all groups, those for validation as well, each once."""
    return distinct_pictures(groups for source in sources for groups in (source.training, source.validation))


def most_pictures(sources: list[SourceData]) -> int:
    """The most pictures that there can be: one of several sources counts in each, one of a row left out as well."""
    return sum(source.training.grouping.meta["pictures"] for source in sources)


def fill_cache(
    cache: FeatureCache,
    sources: list[SourceData],
    policy: BadPictures,
    state: PartialState,
    progress: bool,
    workers: int | None = None,
) -> list[SourceData]:
    """Computes missing features, every process its share, and leaves out the groups whose pictures are bad.

    Raises:
        ValueError: Too many pictures are bad, or all of a source.
    """
    total = most_pictures(sources)
    bad = fill_together(cache, pictures_of(sources), state, progress, policy.note, workers, total)
    for each in bad:
        policy.note(each)
    return without_pictures_called({each.name for each in bad}, sources) if bad else sources


def without_pictures_called(names: set[str], sources: list[SourceData]) -> list[SourceData]:
    """The sources without the groups that show one of these pictures.

    Raises:
        ValueError: Nothing of a source is left.
    """
    kept = []
    for source in sources:
        groups = source.training.about(names)
        kept.append(replace(source, training=source.training.drop(groups), validation=source.validation.drop(groups)))
        if not kept[-1].training:
            raise ValueError(f"No picture of {source.title} can be read.")
    return kept
