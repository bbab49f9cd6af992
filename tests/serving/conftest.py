"""Tests against a real serving engine: not part of the gate, since its environment takes 3.4 GB."""

import os
from pathlib import Path

import pytest

REASON = (
    "needs an environment with vLLM: `python tests/serving/environment.py FOLDER` makes one, then set "
    "JMINIGPT4_VLLM=FOLDER (and JMINIGPT4_MODEL to try another checkpoint than the demo)"
)


def pytest_configure(config):
    config.addinivalue_line("markers", "serving: runs a serving engine in an environment of its own")


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """Interpreter of the environment of vLLM."""
    folder = os.environ.get("JMINIGPT4_VLLM")
    if not folder:
        pytest.skip(REASON)
    python = Path(folder) / "bin" / "python"
    if not python.is_file():
        pytest.fail(f"JMINIGPT4_VLLM={folder} holds no bin/python.")
    return python
