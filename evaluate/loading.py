"""A checkpoint to be examined, on the device and in the precision that suit the machine."""

import logging
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from .. import JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from ..checkpoint import MANIFEST, sha256


def load(
    model: str, device: str | None = None, dtype: str | None = None
) -> tuple[JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor]:
    """Model and processor of a folder or Hub repository. No code of the checkpoint is run.

    Args:
        model: A folder, or `user/name` on the Hub.
        device: A torch device; the best one there is by default.
        dtype: A torch dtype's name; by default the stored one, but float32 in the place of float16 on a CPU, which
            computes that far slower.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is no checkpoint of Japanese MiniGPT-4, or there is no such device or dtype.
        OSError: The Hub cannot be reached.
    """
    path = Path(model)
    if not path.exists() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise FileNotFoundError(f"No folder {path}: name a checkpoint folder, or user/name on the Hub.")
    if path.exists() and not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json: it is no checkpoint.")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("timm").setLevel(logging.ERROR)
    config = AutoConfig.from_pretrained(model)
    if config.model_type != "jminigpt4":
        raise ValueError(f"{model} is a {config.model_type} checkpoint, not one of Japanese MiniGPT-4.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    slow = torch.device(device).type == "cpu" and config.dtype == torch.float16
    try:
        chosen = getattr(torch, dtype) if dtype else torch.float32 if slow else "auto"
        loaded = JMiniGPT4ForConditionalGeneration.from_pretrained(model, config=config, dtype=chosen).to(device)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(f"{model} cannot be loaded on {device!r} as {dtype or 'stored'}: {error}") from None
    return loaded.eval(), JMiniGPT4Processor.from_pretrained(model)


def fingerprint(model: str) -> str | None:
    """SHA-256 of a folder's list of checksums: which state of the checkpoint was examined; `None` without one."""
    manifest = Path(model) / MANIFEST
    return sha256(manifest) if manifest.is_file() else None
