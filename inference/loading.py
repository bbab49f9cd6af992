"""A checkpoint as a user names it, on the device and in the precision that suit the machine: for conversations,
evaluation and training alike."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers.utils import logging as transformers_logging

from .. import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from ..checkpoint import MANIFEST, dtype_named, sha256
from .llama_cpp import GgufWeights, LlamaCppForConditionalGeneration
from .quantization import quantization_named, replace_linear_layers

# Above this many parameters float32 would not fit an ordinary machine; below it, it costs little and is exact.
LARGEST_IN_FLOAT32 = 1_000_000_000


def be_quiet():
    """Nothing of the libraries on the screen for the rest of the process: no bars, no warnings. What
    [`load_checkpoint`] has to say about weights and precision is written all the same."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("timm", "bitsandbytes", "torch.utils.cpp_extension"):
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)  # it lists all of a file, also what fails
    warnings.simplefilter("ignore")


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_checkpoint(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    gguf: str | Path | None = None,
) -> tuple[JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor]:
    """Model, in eval mode, and processor of a folder or Hub repository. Only this package's own classes are used: no
    code of the checkpoint is run.

    Args:
        model: A folder, or a repository `user/name` on the Hub.
        device: A torch device; the best one there is by default.
        dtype: `float32`, `float16` or `bfloat16`. By default the stored one, except for float16 on a CPU, which
            computes it more than ten times slower: float32 instead, or bfloat16 for large models, which is written to
            stderr since it rounds.
        quantize: One of `QUANTIZATIONS`, for the language model; all else stays as it is.
        gguf: File from which llama.cpp takes the language model; see [`llama_cpp`].

    Raises:
        ImportError: bitsandbytes or llama-cpp-python is needed and not installed.
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no checkpoint of Japanese MiniGPT-4, there is no such device, dtype or
            quantisation, both `quantize` and `gguf` were given, or the GGUF file does not belong to the checkpoint.
        OSError: The repository cannot be reached.
    """
    if quantize is not None and gguf is not None:
        raise ValueError("Choose --quantize or --gguf: the weights in a GGUF file are quantised already.")
    quantization = None if quantize is None else quantization_named(quantize)
    chosen_dtype = None if dtype is None else dtype_named(dtype)
    replaces_layers = quantization is not None and quantization.linear is not None
    place = usable_device(device or ("cpu" if replaces_layers else best_device()))
    config = checkpoint_config(model)
    weights = None if gguf is None else GgufWeights(gguf)
    if weights is not None:
        weights.check(cast(JMiniGPT4Config, config))
    computed = chosen_dtype or _suitable_dtype(config, place)
    options = quantization.loading_options(computed, place) if quantization is not None else {}
    architecture = JMiniGPT4ForConditionalGeneration if weights is None else LlamaCppForConditionalGeneration
    loaded, report = architecture.from_pretrained(
        model, config=config, dtype=computed, output_loading_info=True, **options
    )
    _check_weights(report, model)
    loaded = loaded.eval() if options else loaded.eval().to(place)
    if isinstance(loaded, LlamaCppForConditionalGeneration):
        loaded.weights = weights
    if quantization is not None and quantization.linear is not None:
        replace_linear_layers(loaded, quantization.linear)
    return loaded, JMiniGPT4Processor.from_pretrained(model)


def usable_device(name: str | torch.device) -> torch.device:
    """A device on which torch can compute here.

    Raises:
        ValueError: torch knows no such device, or this machine has none, or no driver for it.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError):  # an assertion where torch was built without the device
        raise ValueError(f"There is no device {str(name)!r} on this machine; {best_device()!r} is there.") from None
    return device


def checkpoint_config(model: str | Path) -> transformers.PreTrainedConfig:
    """Configuration of a checkpoint folder or Hub repository.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no checkpoint of Japanese MiniGPT-4.
        OSError: The repository cannot be reached.
    """
    path = Path(model)
    if _is_path(str(model)) and not path.exists():
        raise FileNotFoundError(f"No folder {path}: name a checkpoint folder, or user/name on the Hub.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json: it is no checkpoint. `jminigpt4 convert` makes one.")
    config = transformers.AutoConfig.from_pretrained(model)
    if config.model_type != "jminigpt4":
        raise ValueError(f"{model} is a {config.model_type} checkpoint, not one of Japanese MiniGPT-4.")
    return config


def fingerprint(model: str | Path) -> str | None:
    """SHA-256 of a folder's list of checksums: which state of the checkpoint it is; `None` without one."""
    manifest = Path(model) / MANIFEST
    return sha256(manifest) if manifest.is_file() else None


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") != 1


def _suitable_dtype(config: transformers.PreTrainedConfig, device: torch.device) -> torch.dtype | str:
    """The stored dtype, or what a CPU computes in the place of float16."""
    if device.type != "cpu" or config.dtype != torch.float16:
        return "auto"
    text = config.get_text_config()
    if 12 * text.num_hidden_layers * text.hidden_size**2 <= LARGEST_IN_FLOAT32:
        return torch.float32  # holds every number of float16, so there is nothing to be said
    _note("computing in bfloat16, which rounds the weights: the stored float16 is slow on a CPU.")
    return torch.bfloat16


def _check_weights(report: dict[str, Any], model: str | Path):
    """Says which weights the files lack, and are initialised at random, or hold in vain: transformers' own report is
    hushed with all its warnings."""
    for kind, effect in (("missing_keys", "are missing: initialised at random"), ("unexpected_keys", "are not used")):
        if names := sorted(report[kind]):
            _note(f"{len(names)} weights of {model} {effect}, {names[0]} among them.")


def _note(text: str):
    print(f"jminigpt4: {text}", file=sys.stderr, flush=True)
