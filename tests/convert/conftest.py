"""The originals' checkpoints, converted once for all tests of this folder."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from jminigpt4.convert import assemble

HEADS = {"vision_heads": 4, "qformer_heads": 4, "progress": False}


@pytest.fixture(scope="session")
def originals(reference) -> dict:
    """Arguments of `assemble` for the reference checkpoints: LAVIS, rinna's language model, rinna's projection."""
    return {
        "vision": reference / "checkpoints" / "eva_vit_g.pth",
        "qformer": reference / "checkpoints" / "blip2_pretrained_flant5xxl.pth",
        "language": reference / "llm",
        "projection": reference / "checkpoints" / "checkpoint.pth",
        **HEADS,
    }


@pytest.fixture(scope="session")
def converted(originals, tmp_path_factory) -> SimpleNamespace:
    """`folder`, `proof`, `model` and `processor` of the reference checkpoints, loaded as a user loads them."""
    folder = tmp_path_factory.mktemp("converted") / "checkpoint"
    proof = assemble(**originals, out=folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    # Greedy and endless: the sampling settings of the prompt format are not the reference's.
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=2)
    processor = AutoProcessor.from_pretrained(folder)
    return SimpleNamespace(folder=folder, proof=proof, model=model, processor=processor)


@pytest.fixture
def folder(converted, tmp_path) -> Path:
    """A copy of the converted folder that a test may damage."""
    return Path(shutil.copytree(converted.folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def picture(reference):
    """`picture(name)`: a reference picture, as the originals open it."""

    def open_picture(name: str) -> Image.Image:
        return Image.open(reference / "images" / f"{name}.png").convert("RGB")

    return open_picture


@pytest.fixture(scope="session")
def pixel_values(expected) -> torch.Tensor:
    """The four reference pictures, a to d."""
    return expected["forward"]["pixel_values"]
