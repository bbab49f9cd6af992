"""The configuration states the article's sizes and refuses what cannot work."""

import json

import pytest
import torch
from transformers import AutoConfig, Gemma3Config, LlamaConfig, TimmWrapperConfig

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration


def test_default_is_the_article():
    config = JMiniGPT4Config()
    vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size) == (39, 1408, 6144)
    assert (vision.image_size, vision.patch_size, vision.layer_norm_eps) == (224, 14, 1e-6)
    assert (qformer.num_hidden_layers, qformer.hidden_size, qformer.encoder_hidden_size) == (12, 768, 1408)
    assert (config.num_query_tokens, config.vision_layernorm_eps) == (32, 1e-5)
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads, text.vocab_size) == (
        36,
        2816,
        22,
        32000,
    )
    assert text.rope_parameters["partial_rotary_factor"] == 1.0
    assert text.use_parallel_residual is False


def test_shapes_are_those_of_the_originals(reference):
    """Names and shapes of the full-size tensors, as in the originals' files."""
    with torch.device("meta"):
        model = JMiniGPT4ForConditionalGeneration(JMiniGPT4Config())
    sizes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert sizes["model.query_tokens"] == (1, 32, 768)
    assert sizes["model.language_projection.weight"] == (2816, 768)
    assert (
        sum(parameter.numel() for parameter in model.model.vision_model.encoder.parameters())
        + sum(parameter.numel() for parameter in model.model.vision_model.embeddings.parameters())
        == 985_894_528 + 39 * 1408
    )  # the middle third of every qkv bias, always zero, is a parameter of the stock ViT
    language = sum(parameter.numel() for parameter in model.model.language_model.parameters())
    assert language + model.lm_head.weight.numel() == 3_607_245_312


def test_round_trip(make_config, tmp_path):
    config = make_config("llama")
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, JMiniGPT4Config)
    assert isinstance(again.text_config, LlamaConfig)
    assert {**again.to_dict(), "_name_or_path": ""} == config.to_dict()
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == auto_map["AutoModelForImageTextToText"]
    assert auto_map["AutoProcessor"] == "processing_jminigpt4.JMiniGPT4Processor"


def test_qformer_follows_the_encoder(make_config):
    config = JMiniGPT4Config(vision_config={"hidden_size": 64, "num_attention_heads": 4}, qformer_config={})
    assert config.qformer_config.encoder_hidden_size == 64
    timm = TimmWrapperConfig(architecture="tf_efficientnet_lite0")
    config = JMiniGPT4Config(vision_config=timm, qformer_config={"encoder_hidden_size": 320})
    assert config.qformer_config.encoder_hidden_size == 320


def test_language_model_with_parts_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"'gemma3', which holds a language model beside other parts: take that one"):
        JMiniGPT4Config(text_config={"model_type": "gemma3"})
    assert JMiniGPT4Config(text_config=Gemma3Config().text_config).text_config.model_type == "gemma3_text"


@pytest.mark.parametrize("image_token_id", [-1, 513])
def test_image_token_must_be_in_the_table(make_config, image_token_id):
    with pytest.raises(
        ValueError, match=f"image_token_id {image_token_id} is outside the embedding table of 513 rows"
    ):
        make_config(image_token_id=image_token_id)


def test_a_linear_projection_is_stated_by_nothing(make_config, tmp_path):
    """Files written before there was another kind stay what they are, byte for byte, and mean what they meant."""
    config = make_config()
    assert "projector" not in config.to_json_string() + config.to_json_string(use_diff=False)
    config.save_pretrained(tmp_path)
    assert JMiniGPT4Config.from_pretrained(tmp_path).projector_hidden_act is None
    config.projector_hidden_act = "gelu"
    config.save_pretrained(tmp_path)
    assert JMiniGPT4Config.from_pretrained(tmp_path).projector_hidden_act == "gelu"
    with pytest.raises(ValueError, match="projector_hidden_act 'gleu' is no activation of transformers"):
        JMiniGPT4Config(projector_hidden_act="gleu")


def test_early_layers_and_positions_are_for_encoders_that_lack_them():
    assert not {"vision_early_layers", "num_vision_positions"} & JMiniGPT4Config().to_dict().keys()
    with pytest.raises(ValueError, match="vision_early_layers are for image encoders of timm, and this one is"):
        JMiniGPT4Config(vision_early_layers=[1])
    with pytest.raises(ValueError, match="num_vision_positions is 4: it is for encoders without positions"):
        JMiniGPT4Config(num_vision_positions=4)
