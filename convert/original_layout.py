"""Back to the originals: the projection as MiniGPT-4's and rinna's code loads it."""

import os
from pathlib import Path

import torch

from ..checkpoint import PROJECTION
from .sources import OWN, open_source
from .sources import PROJECTION as PROJECTION_LAYOUT


def write_minigpt4_checkpoint(source: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Writes `{"model": {"llama_proj.weight": …, "llama_proj.bias": …}}`, what `load_state_dict(strict=False)` of
    MiniGPT-4 (mini_gpt4.py, `from_config`) takes. The values are those of the folder, bit for bit.

    Args:
        source: A folder of ours, or one with a `projection.safetensors`.
        path: The `.pth` file to be made; it must not exist yet.

    Raises:
        FileExistsError: `path` exists.
        ValueError: The source holds no projection.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another name or remove it first.")
    alone = Path(source) / PROJECTION
    opened = open_source(alone if alone.is_file() else source)
    if opened.layout not in (OWN, PROJECTION_LAYOUT):
        raise ValueError(f"{source} ({opened.layout.name}) is no folder of jminigpt4 and no projection file.")
    prefix = "model.language_projection." if opened.layout is OWN else ""
    model = {f"llama_proj.{kind}": opened.weights.read(f"{prefix}{kind}").clone() for kind in ("weight", "bias")}
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        torch.save({"model": model}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
