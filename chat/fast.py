"""Faster answers on a CPU: a static KV cache, so that the step of decoding has one shape, compiles once and computes
on weights that the compiler has packed for this processor ("freezing", torch/_inductor/config.py).

It pays where decoding waits for memory, which is for language models of hundreds of millions of parameters and more
(`benchmarks/decode.py`); the packed copies of the weights stand beside the originals.
"""

import torch
from transformers import CompileConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer


def compiled_decoding() -> CompileConfig:
    """What `generate` needs to compile its steps on a CPU. From here on the compiler of this process takes weights for
    constants: a model is not to be changed any more."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    config = CompileConfig(mode="default", dynamic=False)
    config._compile_all_devices = True  # by default `generate` compiles on accelerators only
    return config


class UnmarkedLayer(StaticLayer):
    """Room for the keys and values of one layer, as an ordinary input of the compiled step.

    transformers marks these tensors as static, and a compiler that freezes takes what is static for a constant: the
    compiled step would go on writing into the cache of the conversation for which it was compiled.
    """

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor):
        super().lazy_initialization(key_states, value_states)
        for tensor in (self.keys, self.values, self.cumulative_length):
            if hasattr(tensor, "_dynamo_static_input_type"):
                del tensor._dynamo_static_input_type


def static_cache(model: PreTrainedModel, length: int) -> StaticCache:
    """Room for `length` positions of one conversation.

    Raises:
        ValueError: The language model does not keep the keys and values of all positions (sliding windows, state
            spaces).
    """
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length)
    if any(type(layer) is not StaticLayer for layer in cache.layers):
        raise ValueError("This language model has layers that forget; fast answers need a full attention cache.")
    cache.layers = [UnmarkedLayer(length) for _ in cache.layers]
    return cache


def crop(cache: StaticCache, excess: int):
    """Forgets the last `excess` positions; what is said next overwrites them. (Before transformers 5.24 such a cache
    has no `crop`.)"""
    with torch.no_grad():
        for layer in cache.layers:
            assert isinstance(layer, StaticLayer)
            layer.cumulative_length.sub_(excess)
