"""transformers' own tests of its models, run on ours. They are not in its wheel: a checkout of it brings them.

    JMINIGPT4_TRANSFORMERS_CHECKOUT=FOLDER python -m pytest tests/test_common_suite.py

The tests of a checkout suit the transformers of the same version.
"""

import importlib
import os
import sys
import unittest

import pytest
import torch
from transformers.models.auto import modeling_auto

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration
from jminigpt4.modeling_jminigpt4 import JMiniGPT4Model

CHECKOUT = os.environ.get("JMINIGPT4_TRANSFORMERS_CHECKOUT", "")
# As many pictures as the comparison of attentions wants: it would fill up with random ids.
IMAGE, PICTURES, QUERIES = 3, 7, 4

if not CHECKOUT:
    pytest.skip(
        "runs transformers' own tests: JMINIGPT4_TRANSFORMERS_CHECKOUT names a checkout of its repository at the "
        "installed version's tag",
        allow_module_level=True,
    )
pytest.importorskip("parameterized", reason="transformers' own tests need `pip install parameterized`")
# Its modules import each other from `tests`, as pytest calls the folder of this file.
sys.modules.pop("tests", None)
sys.path[:0] = [CHECKOUT, os.path.join(CHECKOUT, "utils")]
modeling, generation, configuration = (
    importlib.import_module(f"tests.{name}")
    for name in ("test_modeling_common", "generation.test_utils", "test_configuration_common")
)


ids_tensor = modeling.ids_tensor


def text_ids(shape: list[int], vocab_size: int, **options) -> torch.Tensor:
    """Random ids without the image token: with it and without pictures a prompt is refused."""
    ids = ids_tensor(shape, vocab_size, **options)
    return ids.where(ids != IMAGE, torch.tensor(IMAGE + 1))


@pytest.fixture(scope="module", autouse=True)
def as_in_the_library():
    """The tests look up among the library's own classes what a class is for, and draw prompts at random."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, "ids_tensor", text_ids)
        patch.setitem(modeling_auto.MODEL_MAPPING_NAMES, "jminigpt4", JMiniGPT4Model.__name__)
        patch.setitem(
            modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
            "jminigpt4",
            JMiniGPT4ForConditionalGeneration.__name__,
        )
        yield


class Tester:
    """Sizes that the tests ask for, a configuration and inputs."""

    base_model_class = JMiniGPT4Model
    batch_size, seq_length, is_training = PICTURES, 7 + QUERIES, True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4

    def get_config(self) -> JMiniGPT4Config:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        language = {"model_type": "llama", "vocab_size": self.vocab_size, "num_key_value_heads": 2, **sizes, **ids}
        return JMiniGPT4Config(
            vision_config={"image_size": 28, "patch_size": 14, **sizes},
            qformer_config={"vocab_size": 8, "max_position_embeddings": 16, **sizes},
            text_config={"max_position_embeddings": 512, **language},
            num_query_tokens=QUERIES,
            image_token_id=IMAGE,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[JMiniGPT4Config, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - IMAGE - 1) + IMAGE + 1
        input_ids[:, :QUERIES] = IMAGE
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": modeling.floats_tensor([self.batch_size, 3, 28, 28]),
        }


class TestCommonSuite(modeling.ModelTesterMixin, generation.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (JMiniGPT4Model, JMiniGPT4ForConditionalGeneration)
    # A prompt with image tokens and without pictures is refused; with this the tests give both.
    additional_model_inputs = ["pixel_values"]
    _is_composite = True

    def setUp(self):
        self.model_tester = Tester()
        self.config_tester = configuration.ConfigTester(self, JMiniGPT4Config, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("`past_key_values` is taken beside `cache` without a warning: on transformers 5.19 it is the name")
    def test_bc_cache_name_forward(self):
        pass
