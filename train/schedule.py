"""Learning rates: the originals' schedule to the digit, and the same without its quirks."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def originals_rate(
    step: int, peak: float, floor: float, start: float, warmup_steps: int, steps_per_epoch: int, epochs: int
) -> float:
    """Learning rate of step `step` (from 0) as MiniGPT-4's `LinearWarmupCosineLRScheduler` sets it
    (Vision-CAIR/MiniGPT-4, `minigpt4/common/optims.py`).

    Two quirks are kept: the warm-up counts the step inside the epoch and so starts again when it is longer than an
    epoch, and the cosine counts from step 0, warm-up included, so the rate falls by a jump where the warm-up ends.
    """
    if step < warmup_steps:
        return min(peak, start + (peak - start) * (step % steps_per_epoch) / max(warmup_steps, 1))
    return _cosine(step, epochs * steps_per_epoch, peak, floor)


def cosine_rate(step: int, peak: float, floor: float, start: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of step `step` (from 0): a line from `start` to `peak`, then half a cosine down to `floor`."""
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    falling = max(1, total_steps - warmup_steps)
    return _cosine(min(step - warmup_steps, falling), falling, peak, floor)


def _cosine(step: int, steps: int, peak: float, floor: float) -> float:
    return (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * step / steps)) + floor


class RateSchedule(LRScheduler):
    """Sets the learning rate of every parameter group to `rates(step)`, exactly: no product with a base rate, which
    would round. A group with a `share` has that share of it."""

    def __init__(self, optimizer: Optimizer, rates):
        self.rates = rates
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        rate = self.rates(self.last_epoch)
        return [rate * group.get("share", 1.0) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict:
        return {key: value for key, value in super().state_dict().items() if key != "rates"}
