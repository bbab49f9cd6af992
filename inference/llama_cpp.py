"""llama.cpp as the language model: image encoder, Q-Former and projection in torch, everything behind them from a
GGUF file (`jminigpt4 convert --to gguf`).

llama.cpp reads token ids where text stands and embeddings where a picture stands (`llama_batch`, `token` and `embd`),
keeps keys and values itself, and gives back the scores of the next token. To `generate`, and so to a conversation, it
is a model like any other. Interface: `llama.h` of https://github.com/ggml-org/llama.cpp through llama-cpp-python.
"""

import ctypes
import itertools
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import Cache

from ..configuration_jminigpt4 import JMiniGPT4Config
from ..extras import install_command
from ..modeling_jminigpt4 import CACHE_NAME, JMiniGPT4CausalLMOutputWithPast, JMiniGPT4ForConditionalGeneration


class Position(NamedTuple):
    """One position of a prompt: its row in the batch and either a token id or an embedding `(hidden_size,)`."""

    row: int
    token_id: int
    embedding: np.ndarray | None = None
    wanted: bool = False  # whether the scores behind it are asked for


class GgufWeights:
    """A GGUF file that llama.cpp has opened; it is mapped into memory, not copied.

    Args:
        path: The file.

    Raises:
        ImportError: llama-cpp-python is not installed.
        FileNotFoundError: There is no such file.
        ValueError: It is no GGUF file, or none that llama.cpp can load.
    """

    def __init__(self, path: str | os.PathLike):
        self.library = _library()
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"No file {path}: `jminigpt4 convert --to gguf` makes one of a checkpoint folder.")
        with self.path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError(f"{path} is no GGUF file.")
        self.library.llama_backend_init()
        parameters = self.library.llama_model_default_params()
        self.pointer = self.library.llama_model_load_from_file(os.fsencode(self.path), parameters)
        if not self.pointer:
            raise ValueError(f"{path} is damaged, or of a kind that this version of llama.cpp does not know.")
        weakref.finalize(self, self.library.llama_model_free, self.pointer)
        self.vocab_size = int(self.library.llama_vocab_n_tokens(self.library.llama_model_get_vocab(self.pointer)))

    def check(self, config: JMiniGPT4Config):
        """Compares sizes with those of a checkpoint; a table without the image token's row, its last, is as good.

        Raises:
            ValueError: The file holds another language model than the checkpoint.
        """
        text: Any = config.get_text_config()
        without_image_token = config.image_token_id == text.vocab_size - 1 == self.vocab_size
        expected = {"hidden size": text.hidden_size, "layers": text.num_hidden_layers, "vocabulary": text.vocab_size}
        found = {
            "hidden size": self.library.llama_model_n_embd(self.pointer),
            "layers": self.library.llama_model_n_layer(self.pointer),
            "vocabulary": text.vocab_size if without_image_token else self.vocab_size,
        }
        for name, size in expected.items():
            if found[name] != size:
                raise ValueError(
                    f"{self.path} holds another language model than the checkpoint: its {name} is {found[name]}, not "
                    f"{size}. Write the checkpoint's own: jminigpt4 convert --to gguf FOLDER FILE."
                )


class LlamaCppCache(Cache):
    """Keys and values that llama.cpp keeps, in float16, and what reads new positions into them.

    Args:
        weights: The language model.
        length: Number of positions there is room for, in all rows together; a prefix that rows share counts once.
        rows: How many rows a batch may have.

    Raises:
        MemoryError: There is no room for them.
    """

    def __init__(self, weights: GgufWeights, length: int, rows: int = 1):
        super().__init__(layers=[])
        self._weights = weights  # has to outlive what was made of it
        library = weights.library
        parameters = library.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = length
        parameters.n_seq_max = rows
        parameters.kv_unified = True  # rows share the positions of their prefix
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        self._context = library.llama_init_from_model(weights.pointer, parameters)
        if not self._context:
            raise MemoryError(f"There is no room for a KV cache of {length} positions.")
        weakref.finalize(self, library.llama_free, self._context)
        self._memory = library.llama_get_memory(self._context)
        self._lengths = [0] * rows

    # What `generate` asks of a cache that has no layers of its own.
    is_compileable = False
    is_linear = (False,)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self._lengths)

    def crop(self, tokens_to_remove: int):
        """Forgets the last positions of every row; like transformers, it is given minus their number."""
        for row, length in enumerate(self._lengths):
            self._lengths[row] = max(0, length + tokens_to_remove)
            self._weights.library.llama_memory_seq_rm(self._memory, row, self._lengths[row], -1)

    def batch_select_indices(self, indices: torch.Tensor):
        """Gives row `i` the positions of row `indices[i]`, which has to be `i` or a row before it."""
        lengths = list(self._lengths)
        for row, source in reversed(list(enumerate(indices.tolist()))):  # a source is overwritten after its last use
            if source != row:
                self._weights.library.llama_memory_seq_rm(self._memory, row, -1, -1)
                self._weights.library.llama_memory_seq_cp(self._memory, source, row, -1, -1)
            self._lengths[row] = lengths[source]

    def read(self, positions: Sequence[Position]) -> np.ndarray:
        """Reads positions behind those that are there; returns the scores behind the wanted ones, `(wanted,
        vocab_size)`, float32.

        Raises:
            RuntimeError: llama.cpp could not compute them.
        """
        # A batch of llama.cpp is all tokens or all embeddings.
        runs = itertools.groupby(positions, lambda position: position.embedding is not None)
        return np.concatenate([self._read_run(list(run), embedded) for embedded, run in runs])

    def _read_run(self, run: list[Position], embedded: bool) -> np.ndarray:
        library = self._weights.library
        places = []
        for position in run:
            places.append(self._lengths[position.row])
            self._lengths[position.row] += 1
        rows = (ctypes.c_int32 * len(run))(*(position.row for position in run))
        row_pointers = (ctypes.POINTER(ctypes.c_int32) * len(run))()
        for index in range(len(run)):
            row_pointers[index] = ctypes.pointer(ctypes.c_int32.from_buffer(rows, 4 * index))
        content: dict[str, Any] = {}
        if embedded:
            content["embd"] = _array([position.embedding for position in run], np.float32, ctypes.c_float)
        else:
            content["token"] = _array([position.token_id for position in run], np.int32, ctypes.c_int32)
        batch = library.llama_batch(
            n_tokens=len(run),
            pos=_array(places, np.int32, ctypes.c_int32),
            n_seq_id=_array([1] * len(run), np.int32, ctypes.c_int32),
            seq_id=row_pointers,
            logits=_array([position.wanted for position in run], np.int8, ctypes.c_int8),
            **content,
        )
        if status := library.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp could not read {len(run)} positions (llama_decode gave {status}).")
        scores = [
            np.ctypeslib.as_array(library.llama_get_logits_ith(self._context, index), (self._weights.vocab_size,))
            for index, position in enumerate(run)
            if position.wanted
        ]
        return np.array(scores, dtype=np.float32).reshape(-1, self._weights.vocab_size)


