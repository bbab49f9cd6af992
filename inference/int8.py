"""A language model in 8-bit integers on a CPU: weights once, a scale for each output; activations anew in every call,
a scale for each token.

torch multiplies them with the processor's own integer instructions, in a quarter of the memory of float32 and, where
decoding waits for memory, faster than bfloat16 (`benchmarks/decode.py`). torch's older way to do so, quantised
tensors, is deprecated since torch 2.14.
"""

import torch
from torch import nn

from ..modeling_jminigpt4 import JMiniGPT4ForConditionalGeneration

LARGEST = 127


class Int8Linear(nn.Module):
    """A Linear layer with 8-bit weights, float32 in and out.

    Args:
        linear: The layer to be quantised, of any floating dtype.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scales = _quantised(linear.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales.squeeze(1))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, token_scales = _quantised(x.flatten(0, -2))
        products = torch._int_mm(tokens, self.weight.t()).float().mul_(token_scales).mul_(self.scales)
        if self.bias is not None:
            products += self.bias
        return products.unflatten(0, x.shape[:-1])


def _quantised(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of float32, `(n, width)`, as `int8`, and their scales, `(n, 1)`."""
    scales = rows.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / LARGEST
    return (rows / scales).round_().to(torch.int8), scales


def quantise(model: JMiniGPT4ForConditionalGeneration):
    """Replaces the Linear layers of the language model and its head, one by one, and computes all else of them in
    float32.

    Raises:
        ValueError: The model is not on a CPU.
    """
    if model.device.type != "cpu":
        raise ValueError(f"8-bit integers of torch are for a CPU; the model is on {model.device.type}.")
    for module in list(model.model.language_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    model.lm_head = Int8Linear(model.lm_head)
    model.model.language_model.float()
