"""Packages that only some verbs need, the extras of this one, and how they are installed while it is on no index: from
the folder that was cloned."""

import importlib.util
from pathlib import Path

_ROOT = Path(__file__).parent
SCALE_DRIVERS = ("aiohttp", "gcsfs", "s3fs")  # of the extra `scale`, for `https://`, `gs://` and `s3://`


def install_command(*extras: str) -> str:
    """The command that installs extras; double quotes, which every shell of Linux, macOS and Windows takes."""
    names = ",".join(extras)
    if (_ROOT / "setup.py").is_file():
        return f'pip install -e "{_ROOT}[{names}]"'
    return f'pip install ".[{names}]" in the folder that was cloned'


def driver_command(package: str) -> str:
    """The command that installs a driver of fsspec."""
    return install_command("scale") if package in SCALE_DRIVERS else f"pip install {package}"


def require(extra: str, *modules: str):
    """Makes sure that modules of an extra are installed, before anything that takes long.

    Raises:
        ImportError: One is not; the message names the command.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"The package {module} is needed: {install_command(extra)}.")