class LlamaCppForConditionalGeneration(JMiniGPT4ForConditionalGeneration):
    """A model whose language model is a GGUF file: of the checkpoint it loads what stands before the language model.
    Made by `load_checkpoint`; answers greedily or by sampling, without beams."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.language_model\.", r"^lm_head\."]
    weights: GgufWeights

    def __init__(self, config: JMiniGPT4Config):
        super().__init__(config)
        self.model.language_model = nn.Identity()
        self.lm_head = nn.Identity()
        self._tied_weights_keys = self.all_tied_weights_keys = {}

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the projection, which makes what llama.cpp is given."""
        return next(self.model.language_projection.parameters()).dtype

    def new_cache(self, length: int, rows: int = 1) -> LlamaCppCache:
        """Room for a conversation or a batch; see [`LlamaCppCache`]."""
        return LlamaCppCache(self.weights, length, rows)

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        query_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 1,
        **kwargs,
    ) -> JMiniGPT4CausalLMOutputWithPast:
        """Scores of the next token, `logits` of shape `(batch_size, 1, vocab_size)`; those of earlier positions are
        not computed.

        Args:
            input_ids: New tokens, `(batch_size, new_length)`.
            attention_mask: Of all positions or of the new ones; what is masked is not read. The last one never is.
            pixel_values, query_features, mm_encoder_outputs: The pictures, as in the hall's model.
            cache, past_key_values: Of [`new_cache`].

        Raises:
            ValueError: Another cache was given, or none; or not as many pictures as the prompts have image tokens for.
        """
        kept = past_key_values if cache is None else cache
        if not isinstance(kept, LlamaCppCache):
            raise ValueError("llama.cpp keeps its own keys and values (`new_cache`) and generates without beams.")
        embeddings = self._embeddings(input_ids, pixel_values, query_features, mm_encoder_outputs)
        positions = self._positions(input_ids, attention_mask, embeddings)
        scores = torch.from_numpy(kept.read(positions))
        vocab_size = self.config.get_text_config().vocab_size
        logits = torch.full((len(input_ids), 1, vocab_size), torch.finfo(scores.dtype).min)
        logits[:, 0, : scores.shape[1]] = scores
        logits[..., self.config.image_token_id] = torch.finfo(scores.dtype).min
        outputs: dict[str, Any] = {"logits": logits.to(input_ids.device), CACHE_NAME: kept}
        return JMiniGPT4CausalLMOutputWithPast(**outputs)

    def _embeddings(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.Tensor | None,
        query_features: torch.Tensor | None,
        mm_encoder_outputs: dict[str, Any] | None,
    ) -> np.ndarray:
        """What stands at the image tokens, `(image_tokens, hidden_size)`, row by row."""
        images = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None or query_features is not None:
            images = self.get_image_features(pixel_values, query_features, return_dict=True)
        hidden_size = self.model.language_projection.out_features
        features = (
            torch.empty(0, self.config.num_query_tokens, hidden_size) if images is None else images.pooler_output
        )
        self.model._check_rows(input_ids)
        self.model.get_placeholder_mask(input_ids, features, features)
        return features.detach().flatten(0, 1).float().cpu().numpy()

    def _positions(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, embeddings: np.ndarray
    ) -> list[Position]:
        width = input_ids.shape[1]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -width:]
        pictures = iter(embeddings)
        positions = []
        for row, (tokens, seen) in enumerate(zip(input_ids.tolist(), mask.tolist(), strict=True)):
            for column, token_id in enumerate(tokens):
                if seen[column]:
                    embedding = next(pictures) if token_id == self.config.image_token_id else None
                    positions.append(Position(row, token_id, embedding, wanted=column == width - 1))
        return positions


def _library() -> Any:
    try:
        import llama_cpp
    except ImportError:
        raise ImportError(f"GGUF files are read by llama.cpp: {install_command('llama')}.") from None
    return llama_cpp


def _array(values: Any, dtype: type, element: Any) -> Any:
    """Values as llama.cpp reads them; the pointer keeps the array alive."""
    return np.ascontiguousarray(values, dtype).ctypes.data_as(ctypes.POINTER(element))
