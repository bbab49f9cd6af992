"""Weights as they lie on disk, against the model that a configuration describes: none missing, none left over, each of
its shape and finite."""

import copy
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ..checkpoint import open_weights, read_weight_map
from ..configuration_jminigpt4 import JMiniGPT4Config
from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration

FLOATING = ("F64", "F32", "F16", "BF16")  # as safetensors calls them


class Place(NamedTuple):
    """Where a tensor on disk goes to: names in memory, and the pattern by which transformers changes it on its way."""

    names: tuple[str, ...]
    pattern: str | None = None


class StoredNames:
    """Names that transformers finds on disk, as names of a model in memory, by transformers' own conversion mapping:
    experts have a tensor each on disk and are merged while they are loaded, other families split one, or rename.

    Args:
        is_part: The model is a part of another, where transformers neither adds nor removes the prefix of a base.

    Attributes:
        state (`dict`): Names in memory, and the tensors there.
    """

    def __init__(self, model: PreTrainedModel, is_part: bool = False):
        transforms = get_model_conversion_mapping(model)
        self._prefix = None if is_part else model.base_model_prefix
        self.model, self.state = model, model.state_dict()
        self._renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self._converters = [each for each in transforms if isinstance(each, WeightConverter)]

    def in_memory(self, name: str) -> str:
        """Name in memory of a tensor on disk; one that the model does not have stays one that it does not have."""
        return self.place(name).names[0]

    def place(self, name: str) -> Place:
        """Where a tensor on disk goes to."""
        target, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self.state)
        if target not in self.state and name in self.state:
            return Place((name,))
        if pattern is None:
            return Place((target,))
        first, *others = self._converter(pattern).target_patterns
        return Place((target, *(target.replace(first, each) for each in others)), pattern)

    def _converter(self, pattern: str) -> WeightConverter:
        return next(each for each in self._converters if pattern in each.source_patterns)

    def convert(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What transformers makes, in memory, of tensors on disk that go to one place and are changed on their way. On
        the meta device it takes no memory, and tells the shapes.

        Raises:
            ValueError: One of them is missing, or of another shape than it has to be.
        """
        ordered = sorted(tensors, key=dot_natural_key)
        places = [self.place(name) for name in ordered]
        first = places[0].names[0]
        converter = copy.deepcopy(self._converter(str(places[0].pattern)))
        for name, place in zip(ordered, places, strict=True):
            converter.add_tensor(first, name, str(place.pattern), cast(Any, tensors[name]))
        try:
            made = converter.convert(first, model=self.model, config=self.model.config)
        except Exception as error:  # whatever its operations raise
            raise ValueError(
                f"{first} cannot be made of {ordered[0]} and {len(ordered) - 1} others: {_first_line(error)}"
            ) from None
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}

    def groups(self, names: Iterable[str]) -> dict[Place, list[str]]:
        """Tensors on disk by where they go to; those that are merged stand together, under the first one's place."""
        found: dict[tuple[tuple[str, ...], bool], tuple[Place, list[str]]] = {}
        for name in names:
            place = self.place(name)
            found.setdefault((place.names, place.pattern is None), (place, []))[1].append(name)
        return dict(found.values())

    def shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes in memory, by name, of tensors on disk that go to one place and are changed on their way; none where
        they cannot be converted."""
        try:
            made = self.convert({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        except ValueError:
            return {}
        return {name: tuple(tensor.shape) for name, tensor in made.items()}


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


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
    groups = stored.groups(tensors)
    present = {name for place in groups for name in place.names}
    ignored = "|".join(model._keys_to_ignore_on_load_unexpected or ()) or r"(?!)"
    problems = [f"The weights lack {name}." for name in expected if name not in present]
    for place, parts in groups.items():
        if not expected.keys() >= set(place.names):
            surplus = [name for name in parts if not re.search(ignored, place.names[0])]
            problems += [f"The weights hold {name}, which the configured model does not have." for name in surplus]
        elif place.pattern is None:
            problems += [
                problem for name in parts if (problem := _misfit(name, tensors[name], expected[place.names[0]]))
            ]
        else:
            made = stored.shapes({name: tensors[name].shape for name in parts})
            problems += [
                f"The weights hold more or fewer parts than {name} is made of."
                for name in place.names
                if made.get(name) != tuple(expected[name].shape)
            ]
    return problems


def _misfit(name: str, tensor: StoredTensor, expected: torch.Tensor) -> str | None:
    if tensor.shape != tuple(expected.shape):
        return f"{name} is {tensor.shape}; the configuration says {tuple(expected.shape)}."
    if tensor.is_floating != expected.is_floating_point():
        return f"{name} is not stored as the floating point numbers or integers that it consists of."
    return None


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
