"""Generation: every way of it gives what greedy decoding of the single prompt gives."""

import pytest
import torch
from transformers import AutoModelForCausalLM, TextIteratorStreamer

IMAGE = 512
PICTURE = [IMAGE] * 4
PROMPTS = ([2, 40, 41, *PICTURE, 50, 51, 52], [2, 60, *PICTURE, 61, *PICTURE, 62], [2, 70, 71, 72])
TOKENS = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def batch(pixel_values):
    width = max(map(len, PROMPTS))
    return {
        "input_ids": torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS]),
        "attention_mask": torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]),
        "pixel_values": pixel_values,
    }


def single(model, prompt, pixel_values, **options):
    input_ids = torch.tensor([prompt])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixel_values}
    return model.generate(**inputs, **{**TOKENS, **options})[:, len(prompt) :].tolist()


def generate(model, batch, **options):
    return model.generate(**batch, **{**TOKENS, **options})[:, batch["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def greedy(model, pixel_values):
    pictures = (pixel_values[:1], pixel_values[1:], None)
    return [single(model, prompt, own)[0] for prompt, own in zip(PROMPTS, pictures, strict=True)]


def test_pictures_matter(model, greedy, pixel_values):
    assert single(model, PROMPTS[1], pixel_values[[2, 1]])[0] != greedy[1]
    assert single(model, PROMPTS[0], pixel_values[1:2])[0] != greedy[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"num_beams": 1, "num_return_sequences": 1},
    ],
    ids=["dynamic cache", "no cache", "static cache", "beam of one"],
)
def test_batch_equals_single_prompts(model, batch, greedy, options):
    assert generate(model, batch, **options) == greedy


@pytest.mark.parametrize("features", [False, True], ids=["pixel_values", "query_features"])
def test_beams_and_return_sequences(model, batch, pixel_values, features):
    """Two pictures in one prompt, expanded to beams: [A, B] must become [A, B, A, B], not [A, A, B, B]."""
    options = {"num_beams": 3, "num_return_sequences": 2}
    pictures = (pixel_values[:1], pixel_values[1:], None)
    alone = [
        row for prompt, own in zip(PROMPTS, pictures, strict=True) for row in single(model, prompt, own, **options)
    ]
    if features:
        batch = {**batch, "query_features": model.get_query_features(pixel_values)}
        del batch["pixel_values"]
    assert generate(model, batch, **options) == alone


def test_sampled_sequences_come_from_their_own_pictures(model, pixel_values):
    """With a temperature near zero every sample is the greedy answer, if it sees its own pictures."""
    expected = single(model, PROMPTS[1], pixel_values[1:])[0]
    options = {"do_sample": True, "temperature": 1e-4, "num_return_sequences": 3}
    assert single(model, PROMPTS[1], pixel_values[1:], **options) == [expected] * 3


def test_assisted_and_prompt_lookup(model, make_model, pixel_values, greedy):
    assert single(model, PROMPTS[1], pixel_values[1:], prompt_lookup_num_tokens=3)[0] == greedy[1]
    assert single(model, PROMPTS[1], pixel_values[1:], assistant_model=make_model(seed=1))[0] == greedy[1]


def test_draft_model_sees_the_picture(model, make_model, pixel_values, monkeypatch):
    """A draft equal to the model must have every draft accepted, which it can only with the pictures."""
    draft = make_model()
    passes = []
    forward = model.model.forward

    def counted(*args, **kwargs):
        passes.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", counted)
    draft.generation_config.num_assistant_tokens = 4
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    single(model, PROMPTS[1], pixel_values[1:], assistant_model=draft)
    assert len(passes) == 2  # 8 tokens in steps of 4 + 1


def test_query_features_in_generate(model, batch, greedy, pixel_values):
    features = {**batch, "query_features": model.get_query_features(pixel_values)}
    with pytest.raises(ValueError, match="Give the pictures once"):
        generate(model, features)
    del features["pixel_values"]
    assert generate(model, features) == greedy


def test_refuses_placeholders_without_pictures(model, batch):
    with pytest.raises(ValueError, match="The prompts hold 12 image tokens but 0 pictures were given"):
        generate(model, {**batch, "pixel_values": None})


def test_image_token_is_never_generated(make_model):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[:] = 0
    model.generation_config.suppress_tokens = None
    inputs = {"input_ids": torch.tensor([[2, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    torch.manual_seed(0)
    spoken = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=200, num_return_sequences=20)
    assert spoken[:, 3:].unique().numel() > 400  # every other token is as likely as the next
    assert IMAGE not in spoken
    with torch.no_grad():
        model.lm_head.weight[:] = torch.randn(513, 32)
        model.lm_head.weight[IMAGE] *= 100  # would win nearly every second time
    for options in ({}, {"num_beams": 4}, {"do_sample": True, "temperature": 2.0, "top_k": 0}):
        spoken = model.generate(**inputs, max_new_tokens=50, **{"do_sample": False, **options})
        assert IMAGE not in spoken


def test_generate_batch_refuses_pictures(model):
    with pytest.raises(ValueError, match="Prompt 1 holds image tokens, but generate_batch passes no pictures"):
        model.generate_batch([[2, 5], [2, IMAGE, 5]])


def test_streams(model, processor, pixel_values, greedy):
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    single(model, PROMPTS[0], pixel_values[:1], streamer=streamer)
    assert "".join(streamer) == processor.tokenizer.decode(greedy[0])


def test_language_model_alone_answers_the_same(model, tmp_path):
    """Without pictures the hall is its language model and nothing else."""
    config = model.config.text_config
    alone = AutoModelForCausalLM.from_config(config).eval()
    alone.base_model.load_state_dict(model.model.language_model.state_dict())
    alone.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    inputs = {"input_ids": torch.tensor([PROMPTS[2]])}
    torch.testing.assert_close(alone(**inputs).logits[..., :IMAGE], model(**inputs).logits[..., :IMAGE])
