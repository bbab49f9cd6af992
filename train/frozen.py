"""A model made ready for training: everything frozen but what the recipe names, which learns in float32."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from ..checkpoint import PROJECTION, finished_file, open_weights, read_projection_tensors, save_projection
from .parts import PARTS, own_parameters, part_of, set_learning
from .preparing import learn_in_float32, learning_line, remake_projection
from .recipe import Recipe

ADAPTER, ADAPTER_NAME = "adapter", "default"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED_PARTS = "trained_parts.safetensors"
CHANGED = "_changed_parts"
# What peft puts before the names of an adapter's weights on disk.
ON_DISK = "base_model.model."


def load_model(model: Any, processor: Any, recipe: Recipe) -> tuple[Any, Any]:
    """Model and processor, everything frozen but what the recipe names (and adapters), which is in float32.

    Raises:
        ValueError: A loaded model without its processor, or as `load_checkpoint`.
        OSError: As `load_checkpoint`.
    """
    from accelerate import PartialState

    state, large = PartialState(), "vision" in recipe.learn or recipe.learns_whole_language
    device = state.device or torch.device("cpu")
    if isinstance(model, str | os.PathLike):
        model, stored_processor = _load(os.fspath(model), recipe, device, large)
        processor = processor or stored_processor
    elif processor is None:
        raise ValueError("A loaded model needs its processor: pass `processor`.")
    if recipe.attention != "auto":
        model.set_attn_implementation({"text_config": recipe.attention})
    model.freeze()
    remake_projection(model, recipe, state.is_main_process)
    # Updates of 1e-4 of a weight are below the resolution of half precision: what learns, learns in float32.
    model.model.language_projection.float()
    if large:
        learn_in_float32(model, recipe, device)
    if recipe.lora:
        add_lora(model, recipe.lora)
    if recipe.learn != ["projection"]:
        set_learning(model, recipe)
        learning = {part_of(name) for name, each in own_parameters(model) if each.requires_grad}
        setattr(model, CHANGED, getattr(model, CHANGED, set()) | learning)
        if state.is_main_process:
            tqdm.write(learning_line(model))
    if recipe.gradient_checkpointing:
        # transformers 5.24 calls `activation_checkpointing_enable` what was `gradient_checkpointing_enable` before.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model, processor


def _load(model: str, recipe: Recipe, device: torch.device, as_stored: bool) -> tuple[Any, Any]:
    """The checkpoint.

    Args:
        as_stored: Whether the dtype is that of the files: others round what is to learn.
    """
    from ..inference.loading import checkpoint_config, load_checkpoint

    dtype = None if recipe.dtype == "auto" else recipe.dtype
    place: Any = device
    if recipe.shard_language and device.type != "cpu":
        # Sharding takes layer by layer from the CPU, but they are computed where the stored dtype is not slow.
        dtype = dtype or str(checkpoint_config(model).dtype).removeprefix("torch.")
        place = "cpu"
    if device.type == "mps" and dtype is None and checkpoint_config(model).dtype == torch.float16:
        dtype = "bfloat16"  # small gradients are none in float16, and are scaled on CUDA alone
    if as_stored:
        dtype = str(checkpoint_config(model).dtype or torch.float32).removeprefix("torch.")
    return load_checkpoint(model, place, dtype, quantize="8bit" if recipe.load_in_8bit else None)


def add_lora(model: Any, rank: int):
    """LoRA adapters (peft) on every linear layer of the language model; they learn together with the projection."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_linear_layers(model))
    settings.base_model_name_or_path = model.config.name_or_path or None
    # Not by `model.add_adapter`, which asks for a newer peft than there may be.
    inject_adapter_in_model(settings, model, ADAPTER_NAME)
    model.model.language_projection.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _linear_layers(model: Any) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    layers = model.model.language_model.named_modules(prefix="model.language_model")
    return [name for name, layer in layers if isinstance(layer, torch.nn.Linear | Conv1D)]


