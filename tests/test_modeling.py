"""The model: pictures take effect, counts are checked, and nothing but the projection learns."""

import pytest
import torch
from transformers import BitsAndBytesConfig, Blip2QFormerConfig, TimmWrapperConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration

IMAGE = 512
PICTURE = [IMAGE] * 4
FAMILIES = ["gpt_neox", "llama", "qwen2", "mistral", "gpt2", "opt"]


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(7))


def padded(*prompts):
    """Prompts of unequal length as one batch, padded on the left."""
    width = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    attention_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": input_ids, "attention_mask": attention_mask}


PROMPTS = (
    [2, 40, 41, *PICTURE, 50, 51, 52],
    [2, 60, *PICTURE, 61, *PICTURE, 62],
    [2, 70, 71, 72],
)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_pictures_give_two_answers(make_model, pixel_values, family):
    model = make_model(family)
    inputs = padded(PROMPTS[0])
    first = model(**inputs, pixel_values=pixel_values[:1]).logits[0, -1]
    second = model(**inputs, pixel_values=pixel_values[1:2]).logits[0, -1]
    assert (first - second).abs().max() > 0.1


def test_picture_counts_after_a_turn(model, pixel_values):
    """The classic silent bypass: with a filled cache the picture of a later turn is ignored."""
    turn = padded(PROMPTS[0])
    follow_up = torch.tensor([[80, *PICTURE, 81]])
    answers = []
    for picture in (pixel_values[1:2], pixel_values[2:3]):
        cache = model(**turn, pixel_values=pixel_values[:1], use_cache=True).past_key_values
        answers.append(model(input_ids=follow_up, pixel_values=picture, past_key_values=cache).logits[0, -1])
    assert (answers[0] - answers[1]).abs().max() > 0.1


def test_batch_equals_single_prompts(model, pixel_values):
    pictures = (pixel_values[:1], pixel_values[1:], None)
    together = model(**padded(*PROMPTS), pixel_values=pixel_values).logits[:, -1]
    for row, (prompt, own) in enumerate(zip(PROMPTS, pictures, strict=True)):
        alone = model(**padded(prompt), pixel_values=own).logits[0, -1]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_query_features_stand_in_for_pixel_values(model, pixel_values):
    inputs = padded(*PROMPTS)
    features = model.get_query_features(pixel_values)
    assert features.shape == (3, 4, 32)
    assert torch.equal(
        model(**inputs, query_features=features).logits, model(**inputs, pixel_values=pixel_values).logits
    )
    with pytest.raises(ValueError, match=r"query_features must be of shape \(num_images, 4, 32\), got \(3, 4, 31\)"):
        model(**inputs, query_features=features[..., :-1])
    with pytest.raises(ValueError, match="Give the pictures once"):
        model(**inputs, query_features=features, pixel_values=pixel_values)


def test_inputs_embeds_given_directly(model, pixel_values):
    inputs = padded(PROMPTS[0])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with_pictures = model(inputs_embeds=embeds, pixel_values=pixel_values[:1]).logits
    torch.testing.assert_close(with_pictures, model(**inputs, pixel_values=pixel_values[:1]).logits)
    embeds[0, 3:7] = model.get_image_features(pixel_values[:1]).pooler_output[0]
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, with_pictures)


@pytest.mark.parametrize(
    ("prompts", "pictures", "message"),
    [
        (PROMPTS[:1], 0, "The prompts hold 4 image tokens but 0 pictures were given"),
        (PROMPTS[:1], 2, "The prompts hold 4 image tokens but the pictures give 8 features"),
        (PROMPTS[2:], 1, "The prompts hold 0 image tokens but the pictures give 4 features"),
        (([2, *PICTURE, IMAGE], [2, IMAGE, IMAGE, IMAGE, 5, 5]), 2, r"hold \[5, 3\]"),
    ],
)
def test_pictures_and_placeholders_must_agree(model, pixel_values, prompts, pictures, message):
    given = pixel_values[:pictures] if pictures else None
    with pytest.raises(ValueError, match=message):
        model(**padded(*prompts), pixel_values=given)


def test_picture_of_another_size(model):
    larger = torch.randn(1, 3, 42, 42)
    with pytest.raises(ValueError, match=r"pixel_values are \(42, 42\) but the image encoder expects \(28, 28\)"):
        model.get_query_features(larger)
    assert model.get_query_features(larger, interpolate_pos_encoding=True).shape == (1, 4, 32)


def test_image_token_is_never_spoken_nor_in_the_softmax(make_model):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[IMAGE] = 100 * model.lm_head.weight[:5].sum(0)  # would win somewhere
    inputs = padded([2, 40, 41, 42, 43, 44, 45])
    logits = model(**inputs).logits
    assert (logits[..., IMAGE] == torch.finfo(torch.float32).min).all()
    labels = inputs["input_ids"]
    expected = torch.nn.functional.cross_entropy(logits[0, :-1, :IMAGE], labels[0, 1:])
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)


