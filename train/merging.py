"""What a run trained, tensor by tensor as a checkpoint stores it: the projection, other parts, adapters merged."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from ..checkpoint import open_weights, read_projection_tensors
from ..configuration_jminigpt4 import JMiniGPT4Config
from ..inference.stored_weights import StoredNames, model_without_memory
from .frozen import ADAPTER, ADAPTER_WEIGHTS, ON_DISK, TRAINED_PARTS
from .parts import MODULES, part_of
from .preparing import ACTIVATION

PROJECTION_PREFIX = "model.language_projection."
IN_FLOAT32 = (*MODULES["qformer"], "model.vision_layernorm")  # as the model runs them, whatever the files' dtype


class TrainedWeights:
    """What a run's folder holds, against the checkpoint that the run began with.

    Args:
        run: Output folder of a run, or a projection file.
        config: Configuration of the base.

    Attributes:
        projection: Tensors of the projection, by their names in a checkpoint.
        metadata: Of the projection's file.
        config: The configuration of the model that was trained.

    Raises:
        FileNotFoundError: There is no projection.
        ValueError: The projection is none of this model's, or was trained with parts that are not there.
    """

    def __init__(self, run: Path, config: JMiniGPT4Config):
        tensors, self.metadata = read_projection_tensors(run)
        self.config = copy.deepcopy(config)
        self.config.projector_hidden_act = ACTIVATION if "linear_1.weight" in tensors else None
        self.projection = {PROJECTION_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
        self._model = model_without_memory(self.config)
        self._names = StoredNames(self._model)
        self._check_projection(config)
        parts, adapter = run / TRAINED_PARTS, run / ADAPTER / ADAPTER_WEIGHTS
        if "trained_parts" in self.metadata and not parts.is_file():
            raise ValueError(
                f"The projection of {run} was trained together with {self.metadata['trained_parts']}: name the folder "
                f"of its run, where {TRAINED_PARTS} lies."
            )
        if (run / ADAPTER).is_dir() and not adapter.is_file():
            raise ValueError(
                f"{run / ADAPTER} holds no {ADAPTER_WEIGHTS}: the adapters that were trained are missing."
            )
        self._parts = open_weights(parts) if parts.is_file() else None
        self._changed = set(self._parts.keys()) if self._parts is not None else set()
        self._adapter = open_weights(adapter) if adapter.is_file() else None
        self._scale, self._adapted = 0.0, set()
        if self._adapter is not None:
            stated = json.loads((adapter.parent / "adapter_config.json").read_text(encoding="utf-8"))
            self._scale = stated["lora_alpha"] / stated["r"]
            names = {name.removeprefix(ON_DISK).partition(".lora_")[0] for name in self._adapter.keys()}  # noqa: SIM118
            self._adapted = {f"{name}.weight" for name in names}

    def _check_projection(self, base: JMiniGPT4Config):
        expected = {name: tensor for name, tensor in self._model.state_dict().items() if name in self.projection}
        for name, tensor in self.projection.items():
            if tensor.shape != expected[name].shape:
                raise ValueError(
                    f"The projection's {name.removeprefix(PROJECTION_PREFIX)} is of size {list(tensor.shape)}, the "
                    f"model needs {list(expected[name].shape)}: it was trained for another language model."
                )

    @property
    def parts(self) -> list[str]:
        """Names of the parts beside the projection that were trained."""
        return sorted({part_of(name) for name in self._changed | self._adapted})

    def missing(self, stored: set[str]) -> list[str]:
        """Trained tensors that replace none of those stored in a checkpoint."""
        places = {self._names.in_memory(name) for name in stored if not self._names.place(name)[1]}
        return sorted((self._changed | self._adapted) - places)

    def replaces(self, name: str) -> bool:
        """Whether a tensor of the checkpoint, by its name there, is another now."""
        return self._trained_name(name) in self._changed | self._adapted

    def _trained_name(self, name: str) -> str:
        name = self._names.in_memory(name)
        if name == "lm_head.weight" and self._model.config.tie_word_embeddings:
            return self._model._tied_weights_keys["lm_head.weight"]
        return name

    def tensor(self, stored_name: str, stored: torch.Tensor) -> torch.Tensor:
        """The trained values in the place of stored ones, in their dtype; Q-Former and norm in float32.

        Raises:
            ValueError: They do not fit into that dtype.
        """
        name = self._trained_name(stored_name)
        value = self._parts.get_tensor(name) if name in self._changed else stored.float()
        if name in self._adapted:
            value = value.float() + self._delta(name)
        value = value.to(torch.float32 if name.startswith(IN_FLOAT32) else stored.dtype).contiguous()
        if not value.isfinite().all():
            raise ValueError(f"The trained {name} does not fit into {stored.dtype}, in which the base stores it.")
        return value

    def _delta(self, name: str) -> torch.Tensor:
        """What an adapter adds to a weight: `scale * B A` (LoRA, arXiv:2106.09685, section 4.1)."""
        layer = name.removesuffix(".weight")
        first, second = (
            self._adapter.get_tensor(f"{ON_DISK}{layer}.lora_{which}.weight").float() for which in ("A", "B")
        )
        delta = self._scale * (second @ first)
        return delta.T if isinstance(self._model.get_submodule(layer), Conv1D) else delta


def unmergeable(config: JMiniGPT4Config, stored: set[str]) -> str | None:
    """Name of a weight of the language model that a checkpoint does not store as the model has it: what is trained
    cannot take its place. `None` where there is none.

    Args:
        config: Configuration of the checkpoint.
        stored: Names of its tensors.
    """
    names = StoredNames(model_without_memory(config))
    return next((name for name in sorted(stored) if names.place(name)[1]), None)


def trained_before(file: Path) -> list[str]:
    """Parts beside the projection that an exported folder says were trained with it."""
    if not file.is_file():
        return []
    with safe_open(file, framework="pt") as opened:
        stated: Any = (opened.metadata() or {}).get("trained_parts", "")
    return [part for part in stated.split(", ") if part]
