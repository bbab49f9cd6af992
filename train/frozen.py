"""A model made ready for training: everything frozen but the projection, which learns in float32."""

import os
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_projection, save_projection
from .recipe import Recipe

ADAPTER, ADAPTER_NAME = "adapter", "default"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What peft puts before the names of an adapter's weights on disk.
ON_DISK = "base_model.model."


def load_model(model: Any, processor: Any, recipe: Recipe) -> tuple[Any, Any]:
    """Model and processor, everything but the projection (and adapters) frozen, the projection in float32.

    Raises:
        ValueError: A loaded model without its processor, or as `load_checkpoint`.
        OSError: As `load_checkpoint`.
    """
    if isinstance(model, str | os.PathLike):
        model, stored_processor = _load(os.fspath(model), recipe)
        processor = processor or stored_processor
    elif processor is None:
        raise ValueError("A loaded model needs its processor: pass `processor`.")
    if recipe.attention != "auto":
        model.set_attn_implementation({"text_config": recipe.attention})
    model.freeze()
    # Updates of 1e-4 of a weight are below the resolution of half precision: what learns, learns in float32.
    model.model.language_projection.float()
    if recipe.lora:
        add_lora(model, recipe.lora)
    if recipe.gradient_checkpointing:
        # transformers 5.24 calls `activation_checkpointing_enable` what was `gradient_checkpointing_enable` before.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model, processor


def _load(model: str, recipe: Recipe) -> tuple[Any, Any]:
    from accelerate import PartialState

    from ..inference.loading import checkpoint_config, load_checkpoint

    device = PartialState().device
    dtype = None if recipe.dtype == "auto" else recipe.dtype
    if recipe.shard_language and device.type != "cpu":
        # Sharding takes layer by layer from the CPU, but they are computed where the stored dtype is not slow.
        dtype = dtype or str(checkpoint_config(model).dtype).removeprefix("torch.")
        device = "cpu"
    if device.type == "mps" and dtype is None and checkpoint_config(model).dtype == torch.float16:
        dtype = "bfloat16"  # small gradients are none in float16, and are scaled on CUDA alone
    return load_checkpoint(model, device, dtype, quantize="8bit" if recipe.load_in_8bit else None)


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
    """Writes what was trained: `projection.safetensors`, and LoRA adapters in peft's layout when there are any."""
    save_projection(model, folder, {"text_model_type": model.config.text_config.model_type})
    if settings := getattr(model, "peft_config", None):
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        weights = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME)
        settings[ADAPTER_NAME].save_pretrained(folder / ADAPTER)
        weights = {ON_DISK + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(weights, folder / ADAPTER / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def load_trained(model: Any, folder: Path):
    """Puts a trained projection (and adapters) back into the model.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It belongs to a model of another size.
    """
    weight, bias, _ = read_projection(folder)
    layer = model.model.language_projection
    if weight.shape != layer.weight.shape:
        raise ValueError(
            f"The projection in {folder} maps {weight.shape[1]} to {weight.shape[0]}, but the model needs "
            f"{layer.weight.shape[1]} to {layer.weight.shape[0]}: it was trained for another language model."
        )
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    adapter = folder / ADAPTER / ADAPTER_WEIGHTS
    if getattr(model, "peft_config", None) and adapter.is_file():
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        weights = {name.removeprefix(ON_DISK): tensor for name, tensor in load_file(adapter).items()}
        set_peft_model_state_dict(model, weights, adapter_name=ADAPTER_NAME)
