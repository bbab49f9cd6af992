"""A checkpoint in the precision that was asked for."""

import pytest
import torch

from jminigpt4.chat.settings import Settings
from jminigpt4.inference.loading import load_checkpoint


def test_eight_bits_are_the_language_model_only(checkpoint):
    pytest.importorskip("bitsandbytes")
    model, _ = load_checkpoint(checkpoint, "cpu", bits=8)
    types = {
        name: type(module).__name__ for name, module in model.named_modules() if "Linear" in type(module).__name__
    }
    quantised = {name for name, kind in types.items() if kind == "Linear8bitLt"}
    assert quantised and all(name.startswith("model.language_model.") for name in quantised)
    assert types["model.language_projection"] == types["lm_head"] == "Linear"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype(checkpoint, dtype):
    assert load_checkpoint(checkpoint, "cpu", dtype)[0].dtype == getattr(torch, dtype)


def test_mistakes(checkpoint):
    with pytest.raises(ValueError, match="8 or 4 bits, not to 3"):
        load_checkpoint(checkpoint, "cpu", bits=3)
    with pytest.raises(ValueError, match="no device 'abacus'"):
        load_checkpoint(checkpoint, "abacus")
    with pytest.raises(ValueError, match="no dtype 'float31'"):
        load_checkpoint(checkpoint, "cpu", "float31")
    with pytest.raises(ValueError, match="not both"):
        Settings(str(checkpoint), fast=True, bits=8).open_session()
