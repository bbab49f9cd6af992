"""A checkpoint as a user names it, on the device and in the precision that suit the machine: for conversations,
evaluation and training alike."""

import logging
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging as transformers_logging

from .. import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from ..checkpoint import MANIFEST, dtype_named, sha256, user_path
from .folder import checkpoint_folder, processor_problems, read_config, read_processor, readable, refusal
from .llama_cpp import GgufWeights, LlamaCppForConditionalGeneration
from .quantization import quantization_named, replace_linear_layers
from .stored_weights import (
    StoredTensor,
    finite_problems,
    model_without_memory,
    read_stored,
    stored_tensors,
    weight_problems,
)

# Above this many parameters float32 would not fit an ordinary machine; below it, it costs little and is exact.
LARGEST_IN_FLOAT32 = 1_000_000_000


def be_quiet():
    """Nothing of the libraries on the screen for the rest of the process: no bars, no warnings. What
    [`load_checkpoint`] has to say about weights and precision is written all the same."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # of downloads: gigabytes want one
    for library in ("timm", "bitsandbytes", "sacrebleu", "torch.utils.cpp_extension"):
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
        ValueError: The folder holds no checkpoint of Japanese MiniGPT-4, or a damaged one: weights are missing, left
            over, of another shape or not finite, or a file states what it may not. There is no such device, dtype or
            quantisation, both `quantize` and `gguf` were given, or the GGUF file does not belong to the checkpoint.
        OSError: The repository cannot be reached.
    """
    if quantize is not None and gguf is not None:
        raise ValueError("Choose --quantize or --gguf: the weights in a GGUF file are quantised already.")
    quantization = None if quantize is None else quantization_named(quantize)
    chosen_dtype = None if dtype is None else dtype_named(dtype)
    replaces_layers = quantization is not None and quantization.linear is not None
    place = usable_device(device or ("cpu" if replaces_layers else best_device()))
    folder = checkpoint_folder(model)
    config = read_config(folder)
    weights = None if gguf is None else GgufWeights(gguf)
    if weights is not None:
        weights.check(config)
    computed = chosen_dtype or _suitable_dtype(config, place)
    options = quantization.loading_options(computed, place) if quantization is not None else {}
    architecture = JMiniGPT4ForConditionalGeneration if weights is None else LlamaCppForConditionalGeneration
    processor = _fitting_processor(folder, config)
    tensors = _checked_tensors(architecture, config, folder)
    loaded = architecture.from_pretrained(
        folder, config=config, dtype=computed, use_safetensors=True, local_files_only=True, **options
    )
    loaded.name_or_path = loaded.config.name_or_path = str(model)
    loaded = loaded.eval() if options else loaded.eval().to(place)
    # Where quantising rounded the values away, those on disk are looked at. Cheap: it reads them once.
    values = read_stored(tensors) if options else loaded.state_dict().items()
    _refuse_not_finite(folder, values)
    if isinstance(loaded, LlamaCppForConditionalGeneration):
        loaded.weights = weights
    if quantization is not None and quantization.linear is not None:
        replace_linear_layers(loaded, quantization.linear)
    return loaded, processor


def _checked_tensors(architecture: type, config: JMiniGPT4Config, folder: Path) -> dict[str, StoredTensor]:
    """The tensors on disk, which are those of the model. transformers would fill what is missing at random, and the
    command line hushes its report."""
    tensors = stored_tensors(folder)
    with readable(folder / "config.json"):
        model = model_without_memory(config, architecture, len(tensors))
    if problems := weight_problems(model, tensors):
        raise ValueError(refusal(folder, problems))
    return tensors


def _refuse_not_finite(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]):
    if problems := finite_problems(tensors):
        raise ValueError(refusal(folder, problems))


def check_checkpoint(model: str | Path) -> Path:
    """The folder of a checkpoint that [`load_checkpoint`] would load, for whatever loads it in another way.

    Raises:
        FileNotFoundError, ValueError, OSError: As [`load_checkpoint`].
    """
    folder = checkpoint_folder(model)
    config = read_config(folder)
    _fitting_processor(folder, config)
    tensors = _checked_tensors(JMiniGPT4ForConditionalGeneration, config, folder)
    _refuse_not_finite(folder, read_stored(tensors))
    return folder


def load_processor(model: str | Path) -> JMiniGPT4Processor:
    """The processor of a folder or Hub repository alone.

    Raises:
        FileNotFoundError, ValueError, OSError: As [`load_checkpoint`].
    """
    folder = checkpoint_folder(model, weights=False)
    return _fitting_processor(folder, read_config(folder))


def _fitting_processor(folder: Path, config: JMiniGPT4Config) -> JMiniGPT4Processor:
    processor = read_processor(folder)
    if problems := processor_problems(processor, config):
        raise ValueError(refusal(folder, problems))
    return processor


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


def checkpoint_config(model: str | Path) -> JMiniGPT4Config:
    """Configuration of a checkpoint folder or Hub repository, after all its JSON files were checked.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no checkpoint of Japanese MiniGPT-4, or a file states what it may not.
        OSError: The repository cannot be reached.
    """
    return read_config(checkpoint_folder(model, weights=False))


def fingerprint(model: str | Path) -> str | None:
    """SHA-256 of a folder's list of checksums: which state of the checkpoint it is; `None` without one."""
    manifest = user_path(model) / MANIFEST
    return sha256(manifest) if manifest.is_file() else None


def _suitable_dtype(config: transformers.PreTrainedConfig, device: torch.device) -> torch.dtype | str:
    """The stored dtype, or what a CPU computes in the place of float16."""
    if device.type != "cpu" or config.dtype != torch.float16:
        return "auto"
    text = config.get_text_config()
    if 12 * text.num_hidden_layers * text.hidden_size**2 <= LARGEST_IN_FLOAT32:
        return torch.float32  # holds every number of float16, so there is nothing to be said
    note("computing in bfloat16, which rounds the weights: the stored float16 is slow on a CPU.")
    return torch.bfloat16


def note(text: str):
    """Says a sentence on stderr that is to be read whatever is hushed."""
    print(f"jminigpt4: {text}", file=sys.stderr, flush=True)
