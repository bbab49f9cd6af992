"""Every check runs twice: at tiny size on the CPU, so that no line is untried, and on a GPU where there is one.

`make gpu` runs the second half and writes what it found into `docs/gpu.md` and `docs/gpu.json`.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
found: dict = {"checks": {}}


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and `make gpu`")
    return request.param


@pytest.fixture(scope="session")
def gpu() -> ModuleType:
    """`benchmarks/gpu.py`, whose neighbours are modules as they are for a script."""
    taken = {name: sys.modules.pop(name) for name in ("train", "decode", "small_models") if name in sys.modules}
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import gpu
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in ("train", "decode", "small_models"):
            sys.modules.pop(name, None)
        sys.modules.update(taken)
    return gpu


@pytest.fixture
def note(device):
    """`note(name, difference)`: for the table of what was checked on a GPU."""

    def take(name: str, difference: float):
        if device == "cuda":
            found["checks"][name] = difference

    return take


@pytest.fixture
def figures(device):
    """`figures(results)`: what was measured on a GPU."""

    def take(results: dict):
        if device == "cuda":
            found.update(results, checks=found["checks"])

    return take


@pytest.fixture(scope="session", autouse=True)
def _page(gpu):
    yield
    if "training" in found and (folder := os.environ.get("GPU_PAGE")):
        gpu.write_page(found, Path(folder))