def test_vision_layernorm_has_its_own_eps(make_model, tmp_path):
    model = make_model()
    assert model.model.vision_model.post_layernorm.eps == 1e-5
    assert model.model.vision_model.encoder.layers[0].layer_norm1.eps == 1e-6
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).model.vision_model.post_layernorm.eps == 1e-5


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_timm_vision(make_config, architecture, tmp_path):
    config = make_config()
    width = {"test_resnet": 96, "test_vit": 64}[architecture]  # a feature map and a row of tokens
    arguments = {"img_size": 32} if architecture == "test_vit" else {}
    config = JMiniGPT4Config(
        vision_config=TimmWrapperConfig(architecture=architecture, model_args=arguments, do_pooling=False),
        qformer_config=Blip2QFormerConfig(**{**config.qformer_config.to_dict(), "encoder_hidden_size": width}),
        text_config=config.text_config,
        num_query_tokens=4,
        image_token_id=IMAGE,
    )
    torch.manual_seed(0)
    model = JMiniGPT4ForConditionalGeneration(config).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    features = model.get_query_features(pixel_values)
    assert features.shape == (2, 4, 32)
    assert (features[0] - features[1]).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).get_query_features(pixel_values), features)


def test_freeze_trains_the_projection_only(make_model, pixel_values):
    model = make_model()
    model.freeze()
    model.train()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"model.language_projection.weight", "model.language_projection.bias"}
    inputs = padded(PROMPTS[0])
    losses = [model(**inputs, pixel_values=pixel_values[:1], labels=inputs["input_ids"]).loss for _ in range(2)]
    assert torch.equal(*losses)  # dropout of 0.1 in language model and Q-Former is off
    losses[0].backward()
    assert model.model.language_projection.weight.grad.abs().max() > 0
    assert not model.get_query_features(pixel_values).requires_grad
    model.requires_grad_(True)
    model.train()
    assert model.model.qformer.training and model.model.language_model.training


def test_gradient_checkpointing_recomputes_and_agrees(make_model, pixel_values):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = make_model()
        model.freeze()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        layers = [m for m in model.model.language_model.modules() if isinstance(m, GradientCheckpointingLayer)]
        counts = [0]
        layers[-1].attention.register_forward_hook(lambda *_, counts=counts: counts.__setitem__(0, counts[0] + 1))
        inputs = padded(PROMPTS[0])
        loss = model(**inputs, pixel_values=pixel_values[:1], labels=inputs["input_ids"], use_cache=False).loss
        loss.backward()
        gradients.append(model.model.language_projection.weight.grad)
        calls.append(counts[0])
    assert calls == [1, 2]
    torch.testing.assert_close(*gradients)


def test_half_precision_is_saved_as_such(make_model, pixel_values, tmp_path):
    make_model().save_pretrained(tmp_path / "full")
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(tmp_path / "full", dtype=torch.float16)
    assert model.dtype == torch.float16
    assert model.model.qformer.layernorm.weight.dtype == torch.float32  # as the originals ran it
    assert model(**padded(*PROMPTS), pixel_values=pixel_values).logits.isfinite().all()
    model.save_pretrained(tmp_path / "half")
    again = JMiniGPT4ForConditionalGeneration.from_pretrained(tmp_path / "half")
    assert again.dtype == torch.float16
    assert (
        JMiniGPT4ForConditionalGeneration.from_pretrained(tmp_path / "full", dtype="bfloat16").dtype == torch.bfloat16
    )


def test_sharded_save_and_device_map(make_model, pixel_values, tmp_path):
    model = make_model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = JMiniGPT4ForConditionalGeneration.from_pretrained(tmp_path, device_map="auto")
    inputs = padded(*PROMPTS)
    assert torch.equal(
        again(**inputs, pixel_values=pixel_values).logits, model(**inputs, pixel_values=pixel_values).logits
    )
    assert again.lm_head.weight is again.get_input_embeddings().weight


@pytest.mark.parametrize("bits", [8, 4])
def test_quantises_the_language_model_only(make_model, pixel_values, tmp_path, bits):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    make_model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    quantisation = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(tmp_path, quantization_config=quantisation)
    kinds = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
    quantised = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    layers = model.model.language_model.layers
    assert len(quantised) == 4 * len(layers)
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    assert model(**padded(*PROMPTS), pixel_values=pixel_values).logits.isfinite().all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(make_model, model, pixel_values, implementation):
    other = make_model()
    other.set_attn_implementation(implementation)
    inputs = padded(*PROMPTS)
    outputs = other(**inputs, pixel_values=pixel_values, output_hidden_states=True)
    torch.testing.assert_close(
        outputs.logits[:, -1], model(**inputs, pixel_values=pixel_values).logits[:, -1], atol=1e-4, rtol=1e-4
    )
    assert len(outputs.hidden_states) == 3
    assert outputs.image_hidden_states.shape == (3, 4, 32)


def test_attentions_are_returned(make_model, pixel_values):
    model = make_model()
    model.set_attn_implementation("eager")
    attentions = model(**padded(PROMPTS[0]), pixel_values=pixel_values[:1], output_attentions=True).attentions
    assert [tuple(attention.shape) for attention in attentions] == [(1, 4, 10, 10)] * 2


def test_compiles_and_exports_whole(model, pixel_values):
    inputs = {**padded(*PROMPTS), "pixel_values": pixel_values, "use_cache": False}
    expected = model(**inputs).logits
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).logits, expected)
    exported = torch.export.export(model, (), inputs, strict=False)
    torch.testing.assert_close(exported.module()(**inputs).logits, expected)