def save_trained(model: Any, folder: Path):
    """Writes what was trained: `projection.safetensors`, LoRA adapters in peft's layout when there are any, and other
    parts that changed in `trained_parts.safetensors`, by their names in the model."""
    changed = [part for part in PARTS if part in getattr(model, CHANGED, ()) and part != "projection"]
    settings = getattr(model, "peft_config", None)
    metadata = {"text_model_type": model.config.text_config.model_type}
    if changed:
        metadata["trained_parts"] = ", ".join(changed)
    save_projection(model, folder, metadata)
    if settings:
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME)
        settings[ADAPTER_NAME].save_pretrained(folder / ADAPTER)
        weights = {ON_DISK + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(weights, folder / ADAPTER / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    if changed:
        tensors = {name: each for name, each in own_parameters(model) if part_of(name) in changed}
        tensors = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
        with finished_file(folder / TRAINED_PARTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})


def load_trained(model: Any, folder: Path):
    """Puts what a run trained back into the model: projection, adapters, other parts.

    Args:
        folder: Output or checkpoint of a run, or a projection file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It belongs to another model, or holds more than this model can take.
    """
    tensors, metadata = read_projection_tensors(folder)
    _check_projection(model, tensors, folder)
    parts, adapter = folder / TRAINED_PARTS, folder / ADAPTER / ADAPTER_WEIGHTS
    if "trained_parts" in metadata and not parts.is_file():
        raise ValueError(
            f"The projection of {folder} was trained together with {metadata['trained_parts']}, and is of no use "
            f"without: name the folder of its run, where {PROJECTION} and {TRAINED_PARTS} lie."
        )
    if adapter.is_file():
        _load_adapter(model, adapter)
    model.model.language_projection.load_state_dict(tensors)
    if parts.is_file():
        _load_parts(model, parts)


def _check_projection(model: Any, tensors: dict[str, torch.Tensor], folder: Path):
    layer = model.model.language_projection
    expected = {name: each.shape for name, each in layer.named_parameters()}
    if tensors.keys() != expected.keys():
        kinds = {2: "linear", 4: "mlp"}
        raise ValueError(
            f"The projection in {folder} is of the kind {kinds[len(tensors)]} and the model's {kinds[len(expected)]}: "
            f"set `projection: {kinds[len(tensors)]}` in the recipe."
        )
    if any(tensors[name].shape != shape for name, shape in expected.items()):
        first, last = list(tensors.values())[0], list(tensors.values())[-1]
        raise ValueError(
            f"The projection in {folder} maps {first.shape[1]} to {last.shape[0]}, but the model needs "
            f"{layer.in_features} to {layer.out_features}: it was trained for another language model."
        )


def _load_adapter(model: Any, path: Path):
    if not getattr(model, "peft_config", None):
        raise ValueError(
            f"{path.parent} holds adapters on the language model, which this recipe does not have: set `lora` to "
            "their rank, or export that run and take the folder as the model."
        )
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    with open_weights(path) as file:
        weights = {name.removeprefix(ON_DISK): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    own = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME)
    if {name: each.shape for name, each in weights.items()} != {name: each.shape for name, each in own.items()}:
        raise ValueError(
            f"{path.parent} holds adapters of another rank, or on another language model, than this run's."
        )
    set_peft_model_state_dict(model, weights, adapter_name=ADAPTER_NAME)


@torch.no_grad()
def _load_parts(model: Any, path: Path):
    own = dict(own_parameters(model))
    with open_weights(path) as file:
        names = list(file.keys())
        changed = {part_of(name) for name in names if name in own}
        expected = {name for name in own if part_of(name) in changed}
        if expected != set(names):
            raise ValueError(f"{path} is of another model: it holds or lacks {sorted(expected ^ set(names))[0]}.")
        for name in names:
            tensor, parameter = file.get_tensor(name), own[name]
            if type(parameter) is not torch.nn.Parameter or not parameter.is_floating_point():
                raise ValueError(
                    f"{path} holds a language model, which cannot be put into one that is spread or in 8 bits: export "
                    "that run and take the folder as the model."
                )
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"{path} is of another model: {name} is {tuple(tensor.shape)} there and {tuple(parameter.shape)} "
                    "here."
                )
            parameter.copy_(tensor)
    setattr(model, CHANGED, getattr(model, CHANGED, set()) | changed)
