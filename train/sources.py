"""The data of a run: sources to groups of rows, without what cannot or must not be trained on."""

import os
from dataclasses import dataclass, replace
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from ..data.first_look import look_at, too_many
from ..data.id_lists import read_ids, unmatched_line
from ..data.pictures import Picture, TablePicture
from ..data.readers import DataSource, as_source, read_source, refuse
from ..data.rows import BadRow, Group, Row, group_rows
from .features import BadPicture, FeatureCache, fill_together
from .prompts import CaptionPrompts
from .recipe import Recipe
from .selection import CocoTwins, exclude, not_in, split
from .sizing import validation_share


@dataclass(frozen=True)
class SourceData:
    """The groups of one source, what its captions are asked with, and the rows that were left out as bad."""

    title: str
    training: list[Group]
    validation: list[Group]
    prompts: CaptionPrompts
    weight: float | None
    bad_rows: tuple[BadRow, ...] = ()


def read_data(data: Any, recipe: Recipe, twins: CocoTwins) -> list[SourceData]:
    """Sources to groups of rows for training and validation, without what must not be trained on.

    Raises:
        FileNotFoundError: A data file is missing, or more pictures are than the recipe allows.
        ValueError: There is no data, all of a source is excluded, a row is bad and the recipe does not allow it, or
            most pictures are none.
    """
    sources = _sources(data, recipe)
    if not sources:
        raise ValueError("There is no data: name files, or a recipe with `data`.")
    excluded = _excluded_ids(recipe.exclude, [row for _, rows, _ in sources for row in rows], twins)
    most = recipe.max_bad_share if recipe.on_bad_picture == "skip" else 0.0
    grouped = []
    for source, rows, _ in sources:
        rows = exclude(rows, excluded, twins) if excluded else rows
        look_at((picture for row in rows for picture in row.pictures), source.title, most)
        # Where the language model does not learn, a row without a picture has a gradient of zero.
        rows = rows if recipe.language_learns else [row for row in rows if row.pictures]
        grouped.append(group_rows(rows, recipe.rows_per_picture))
    share = recipe.validation
    if "validation" in recipe.auto:
        share = validation_share(sum(map(len, grouped)))
    result = []
    for number, ((source, _, bad), groups) in enumerate(zip(sources, grouped, strict=True)):
        training, validation = split(groups, share, twins)
        if not training:
            raise ValueError(
                f"Nothing of {source.title} is left to train on: its rows have no pictures, are excluded, or all "
                "fall into the validation share."
            )
        prompts = _prompts(source, recipe, recipe.seed + number)
        result.append(SourceData(source.title, training, validation, prompts, source.weight, tuple(bad)))
    return result


def _prompts(source: DataSource, recipe: Recipe, seed: int) -> CaptionPrompts:
    wording = source.prompts if source.prompts is not None else recipe.prompts
    often = source.prompt_probability if source.prompt_probability is not None else recipe.prompt_probability
    return CaptionPrompts(wording, often, seed)


def _excluded_ids(lists: list[str], rows: list[Row], twins: CocoTwins) -> set[str]:
    """Ids of all exclusion lists; says which of them match nothing, as a list of another spelling excludes nothing."""
    excluded: set[str] = set()
    for path in lists:
        ids = read_ids(path)
        if (unmatched := not_in(ids, rows, twins)) and PartialState().is_main_process:
            tqdm.write(f"exclude: {unmatched_line(path, unmatched, ids)}")
        excluded |= ids.keys()
    return excluded


def _sources(data: Any, recipe: Recipe) -> list[tuple[DataSource, list[Row], list[BadRow]]]:
    if isinstance(data, str | os.PathLike | dict | DataSource):
        data = [data]
    if data and all(isinstance(each, Row) for each in data):
        by_source: dict[str, list[Row]] = {}
        for row in data:
            by_source.setdefault(row.source, []).append(row)
        return [(DataSource(path="", name=name), rows, []) for name, rows in by_source.items()]
    return [_read(as_source(each), recipe) for each in data or []]


def _read(source: DataSource, recipe: Recipe) -> tuple[DataSource, list[Row], list[BadRow]]:
    bad: list[BadRow] = []
    rows = read_source(source, refuse if recipe.on_bad_row == "raise" else bad.append)
    every = len(rows) + len(bad)
    if too_many(len(bad), every, recipe.max_bad_share):
        raise ValueError(
            f"{len(bad):,} of {every:,} rows of {source.title} are bad, more than max_bad_share "
            f"{recipe.max_bad_share}. The first: {bad[0].reason}"
        )
    if bad and PartialState().is_main_process:
        tqdm.write(f"{len(bad):,} of {every:,} rows of {source.title} are left out, the first: {bad[0].reason}")
    return source, rows, bad


class BadPictures:
    """Counts and lists bad pictures, and stops when the recipe says so.

    Args:
        recipe: `on_bad_picture` and `max_bad_share`.
        pictures: Number of pictures of the data.
    """

    def __init__(self, recipe: Recipe, pictures: int):
        self.recipe, self.pictures = recipe, pictures
        self.found: dict[str, BadPicture] = {}

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


def pictures_of(sources: list[SourceData]) -> list[Picture | TablePicture]:
    """The pictures of all groups, those for validation as well; one that several groups show comes several times."""
    groups = [group for source in sources for group in (*source.training, *source.validation)]
    return [picture for group in groups for picture in group.pictures]


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
    for each in fill_together(cache, pictures_of(sources), state, progress, policy.note, workers):
        policy.note(each)
    kept = []
    for source in sources:
        usable = {
            name: [group for group in groups if all(picture in cache for picture in group.pictures)]
            for name, groups in (("training", source.training), ("validation", source.validation))
        }
        if not usable["training"]:
            raise ValueError(f"No picture of {source.title} can be read.")
        kept.append(replace(source, **usable))
    return kept
