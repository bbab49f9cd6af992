"""Processes that prepare on the CPU what the device is given next: steps of a run, pictures to encode."""

import multiprocessing
import os
import threading
import time
from typing import Any

import torch

TASKS_AHEAD, MOST_WORKERS = 2, 8
LOOKS = 0.2  # seconds between looks of a worker at who its parent is


def ahead(workers: int) -> dict[str, Any]:
    """Arguments of a `DataLoader` whose workers prepare up to `TASKS_AHEAD` tasks each, and end with this process.

    Args:
        workers: How many; 0: nothing is prepared ahead.
    """
    if not workers:
        return {"num_workers": 0}
    return {"num_workers": workers, "prefetch_factor": TASKS_AHEAD, "worker_init_fn": end_with_parent}


def end_with_parent(number: int = 0):
    """In a worker: ends it soon after the process that it works for. torch's own watch lets a worker leave, but it
    waits for ever then to hand on a step that nobody reads."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def spare_workers(device: torch.device, processes: int) -> int:
    """How many processes should decode pictures ahead: as many as can, up to `MOST_WORKERS`, before a GPU, and one
    before a CPU, which computes more slowly than one process decodes.

    None where a process is not a fork, as a program without `if __name__ == "__main__"` would begin anew in it; and
    where each process that computes has one core.

    Args:
        device: What the model runs on.
        processes: Processes of this group on this machine.
    """
    if not processes_are_forks():
        return 0
    spare = len(os.sched_getaffinity(0)) // processes - 1
    return max(0, min(spare, 1 if device.type == "cpu" else MOST_WORKERS))


def processes_are_forks() -> bool:
    """Whether a process that Python starts goes on from where this one is, with all that it has loaded."""
    start = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return start == "fork"
