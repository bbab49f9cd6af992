"""The sections of docs/trainers.md, run one by one; those of TRL where it is installed."""

from importlib.util import find_spec

import pytest

REASON = (
    "runs in an environment with TRL: `python tests/trainers/environment.py FOLDER` makes one, then "
    "`FOLDER/bin/python -m pytest tests/trainers`"
)


def pytest_configure(config):
    config.addinivalue_line("markers", "trl: runs in an environment with TRL")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("trl") and find_spec("trl") is None:
            item.add_marker(pytest.mark.skip(reason=REASON))
