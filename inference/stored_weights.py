"""Weights as they lie on disk, against the model that a configuration describes: none missing, none left over, each of
its shape and finite."""

import math
import re
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..checkpoint import open_weights, read_weight_map
from ..configuration_jminigpt4 import JMiniGPT4Config
from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration

FLOATING = ("F64", "F32", "F16", "BF16")  # as safetensors calls them


class StoredNames:
    """Names that transformers finds on disk, as names of a model in memory."""

    def __init__(self, model: PreTrainedModel):
        transforms = get_model_conversion_mapping(model)
        self.names = set(model.state_dict())
        self.renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self.converters = [each for each in transforms if isinstance(each, WeightConverter)]

    def in_memory(self, name: str) -> str:
        """Name in memory of a tensor on disk; one that the model does not have stays one that it does not have."""
        return self.place(name)[0]

    def place(self, name: str) -> tuple[str, bool]:
        """The same, and whether it is changed or merged with others while it is loaded, as experts are."""
        if name in self.names:
            return name, False
        target, merged = rename_source_key(name, self.renamings, self.converters)
        return target, merged is not None


class StoredTensor(NamedTuple):
    """Where a tensor lies and what it is, without its values."""

    file: Path
    shape: tuple[int, ...]
    is_floating: bool


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in the safetensors files of a folder; only their headers are read.

    Raises:
        FileNotFoundError: There are no such files, or one that the index names is missing.
        ValueError: A file is damaged, two hold the same tensor without the index naming the one that loaders read
            last, or there are whole weights beside shards.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.exists() and single.exists():
        raise ValueError(f"{folder} holds {single.name} and {index.name}: which of them counts? Remove the other.")
    if not index.exists() and not single.exists():
        raise FileNotFoundError(f"{folder} has neither {single.name} nor {index.name}: download it completely.")
    weight_map = read_weight_map(index) if index.exists() else {}
    names = sorted(set(weight_map.values())) or [single.name]
    tensors: dict[str, StoredTensor] = {}
    for file in (folder / name for name in names):
        with open_weights(file) as opened:
            for name in opened.keys():  # noqa: SIM118
                # An exported projection replaces one that lies among other weights.
                if name in tensors and weight_map[name] != file.name:
                    raise ValueError(f"{name} lies in {tensors[name].file.name} and in {file.name}.")
                entry = opened.get_slice(name)
                tensors[name] = StoredTensor(file, tuple(entry.get_shape()), entry.get_dtype() in FLOATING)
    return tensors


def read_stored(tensors: dict[str, StoredTensor]) -> Generator[tuple[str, torch.Tensor]]:
    """Names and values of stored tensors, one at a time."""
    for name, tensor in tensors.items():
        with open_weights(tensor.file) as opened:
            yield name, opened.get_tensor(name)


def model_without_memory(
    config: JMiniGPT4Config, architecture: type = JMiniGPT4ForConditionalGeneration, stored: int = 1_000_000
) -> JMiniGPT4ForConditionalGeneration:
    """The configured model on the meta device: names and shapes of all its tensors.

    Args:
        stored: How many tensors there are on disk. Where the model would have several times as many it is not built:
            a configuration may state any number of layers.

    Raises:
        ValueError: The configuration describes no model, or one of far more tensors.
    """
    with torch.device("meta"), _at_most(4 * stored + 100):
        return architecture(config)


@contextmanager
def _at_most(parameters: int) -> Generator[None]:
    count = 0

    def count_one(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter):
        nonlocal count
        count += 1
        if count > parameters:
            raise ValueError(f"the model it describes has more than {parameters:,} tensors, far more than are stored.")

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(count_one)
    try:
        yield
    finally:
        handle.remove()


def weight_problems(model: JMiniGPT4ForConditionalGeneration, tensors: dict[str, StoredTensor]) -> list[str]:
    """What is missing, left over, or of another shape or kind than the model has it, one sentence each."""
    expected = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    stored = StoredNames(model)
    found = {name: stored.place(name) for name in tensors}
    present = {in_memory for in_memory, _ in found.values()}
    merged: Counter[str] = Counter()
    ignored = "|".join(model._keys_to_ignore_on_load_unexpected or ()) or r"(?!)"
    problems = [f"The weights lack {name}." for name in expected if name not in present]
    for name, (in_memory, is_part) in found.items():
        if in_memory not in expected:
            if not re.search(ignored, in_memory):
                problems.append(f"The weights hold {name}, which the configured model does not have.")
            continue
        shape, tensor = tuple(expected[in_memory].shape), expected[in_memory]
        if is_part:
            merged[in_memory] += math.prod(tensors[name].shape)
        elif tensors[name].shape != shape:
            problems.append(f"{name} is {tensors[name].shape}; the configuration says {shape}.")
        elif tensors[name].is_floating != tensor.is_floating_point():
            problems.append(f"{name} is not stored as the floating point numbers or integers that it consists of.")
    parts = (name for name, size in merged.items() if size != expected[name].numel())
    return problems + [f"The weights hold more or fewer parts than {name} is merged of." for name in parts]


def finite_problems(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Tensors that hold a NaN or an infinity, one sentence each."""
    return [
        f"{name} holds {int((~torch.isfinite(tensor)).sum())} values that are NaN or infinite (in {tensor.dtype})."
        for name, tensor in tensors
        if not is_finite(tensor)
    ]


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one of integers never does."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # A NaN becomes both extremes. Thirty times faster than to look at every value by itself.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))
