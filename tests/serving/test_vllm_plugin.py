"""The plugin inside vLLM's own process, without a server."""

import copy
from types import SimpleNamespace

import pytest

from jminigpt4 import DEMO, JMiniGPT4Processor, serving

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def plugin():
    from jminigpt4.serving import vllm_plugin

    serving.register()
    serving.register()
    return vllm_plugin


@pytest.fixture(scope="module")
def tokenizer():
    return JMiniGPT4Processor.from_pretrained(DEMO).tokenizer


@pytest.fixture
def detokenizer(plugin, tokenizer):
    """`detokenizer(**settings)`: what vLLM makes for a request with these sampling settings."""
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    def make(tokenizer=tokenizer, **settings):
        request = SimpleNamespace(
            request_id="1", prompt_token_ids=[2], prompt_embeds=None, sampling_params=SamplingParams(**settings)
        )
        return IncrementalDetokenizer.from_new_request(tokenizer=tokenizer, request=request)

    return make


def pieces_of(detokenizer, tokenizer, text: str) -> tuple[list[str], str | None]:
    """Text of an answer as a client gets it token by token, and the stop string that ended it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, stopped = [], None
    for number, token_id in enumerate(ids, 1):
        stopped = detokenizer.update([token_id], stop_terminated=False)
        finished = stopped is not None or number == len(ids)
        pieces.append(detokenizer.get_next_output_text(finished, delta=True))
        if finished:
            break
    return pieces, stopped


@pytest.mark.parametrize(
    ("settings", "text", "wanted", "stopped"),
    [
        ({}, "赤です。<NL>青です。<NL>ユーザー: 何", "赤です。\n青です。", "\nユーザー:"),
        ({}, "赤です。<NL>", "赤です。\n", None),
        ({}, "赤<N", "赤<N", None),
        ({}, "赤<NL", "赤<NL", None),
        ({}, "<<NL>>", "<\n>", None),
        ({"stop": ["青"]}, "赤です。<NL>青です。", "赤です。\n", "青"),
        ({"stop": ["<NL>青"]}, "赤です。<NL>青です。", "赤です。", "\n青"),
        ({"ignore_eos": True}, "赤です。<NL>ユーザー: 何", "赤です。\nユーザー: 何", None),
        ({"include_stop_str_in_output": True}, "赤<NL>ユーザー: 何", "赤\nユーザー:", "\nユーザー:"),
    ],
)
def test_line_breaks_and_stop_strings(detokenizer, tokenizer, settings, text, wanted, stopped):
    pieces, stop_string = pieces_of(detokenizer(**settings), tokenizer, text)
    assert ("".join(pieces), stop_string) == (wanted, stopped)


def test_no_half_line_break_is_sent(detokenizer, tokenizer):
    pieces, _ = pieces_of(detokenizer(ignore_eos=True), tokenizer, "赤<NL>青<NL>黄")
    assert all("<" not in piece for piece in pieces) and len([piece for piece in pieces if piece]) > 2


def test_other_models_are_left_alone(plugin, detokenizer, tokenizer):
    other = copy.copy(tokenizer)
    other.init_kwargs = {**tokenizer.init_kwargs, "processor_class": "LlavaProcessor"}
    assert isinstance(detokenizer(), plugin.AnswerDetokenizer)
    for each in (detokenizer(tokenizer=other), detokenizer(tokenizer=None)):
        assert not isinstance(each, plugin.AnswerDetokenizer)
    assert "".join(pieces_of(detokenizer(tokenizer=other), tokenizer, "赤<NL>青")[0]) == "赤<NL>青"


def model_config(generation: dict, source: str = "auto", override: dict | None = None, **text) -> SimpleNamespace:
    return SimpleNamespace(
        hf_text_config=SimpleNamespace(**{"model_type": "gpt_neox", "hidden_size": 32, **text}),
        generation_config=source,
        override_generation_config=dict(override or {}),
        try_get_generation_config=lambda: generation,
        multimodal_config=SimpleNamespace(media_io_kwargs={}),
    )


@pytest.mark.parametrize(
    ("config", "temperature"),
    [
        (model_config({"max_new_tokens": 9}), 0.0),
        (model_config({"temperature": 0.7}), 0.0),  # `generate` does not read it unless it samples
        (model_config({"do_sample": True, "temperature": 0.7}), None),
        (model_config({}, override={"temperature": 0.3}), 0.3),
        (model_config({}, source="vllm"), None),
    ],
)
def test_sampling_defaults(plugin, config, temperature):
    plugin.ServingDefaults.verify_and_update_model_config(config)
    assert config.override_generation_config.get("temperature") == temperature
    assert config.multimodal_config.media_io_kwargs == {"image": {"image_mode": None}}


@pytest.mark.parametrize(
    "text",
    [{"logits_scaling": 8.0}, {"logits_soft_cap": 30.0}, {"word_embed_proj_dim": 16}, {"lm_head_multiplier": 2}],
)
def test_heads_unlike_that_of_vllm_are_refused(plugin, text):
    with pytest.raises(ValueError, match=r"head of .*gpt_neox"):
        plugin.ServingDefaults.verify_and_update_model_config(model_config({}, **text))


def test_plain_heads_are_taken(plugin):
    plugin.ServingDefaults.verify_and_update_model_config(
        model_config({}, logits_scaling=1.0, logits_soft_cap=None, word_embed_proj_dim=32)
    )
