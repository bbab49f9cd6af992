"""Tests inside a real serving engine: not part of the gate, since its environment takes 3.4 GB."""

from importlib.util import find_spec

import pytest

REASON = (
    "runs in an environment with vLLM: `python tests/serving/environment.py FOLDER` makes one, then "
    "`FOLDER/bin/python -m pytest tests/serving` (JMINIGPT4_MODEL names another checkpoint than the demo)"
)


def pytest_configure(config):
    config.addinivalue_line("markers", "vllm: runs in an environment with vLLM")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("vllm") and find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason=REASON))
