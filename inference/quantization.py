"""A language model in fewer bits, to save memory and, on a CPU, time (`benchmarks/decode.py`): by torch itself or
by bitsandbytes. A further choice is one entry of `QUANTIZATIONS`.

torch's older way, quantised tensors, is deprecated since torch 2.14.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration

INT8_MAX = 127


class Int8Linear(nn.Module):
    """A Linear layer whose weights, a scale for each output, and activations, a scale for each token, are 8-bit
    integers, multiplied by the processor's own integer instructions; float32 in and out.

    Args:
        layer: The layer to be quantised, of any floating dtype.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight, scales = _rows_to_int8(layer.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales.squeeze(1))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, token_scales = _rows_to_int8(x.flatten(0, -2))
        products = torch._int_mm(tokens, self.weight.t()).float().mul_(token_scales).mul_(self.scales)
        if self.bias is not None:
            products += self.bias
        return products.unflatten(0, x.shape[:-1])


def _rows_to_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of float32, `(n, width)`, as `int8`, and their scales, `(n, 1)`."""
    scales = rows.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / INT8_MAX
    return (rows / scales).round_().to(torch.int8), scales


class Quantization(NamedTuple):
    """One choice of `--quantize`: either of the two.

    Args:
        linear: Takes the place of the language model's Linear layers, its head's too, after loading on a CPU.
        bitsandbytes: Arguments of `BitsAndBytesConfig`; the layers of the language model are quantised while they are
            loaded, the head stays as it is.
    """

    linear: type[Int8Linear] | None = None
    bitsandbytes: dict[str, Any] | None = None

    def loading_options(self, dtype: torch.dtype | str, device: torch.device) -> dict[str, Any]:
        """Arguments of `from_pretrained`."""
        if self.bitsandbytes is None:
            return {}
        compute_dtype = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
        config = BitsAndBytesConfig(**self.bitsandbytes, bnb_4bit_compute_dtype=compute_dtype)
        return {"quantization_config": config, "device_map": str(device)}


QUANTIZATIONS = {
    "int8": Quantization(Int8Linear),
    "8bit": Quantization(bitsandbytes={"load_in_8bit": True}),
    "nf4": Quantization(bitsandbytes={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
}


def quantization_named(name: str) -> Quantization:
    """An entry of `QUANTIZATIONS`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"There is no quantisation {name!r}: choose one of {', '.join(QUANTIZATIONS)}.")
    return QUANTIZATIONS[name]


def replace_linear_layers(model: JMiniGPT4ForConditionalGeneration, linear: type[nn.Module]):
    """Quantises the Linear layers of the language model and its head, one by one; all else of them computes in
    float32.

    Raises:
        ValueError: The model is not on a CPU.
    """
    if model.device.type != "cpu":
        raise ValueError(f"int8 is computed on a CPU; the model is on {model.device.type}: quantise to 8bit or nf4.")
    for module in list(model.model.language_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, linear(child))
    model.lm_head = linear(model.lm_head)
    model.model.language_model.float()
