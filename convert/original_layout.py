"""Back to the originals: the projection as MiniGPT-4's and rinna's code loads it."""

import os
from pathlib import Path

import torch

from ..checkpoint import PROJECTION, finished_file
from .account import TRAINED_PROJECTION
from .checks import new_path
from .projection import check_alone
from .sources import open_checkpoint, open_source


def write_minigpt4_checkpoint(source: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Writes `{"model": {"llama_proj.weight": …, "llama_proj.bias": …}}`, what `load_state_dict(strict=False)` of
    MiniGPT-4 (mini_gpt4.py, `from_config`) takes. The values are those of the folder, bit for bit.

    Args:
        source: A checkpoint of this package, or a folder with a `projection.safetensors`.
        path: The `.pth` file to be made; it must not exist yet.

    Raises:
        FileExistsError: `path` exists.
        ValueError: The source holds no projection.
    """
    path = new_path(path)
    source = Path(source)
    alone = source / PROJECTION
    opened, prefix = (
        (open_source(alone), "") if alone.is_file() else (open_checkpoint(source), "model.language_projection.")
    )
    file = source / (PROJECTION if alone.is_file() else TRAINED_PROJECTION)
    if file.is_file():
        check_alone(file, str(source))
    if f"{prefix}linear_1.weight" in opened.weights:
        raise ValueError(
            f"The projection of {source} is of two layers (`projection: mlp`), which MiniGPT-4's code does not load: "
            "only one Linear layer can be written for it."
        )
    model = {f"llama_proj.{kind}": opened.weights.read(f"{prefix}{kind}").clone() for kind in ("weight", "bias")}
    try:
        with finished_file(path) as temporary:
            torch.save({"model": model}, temporary)
    except RuntimeError as error:  # how torch tells of a full disk
        raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None
    return path
