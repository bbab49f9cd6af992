"""Weights on disk, one tensor at a time: the originals' pickles, safetensors, sharded folders, all read the same way.

Nothing is kept: whatever the size of a checkpoint, reading it takes the memory of the tensor being read and of the
pages that are still mapped, at most `MAPPED_BYTES`.
"""

import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import check_not_pointer, open_weights, read_weight_map

# Pages of a mapped file count as memory of the process until the file is mapped anew.
MAPPED_BYTES = 256 * 2**20
# Files of transformers in the order in which they are taken, each with its index of shards. The last two are all there
# is where only `save_pretrained(variant="fp16")` was published.
WEIGHT_NAMES = {
    "model.safetensors": "model.safetensors.index.json",
    "pytorch_model.bin": "pytorch_model.bin.index.json",
    "model.fp16.safetensors": "model.safetensors.index.fp16.json",
    "pytorch_model.fp16.bin": "pytorch_model.bin.index.fp16.json",
}


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a torch file; a training checkpoint's are those under `model`.

    Raises:
        ValueError: The file holds anything but tensors and plain values, or is no torch file.
    """
    check_not_pointer(path)
    try:
        # The format of torch < 1.6 is no zip archive and cannot be mapped; it is read as a whole, just as strictly.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged or hostile pickle makes of torch's reader
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            # Not torch's own words: they advise to run what the file holds.
            raise ValueError(
                f"{path} is not a file of tensors alone, so it is not opened: it asks for {found[1]}. Get the "
                "original file anew."
            ) from None
        raise ValueError(f"{path} cannot be read as a torch file: it is cut off or of another kind.") from None
    for key in ("model", "state_dict", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    named = loaded.items() if isinstance(loaded, dict) else ()
    tensors = {key: value for key, value in named if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors.")
    return tensors


class _PickleFile:
    def __init__(self, path: Path):
        self.path = path
        self.tensors = _load_pickle(path)
        self.mapped = 0

    def keys(self) -> Iterable[str]:
        return self.tensors

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].dtype

    def read(self, key: str) -> torch.Tensor:
        if self.mapped > MAPPED_BYTES:
            self.tensors, self.mapped = {}, 0
            self.tensors = _load_pickle(self.path)
        tensor = self.tensors[key]
        self.mapped += tensor.nbytes
        return tensor


class _SafetensorsFile:
    def __init__(self, path: Path):
        self.path = path
        self._open()

    def _open(self):
        self.file = open_weights(self.path)
        self.mapped = 0

    def keys(self) -> Iterable[str]:
        return self.file.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.file.get_slice(key).get_shape())

    def dtype(self, key: str) -> torch.dtype:
        return self.file.get_slice(key)[:0].dtype if self.shape(key) else self.file.get_tensor(key).dtype

    def read(self, key: str) -> torch.Tensor:
        if self.mapped > MAPPED_BYTES:
            self._open()
        tensor = self.file.get_tensor(key)
        self.mapped += tensor.nbytes
        return tensor


class Weights:
    """All tensors of one source by name, with an account of what was taken.

    Args:
        files: Name of every tensor and the file it is in, which `fetch` turns into a local path when it is needed; so
            of a sharded repository only the shards in use are ever downloaded.
        fetch: File name to local path.
    """

    def __init__(self, files: dict[str, str], fetch: Callable[[str], Path]):
        self.files = files
        self.fetch = fetch
        self.taken: set[str] = set()
        self._name, self._file = "", None

    @classmethod
    def from_file(cls, path: Path) -> "Weights":
        """Tensors of one `.safetensors` file, or of one torch file of any name."""
        file = _open_file(path)
        weights = cls(dict.fromkeys(file.keys(), path.name), lambda name: path)
        weights._name, weights._file = path.name, file
        return weights

    @classmethod
    def from_folder(cls, fetch: Callable[[str], Path | None], name: str) -> "Weights":
        """Tensors of a transformers folder: one file or an index of shards, safetensors rather than pickles.

        Args:
            fetch: File name to local path, or to `None` where the folder has no such file.
            name: What error messages call the folder.

        Raises:
            FileNotFoundError: The folder has no weights.
            ValueError: A shard that the index names is missing, or the index is none.
        """

        def need(file_name: str) -> Path:
            path = fetch(file_name)
            if path is None:
                raise ValueError(f"{name} lacks {file_name}, which its index names: download it completely.")
            return path

        for single in WEIGHT_NAMES:
            index = fetch(WEIGHT_NAMES[single])
            if index is not None:
                return cls(read_weight_map(index), need)
            path = fetch(single)
            if path is not None:
                return cls.from_file(path)
        raise FileNotFoundError(f"{name} has neither model.safetensors nor pytorch_model.bin, nor an index of shards.")

    def _reader(self, key: str) -> Any:
        if key not in self.files:
            raise ValueError(f"There is no {key} in its source: the file is incomplete.")
        name = self.files[key]
        if name != self._name:
            self._file = None  # the mapping of the shard before is given back first
            self._name, self._file = name, _open_file(self.fetch(name))
        return self._file

    @property
    def variant(self) -> str | None:
        """What transformers calls these files: `fp16`, or nothing."""
        return "fp16" if any(".fp16" in name for name in self.files.values()) else None

    def names(self) -> list[str]:
        return list(self.files)

    def __contains__(self, key: str) -> bool:
        return key in self.files

    def shape(self, key: str, dimensions: int | None = None) -> tuple[int, ...]:
        """Sizes of a tensor.

        Raises:
            ValueError: It has not the number of `dimensions` that it should have.
        """
        shape = self._reader(key).shape(key)
        if dimensions not in (None, len(shape)):
            raise ValueError(f"{key} is {shape} in its source, but {dimensions} dimensions were expected.")
        return shape

    def dtype(self, key: str) -> torch.dtype:
        return self._reader(key).dtype(key)

    def read(self, key: str) -> torch.Tensor:
        """One tensor, as it is stored. It may be a view of the file: it is not to be changed."""
        return self._reader(key).read(key)

    def take(self, key: str) -> Callable[[], torch.Tensor]:
        """Marks a tensor as used and returns what reads it."""
        self.taken.add(key)
        return lambda: self.read(key)

    def matching(self, pattern: str) -> list[str]:
        return [key for key in self.files if re.match(pattern, key)]


def _open_file(path: Path) -> _PickleFile | _SafetensorsFile:
    return _SafetensorsFile(path) if path.suffix == ".safetensors" else _PickleFile(path)
