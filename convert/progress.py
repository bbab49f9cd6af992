"""Progress bars of a conversion."""

from typing import Any

from tqdm import tqdm


def progress_bar(*iterable: Any, shown: bool, **options: Any) -> tqdm:
    """tqdm's bar, hidden where it is not wanted or where there is no terminal on which anybody would see it move."""
    return tqdm(*iterable, disable=None if shown else True, **options)
