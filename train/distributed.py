"""Several processes: the group they form, and what they tell one another."""

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

Value = TypeVar("Value")

# A process may have encoded its share of the pictures hours before another; torch would give up after 10 minutes.
TIMEOUT = timedelta(hours=12)


def init_processes() -> PartialState:
    """Joins the process group that torchrun or `accelerate launch` announces in the environment, or stays alone.

    Comes before everything that asks which of how many processes this is: accelerate answers "one of one" as long as
    there is no group, and remembers it. Processes talk by NCCL where there are GPUs; by gloo where there is no
    accelerator, or `ACCELERATE_USE_CPU` is set. Further calls return the same state.

    Raises:
        ValueError: `WORLD_SIZE` is not the number of processes in the group.
    """
    announced = os.environ.get("WORLD_SIZE")
    # Left to itself, accelerate forms no group where there is no accelerator.
    by_gloo = announced not in (None, "1") and not _has_accelerator()
    state = PartialState(cpu=by_gloo or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
    if announced is not None and int(announced) != state.num_processes:
        raise ValueError(
            f"WORLD_SIZE is {announced}, but the process group has {state.num_processes} member(s): each would train "
            "on its own. Start with torchrun or `accelerate launch`, and use nothing of accelerate before training."
        )
    return state


def processes_here() -> int:
    """How many processes of the group run on this machine, as torchrun and `accelerate launch` say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _has_accelerator() -> bool:
    """Whether processes can share accelerators; Apple's has no process group."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type != "mps"


def from_first(value: Value) -> Value:
    """The first process's value, in every process."""
    return broadcast_object_list([value], from_process=0)[0]


def from_all(values: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other, in every process."""
    return gather_object(values)
