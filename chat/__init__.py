"""A checkpoint folder as a conversation: in Python, in a terminal, on a web page, and for serving engines."""

import importlib

# Where each name lives; imported when first asked for, so that `jminigpt4 --help` does not wait for torch.
_HOMES = {"ChatSession": "session", "Turn": "session", "ShownPicture": "pictures", "PictureLimits": "pictures"}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
