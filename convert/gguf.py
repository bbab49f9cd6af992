"""The language model of a folder as a GGUF file, for llama.cpp behind this package's image encoder.

llama.cpp knows GPT-NeoX, but neither that image encoder nor rinna's tokenizer: the file holds weights and settings, no
vocabulary. Token ids and projected pictures are made here and given to it (`llama_batch`, `token` and `embd`).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; needs the package `gguf`.
"""

import glob
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from ..checkpoint import finished_file, remove_unfinished
from ..configuration_jminigpt4 import JMiniGPT4Config
from ..extras import install_command
from .checks import new_path, one_of
from .progress import progress_bar
from .sources import Source, open_checkpoint
from .writing import check_finite

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}


def write_gguf(
    source: str | os.PathLike, path: str | os.PathLike, dtype: str | None = None, progress: bool = True
) -> Path:
    """Writes the language model of a checkpoint, tensor by tensor, and returns the path.

    Queries, keys and values, which GPT-NeoX keeps interleaved by head, are put one after another, as llama.cpp reads
    them. Vectors are float32 whatever the matrices are.

    Args:
        source: A checkpoint of this package, or its Hub id.
        path: The `.gguf` file to be made; it must not exist yet.
        dtype: Of the matrices: `"float32"`, `"float16"` (default), `"bfloat16"` or `"q8_0"`.
        progress: Whether to show a progress bar, where there is a terminal to show it on.

    Raises:
        FileExistsError: `path` exists.
        ImportError: The package `gguf` is not installed.
        ValueError: The source is no checkpoint of this package, or its language model is none that is written exactly.
    """
    try:
        import gguf
    except ImportError:
        raise ImportError(f"GGUF files need the package gguf: {install_command('gguf')}.") from None
    path = new_path(path)
    kind = one_of("dtype", dtype or "float16", TYPES)
    opened = open_checkpoint(source)
    whole = JMiniGPT4Config.from_dict(opened.config)
    config: Any = whole.text_config
    _check_model(config, whole.lm_head_bias, source)
    remove_unfinished(path.absolute().parent, glob.escape(path.name))
    with finished_file(path) as temporary:
        _write(gguf, temporary, opened, config, gguf.GGMLQuantizationType[kind], progress)
    return path


def _check_model(config: PreTrainedConfig, head_bias: bool, source: str | os.PathLike):
    if config.model_type != "gpt_neox":
        raise ValueError(
            f"The language model of {source} is of type {config.model_type!r}; only GPT-NeoX is written here. For "
            "others give llama.cpp's own convert_hf_to_gguf.py the folder the language model came in."
        )
    if config.hidden_act not in ("gelu", "gelu_new", "gelu_fast"):
        raise ValueError(f"llama.cpp computes GPT-NeoX with GELU; the language model has {config.hidden_act!r}.")
    if head_bias or not config.attention_bias:
        raise ValueError(
            "llama.cpp computes GPT-NeoX with biases in its attention and without one in its head; the language "
            f"model of {source} has {'one in its head' if head_bias else 'none in its attention'}."
        )
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise ValueError(f"The rotary embedding is scaled by {kind!r}, which is not written to GGUF here.")


def _write(gguf: Any, path: Path, source: Source, config: PreTrainedConfig, kind: Any, progress: bool):
    names = _names(gguf, source, config)
    writer = gguf.GGUFWriter(path, "gptneox")
    _write_settings(gguf, writer, source, config, kind)
    for name, key in names.items():
        shape = source.weights.shape(key)
        form = _form(gguf, shape, kind)
        stored = shape if form in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16) else None
        if stored is None:
            stored = gguf.quants.quant_shape_to_byte_shape(shape, form)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=form)
        else:
            number = np.dtype(np.float32 if form == gguf.GGMLQuantizationType.F32 else np.float16)
            writer.add_tensor_info(name, stored, number, int(np.prod(stored)) * number.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for key in progress_bar(names.values(), shown=progress, desc="GGUF", unit="tensor"):
            tensor = source.weights.read(key)
            check_finite(key, tensor)
            if ".query_key_value." in key:
                tensor = _split_heads(tensor, config.num_attention_heads)
            form = _form(gguf, tuple(tensor.shape), kind)
            writer.write_tensor_data(gguf.quants.quantize(tensor.float().contiguous().numpy(), form))
    finally:
        writer.close()


def _names(gguf: Any, source: Source, config: PreTrainedConfig) -> dict[str, str]:
    """Every tensor of the language model, GGUF's name to the checkpoint's. A head that shares the embeddings
    is there a second time: llama.cpp asks for it."""
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPTNEOX, config.num_hidden_layers)
    names = {}
    for key in source.weights.matching(source.layout.parts["language"]):
        theirs = re.sub(r"^model\.language_model\.", "gpt_neox.", key).replace("lm_head.", "embed_out.")
        name = known.get_name(theirs, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ValueError(f"{key} has no place in a GGUF file of a GPT-NeoX.")
        names[name] = key
    if config.tie_word_embeddings:
        names["output.weight"] = names["token_embd.weight"]
    return names


def _write_settings(gguf: Any, writer: Any, source: Source, config: PreTrainedConfig, kind: Any):
    rope = config.rope_parameters
    writer.add_name(source.public_name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind.name]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    width = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(rope.get("partial_rotary_factor", 1.0) * width))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    for name in ("bos", "eos"):
        token = getattr(config, f"{name}_token_id")
        if isinstance(token, int):
            getattr(writer, f"add_{name}_token_id")(token)


def _form(gguf: Any, shape: tuple[int, ...], kind: Any) -> Any:
    """What a tensor is stored as: vectors as llama.cpp adds and multiplies them, rows that do not fill whole blocks of
    a quantised type in float16."""
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """`(heads * 3 * width, …)`, where each head has its query, key and value, to all queries, all keys, all values."""
    return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
