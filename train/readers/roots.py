"""Where pictures lie: names of data sets to files in one or several folders."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..rows import Picture


class PictureRoots:
    """Folders that are looked through in order.

    Args:
        roots: The folders.

    Raises:
        FileNotFoundError: A folder is not there.
    """

    def __init__(self, roots: Iterable[str | os.PathLike]):
        self.roots = [Path(root) for root in roots]
        for root in self.roots:
            if not root.is_dir():
                raise FileNotFoundError(f"The picture folder {root} does not exist.")
        self._listed: dict[str, frozenset[str]] = {}

    def find(self, *names: str) -> Picture:
        """The first of the names that exists in one of the folders.

        A picture that is nowhere is returned under its first name in the first folder: reading it fails, is counted
        and names it, and no other picture takes its place.
        """
        for name in names:
            for root in self.roots:
                folder, _, file = name.rpartition("/")
                if file in self._files(os.path.join(root, folder)):
                    return Picture(os.path.join(root, name))
        return Picture(os.path.join(self.roots[0], names[0]))

    def _files(self, folder: str) -> frozenset[str]:
        # One listing of a folder replaces a look-up on the disk per picture and root.
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(entry.name for entry in os.scandir(folder))
            except OSError:
                self._listed[folder] = frozenset()
        return self._listed[folder]
