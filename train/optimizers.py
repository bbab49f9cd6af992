"""Optimisers by name. A new one is a function here and its entry in `OPTIMIZERS`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

# Coefficients of the quintic iteration, and number of iterations: K. Jordan, "Muon", 2024; so does torch.optim.Muon.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# AdamW moves every entry by about its rate, Muon moves one by a small part of it. A bias at Muon's own rate learns
# more slowly in both settings of benchmarks/train_learning.py, at a third of this share in one of them.
BIAS_RATE = 0.075
# In a parameter group: its rate is AdamW's and not a share of Muon's.
OWN_RATE = "own_rate"


class Muon(AdamW):
    """Muon on matrices; AdamW on everything else, at [`BIAS_RATE`] of the rate, or at all of it in groups with
    [`OWN_RATE`].

    Muon steps along the semi-orthogonal matrix nearest to its momentum, so that what varies little in the features is
    learnt as fast as what varies most. The update of a matrix is that of `torch.optim.Muon`, bit for bit, and needs no
    torch >= 2.9: Nesterov momentum, five Newton-Schulz iterations, scale `sqrt(max(1, rows / columns))`.

    Args:
        params: Parameter groups; those with a `momentum` hold matrices that Muon updates.
        lr, betas: Muon's rate, and the decay rates of what AdamW updates.

    Both decouple `weight_decay` of a group: a step multiplies by `1 - lr * weight_decay`.

    Raises:
        ValueError: A group with `momentum` has something other than matrices.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]):
        super().__init__(params, lr=lr, betas=betas)
        for parameter, _ in self._matrices():
            if parameter.ndim != 2:
                raise ValueError(f"Muon updates matrices, got a parameter of shape {tuple(parameter.shape)}.")

    def _matrices(self) -> list[tuple[Parameter, dict[str, Any]]]:
        return [(each, group) for group in self.param_groups if "momentum" in group for each in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step with the gradients that are there."""
        gradients = [(parameter, parameter.grad) for parameter, _ in self._matrices()]
        for parameter, group in self._matrices():
            if parameter.grad is not None:
                self._step_matrix(parameter, parameter.grad, group)
                parameter.grad = None  # AdamW passes over what has no gradient.
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= 1.0 if OWN_RATE in group else BIAS_RATE
        super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        for parameter, gradient in gradients:
            parameter.grad = gradient

    def _step_matrix(self, parameter: Parameter, gradient: torch.Tensor, group: dict[str, Any]):
        rate, momentum = group["lr"], group["momentum"]
        if not self.state[parameter]:
            # AdamW looks for a `step` in every state that it loads.
            self.state[parameter].update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(gradient))
        self.state[parameter]["step"] += 1
        average = self.state[parameter]["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = orthogonalized(gradient.lerp(average, momentum))
        rows, columns = parameter.shape
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """`(m, n)` with its singular values moved to about 1 (0.5 to 1.3) by Newton-Schulz iterations, bfloat16."""
    a, b, c = QUINTIC
    wide = matrix.bfloat16()
    if tall := matrix.shape[0] > matrix.shape[1]:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if tall else wide


Learning = list[Parameter] | list[dict[str, Any]]
"""What learns, or parameter groups of it: those of the projection first, its matrices before the rest."""


def adamw(learning: Learning, recipe: Any) -> AdamW:
    """AdamW over what learns; weight decay on matrices, none on biases (MiniGPT-4, `RunnerBase.optimizer`)."""
    return AdamW(_groups(learning, recipe.weight_decay), lr=recipe.learning_rate, betas=recipe.betas)


def muon(learning: Learning, recipe: Any) -> Muon:
    """[`Muon`] on the projection's matrices, with the first of the recipe's betas as its momentum, and AdamW on
    everything else."""
    matrices, *others = _groups(learning, recipe.weight_decay)
    matrices["momentum"] = recipe.betas[0]
    return Muon([matrices, *others], lr=recipe.learning_rate, betas=recipe.betas)


def _groups(learning: Learning, weight_decay: float) -> list[dict[str, Any]]:
    if groups := [each for each in learning if isinstance(each, dict)]:
        return groups
    parameters = [each for each in learning if isinstance(each, Parameter)]
    return [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]


OPTIMIZERS: dict[str, Callable[[Learning, Any], Optimizer]] = {"adamw": adamw, "muon": muon}
"""Makes an optimiser of what learns and a [`Recipe`]; the recipe's schedule sets the rate of all its groups."""
