"""A checkpoint as a user names it, on the device and in the precision that suit the machine, without noise."""

import logging
import warnings
from pathlib import Path
from typing import cast

import torch
import transformers
from transformers.utils import logging as transformers_logging

from .. import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor
from .int8 import quantise
from .llama_cpp import GgufWeights, LlamaCppForConditionalGeneration

# Above this many parameters float32 would not fit an ordinary machine; below it, it costs little and is exact.
LARGEST_IN_FLOAT32 = 1_000_000_000


def be_quiet():
    """Nothing but answers on the screen: no load reports, bars or warnings of the libraries."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("timm", "bitsandbytes", "torch.utils.cpp_extension"):
        logging.getLogger(library).setLevel(logging.ERROR)
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)  # it tells all of a file, also what fails
    warnings.simplefilter("ignore")


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_checkpoint(
    model: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    bits: int | None = None,
    int8: bool = False,
    gguf: str | Path | None = None,
) -> tuple[JMiniGPT4ForConditionalGeneration, JMiniGPT4Processor]:
    """Model and processor of a folder or Hub repository, ready to answer. Only this package's own classes are used:
    no code of the checkpoint is run.

    Args:
        model: A folder, or a repository `user/name` on the Hub.
        device: A torch device; the best one there is by default.
        dtype: A torch dtype's name. By default the stored one, except for float16 on a CPU, which computes it more
            than ten times slower: float32 instead, or bfloat16 for large models.
        bits: 8 (LLM.int8()) or 4 (NF4): the language model quantised by bitsandbytes, all else as it is. Saves memory;
            `benchmarks/decode.py` tells whether it saves time.
        int8: Whether torch computes the language model in 8-bit integers, on a CPU; see [`int8`].
        gguf: File from which llama.cpp takes the language model; see [`llama_cpp`].

    Raises:
        ImportError: llama-cpp-python is not installed.
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no checkpoint of Japanese MiniGPT-4, there is no such device or dtype, the GGUF
            file does not belong to the checkpoint, or more than one of `bits`, `int8` and `gguf` was given.
        OSError: The repository cannot be reached.
    """
    if sum((bits is not None, int8, gguf is not None)) > 1:
        raise ValueError("Choose one of bits, int8 and gguf: a language model is quantised once.")
    config = checkpoint_config(model)
    weights = None if gguf is None else GgufWeights(gguf)
    if weights is not None:
        weights.check(cast(JMiniGPT4Config, config))
    device = device or ("cpu" if int8 else best_device())
    try:
        chosen = getattr(torch, dtype) if dtype else _dtype(config, torch.device(device))
    except (RuntimeError, AttributeError):
        raise ValueError(f"There is no device {device!r} or no dtype {dtype!r}.") from None
    options = (
        {"quantization_config": quantised_weights(bits, chosen), "device_map": device} if bits is not None else {}
    )
    architecture = JMiniGPT4ForConditionalGeneration if weights is None else LlamaCppForConditionalGeneration
    loaded = architecture.from_pretrained(model, config=config, dtype=chosen, **options).eval()
    loaded = loaded if options else loaded.to(device)
    if isinstance(loaded, LlamaCppForConditionalGeneration):
        loaded.weights = weights
    if int8:
        quantise(loaded)
    return loaded, JMiniGPT4Processor.from_pretrained(model)


def quantised_weights(bits: int, dtype: torch.dtype | str) -> transformers.BitsAndBytesConfig:
    """Configuration of bitsandbytes for 8 (LLM.int8()) or 4 bits (NF4).

    Raises:
        ValueError: Another number of bits.
    """
    if bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if bits == 4:
        compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    raise ValueError(f"A language model is quantised to 8 or 4 bits, not to {bits}.")


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


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") != 1


def _dtype(config: transformers.PreTrainedConfig, device: torch.device) -> torch.dtype | str:
    if device.type != "cpu" or config.dtype != torch.float16:
        return "auto"
    text = config.get_text_config()
    parameters = 12 * text.num_hidden_layers * text.hidden_size**2
    return torch.float32 if parameters < LARGEST_IN_FLOAT32 else torch.bfloat16
