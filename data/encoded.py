"""Pictures that rows hold in base64: where in the file they stand, so that they can be read when they are needed."""

import io
import mmap
import re
from pathlib import Path

from .files import open_regular
from .pictures import EncodedPicture

_ENCODED = re.compile(r"data:[\w/+.;=-]*;base64,")


def is_encoded(shown: str) -> bool:
    """Whether a text is a picture in base64, as `data:` addresses of OpenAI, Qwen and ms-swift hold them."""
    return _ENCODED.match(shown) is not None


class EncodedTexts:
    """Places of base64 in a JSON file, asked for in the order in which they stand there.

    Args:
        file: JSON, or JSON lines.
    """

    def __init__(self, file: Path):
        self.file = file
        self._content: mmap.mmap | None = None
        self._position = 0

    def find(self, shown: str) -> EncodedPicture:
        """The picture of a `data:` address that was read from the file.

        Raises:
            ValueError: It is empty, the file is not on this disk, or it does not stand in the file as it was read.
        """
        payload = shown.partition(",")[2]
        # JSON may write these characters in other ways, and writers for web pages do.
        spellings = dict.fromkeys([payload, payload.replace("/", "\\/"), payload.replace("+", "\\u002B")])
        for start in dict.fromkeys((self._position, 0)):
            for spelling in spellings if payload else ():
                written = spelling.encode()
                offset = self._mapped().find(written, start)
                if offset >= 0:
                    self._position = offset + len(written)
                    return EncodedPicture(str(self.file), offset, len(written))
        raise ValueError(f"a picture in base64, {shown[:60]!r}, cannot be found in the file.")

    def _mapped(self) -> mmap.mmap:
        if self._content is None:
            with open_regular(self.file) as file:
                try:
                    self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except io.UnsupportedOperation:
                    raise ValueError(
                        "pictures in base64 are read from files on disk only: download the file."
                    ) from None
        return self._content
