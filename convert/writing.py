"""safetensors written as a stream: the layout is settled before the first byte, then one tensor after another goes by.

The format is a length, a JSON header and the raw bytes (https://github.com/huggingface/safetensors, "Format").
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

SHARD_BYTES = 5 * 10**9
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """One tensor to be written: its name, where it comes from, and the form it will have."""

    name: str
    read: Callable[[], torch.Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_sharded(
    folder: Path,
    entries: list[Entry],
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], object] = lambda nbytes: None,
):
    """Writes all tensors into `folder`, with an index where there is more than one file.

    Args:
        progress: Called with the number of bytes after each tensor.

    Raises:
        ValueError: A tensor holds values that are not finite, or do not fit the dtype it is to be written in.
    """
    by_name = {entry.name: entry for entry in entries}
    split: Any = split_state_dict_into_shards_factory(  # it needs sizes alone, so entries do for tensors
        by_name,
        get_storage_size=lambda entry: entry.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    for name, tensors in split.filename_to_tensors.items():
        _write_file(folder / name, [by_name[tensor] for tensor in tensors], progress)
    if split.is_sharded:
        parameters = sum(torch.Size(entry.shape).numel() for entry in entries)
        index = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _write_file(path: Path, entries: list[Entry], progress: Callable[[int], object]):
    # Wide types first keeps every tensor aligned to its own size, as the format's own writer does it.
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.nbytes
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for entry in entries:
            file.write(_raw_bytes(entry))
            progress(entry.nbytes)


def _raw_bytes(entry: Entry) -> memoryview:
    tensor = entry.read()
    if tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{entry.name} is {tuple(tensor.shape)} in its source but {entry.shape} was expected.")
    check_finite(entry.name, tensor)
    converted = tensor.to(entry.dtype).contiguous()
    if converted.dtype != tensor.dtype and not _is_finite(converted):
        raise ValueError(
            f"{entry.name} holds values too large for {entry.dtype}: choose bfloat16 or float32 for the output."
        )
    return memoryview(converted.reshape(-1).view(torch.uint8).numpy())


def check_finite(name: str, tensor: torch.Tensor):
    """Raises `ValueError`, naming the tensor, if it holds a NaN or an infinity."""
    if not _is_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} holds {bad} values that are NaN or infinite: its source is damaged.")


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # A NaN becomes both extremes. Thirty times faster than to look at every value by itself.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))
