"""Which layout rows have, told by their keys."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .containers import container_of

LOOKED_AT = 100  # rows, good or bad
GOOD_ROWS = 20  # of them, after which no more is looked at
DEPTH = 4
ITEMS = 20  # of a list


def seen_keys(path: Path) -> frozenset[str]:
    """Keys of the first rows of a file or folder, those inside with a dot: `messages.content.image`. Lists are looked
    into; what is null is absent. None where it holds no rows, or no good ones.
    """
    holder = container_of(path)
    if holder is None:
        return frozenset()
    keys: set[str] = set()
    good = 0
    for entry in islice(holder.entries(path), LOOKED_AT):
        try:
            row = entry.load()
        except ValueError:
            continue  # the reader names it
        keys |= keys_of(row)
        good += 1
        if good == GOOD_ROWS:
            break
    return frozenset(keys)


def keys_of(row: dict[str, Any]) -> frozenset[str]:
    """Keys of one row, as of [`seen_keys`]."""
    return frozenset(_keys(row))


def _keys(value: Any, above: str = "", depth: int = 0) -> Iterator[str]:
    if isinstance(value, list) and depth <= DEPTH:
        for each in value[:ITEMS]:
            yield from _keys(each, above, depth + 1)
    elif isinstance(value, dict) and depth <= 2 * DEPTH:
        for key, inner in value.items():
            if inner is not None:
                yield f"{above}{key}"
                yield from _keys(inner, f"{above}{key}.", depth + 1)


Forms = Iterable[tuple[str, Iterable[frozenset[str]]]]  # names of layouts, and the keys of each of their forms


def best(keys: frozenset[str], layouts: Forms) -> str | None:
    """The layout that all keys of a form of stand in rows: of several the one with the most keys, then the first by
    name."""
    found = [(-len(form), name) for name, forms in layouts for form in forms if form and form <= keys]
    return min(found)[1] if found else None


def nearest(keys: frozenset[str], layouts: Forms) -> tuple[str, frozenset[str]] | None:
    """The layout whose form lacks the smallest share of its keys, and the form; `None` where there is not one."""
    shares = [
        (-len(form & keys) / len(form), -len(form), name, sorted(form)) for name, forms in layouts for form in forms
    ]
    share, _, name, form = min(shares)
    return (name, frozenset(form)) if share else None
