"""The model: pictures take effect, counts are checked, and nothing but the projection learns."""

import copy

import pytest
import torch
from transformers import AutoConfig, BitsAndBytesConfig, Blip2QFormerConfig, LlavaConfig, TimmWrapperConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration
from jminigpt4.modeling_jminigpt4 import CACHE_NAME

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
        (PROMPTS[:1], 2, "Image features and image tokens do not match, tokens: 4, features: 8"),
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
    torch.testing.assert_close(logits[..., IMAGE], logits[..., :IMAGE].amax(-1) - 200)
    assert (logits.softmax(-1)[..., IMAGE] == 0).all()
    labels = inputs["input_ids"]
    loss = model(**inputs, labels=labels).loss
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[0, :-1, :IMAGE], labels[0, 1:]))
    loss.backward()
    assert (model.lm_head.weight.grad[IMAGE] == 0).all()


def test_image_tokens_in_labels_are_ignored(model, pixel_values):
    """`labels = input_ids.clone()` with the padding set to -100: the idiom of every tutorial."""
    inputs = padded(*PROMPTS)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss = model(**inputs, pixel_values=pixel_values, labels=labels).loss
    ignored = labels.masked_fill(labels == IMAGE, -100)
    assert torch.equal(loss, model(**inputs, pixel_values=pixel_values, labels=ignored).loss)
    logits = model(**inputs, pixel_values=pixel_values).logits[:, :-1, :IMAGE].flatten(0, 1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, ignored[:, 1:].flatten()))
    assert loss < 20
    assert (labels == IMAGE).any()  # the caller's labels stay as they were


def test_a_head_in_the_place_of_forward_learns_no_image_tokens(make_model, pixel_values):
    """TRL's trainers put a fused head there, which reads the labels before the model could."""
    model, seen = make_model(), {}
    model.forward = lambda **inputs: seen.update(inputs)
    input_ids = padded(*PROMPTS)["input_ids"]
    copies = {"labels": input_ids.clone(), "shift_labels": input_ids[:, 1:].clone()}
    copy.deepcopy(model)(input_ids=input_ids, pixel_values=pixel_values, **copies)
    for name, labels in copies.items():
        assert torch.equal(seen[name], labels.masked_fill(labels == IMAGE, -100))
        assert (labels == IMAGE).any()  # the caller's labels stay as they were
    assert torch.equal(seen["input_ids"], input_ids)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_on_logits_in_half_precision(model, make_model, pixel_values, dtype):
    """Distances between models, as clients compute them, see the words and not the mask."""
    inputs = padded(PROMPTS[0])
    logits, others = (
        each(**inputs, pixel_values=pixel_values[:1]).logits.detach().to(dtype) for each in (model, make_model(seed=1))
    )
    logps, other_logps = logits.log_softmax(-1), others.log_softmax(-1)
    divergence = (logps.exp() * (logps - other_logps)).sum(-1)
    expected = torch.nn.functional.kl_div(
        *(each[..., :IMAGE].float().log_softmax(-1) for each in (others, logits)), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(divergence.float(), expected, atol=0.05, rtol=0.05)
    for number in (logits.sum(-1), (logits * logits).sum(-1), torch.cosine_similarity(logits, others, dim=-1)):
        assert number.isfinite().all()
    entropy = -(logps.exp() * logps).sum(-1)
    assert entropy.isfinite().all()
    assert (entropy > 0).all()


def capped(make_model, **overrides):
    """A language model that does something behind its head: Gemma 2 with a cap its random logits reach."""
    return make_model("gemma2", final_logit_softcapping=2.0, **overrides)


def test_family_computes_its_own_logits(make_model, pixel_values):
    model = capped(make_model)
    assert not model.model.family.is_plain
    inputs = {**padded(PROMPTS[0]), "pixel_values": pixel_values[:1]}
    hidden_states = model.model(**inputs).last_hidden_state
    expected = 2 * torch.tanh(model.lm_head(hidden_states) / 2)[..., :IMAGE]
    assert (expected - model.lm_head(hidden_states)[..., :IMAGE]).abs().max() > 0.5
    logits = model(**inputs).logits
    torch.testing.assert_close(logits[..., :IMAGE], expected)
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, logits[:, -2:])
    torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]])
    logits.sum().backward()
    gradients = (model.lm_head.weight.grad, model.model.language_projection.weight.grad)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, logits)


def test_family_has_nothing_to_move_save_or_count(make_model, pixel_values, tmp_path):
    model = capped(make_model, tie_word_embeddings=True)
    inputs = {**padded(PROMPTS[0]), "pixel_values": pixel_values[:1]}
    logits = model(**inputs).logits
    assert not any("family" in name for name, _ in [*model.named_modules(), *model.named_parameters()])
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    model.save_pretrained(tmp_path / "saved")
    torch.save(model, tmp_path / "pickled.pt")
    copies = [
        JMiniGPT4ForConditionalGeneration.from_pretrained(tmp_path / "saved"),
        torch.load(tmp_path / "pickled.pt", weights_only=False),
        copy.deepcopy(model),
    ]
    with torch.no_grad():
        model.lm_head.weight.zero_()  # a copy that looked at this head would be found out
    for each in copies:
        assert torch.equal(each(**inputs).logits, logits)
        assert each.lm_head.weight is each.get_input_embeddings().weight
    half = copies[0].to(torch.bfloat16)(**inputs).logits
    assert half.dtype == torch.bfloat16
    assert (half - logits)[..., :IMAGE].abs().max() < 1


def test_adapter_on_the_head_reaches_the_family(make_model, pixel_values):
    peft = pytest.importorskip("peft")
    model = capped(make_model)
    inputs = {**padded(PROMPTS[0]), "pixel_values": pixel_values[:1]}
    expected = model(**inputs).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    logits = adapted(**inputs).logits
    assert (logits - expected)[..., :IMAGE].abs().max() > 0.01
    assert logits[..., :IMAGE].abs().max() <= 2
    torch.testing.assert_close(adapted.merge_and_unload()(**inputs).logits, logits)


def test_family_that_upcasts_is_not_plain(make_config):
    """Mamba 2 gives float32 logits from bfloat16 weights: which only a probe in half precision can see."""
    text_config = AutoConfig.for_model("mamba2", hidden_size=32, num_heads=4, head_dim=16, n_groups=1, vocab_size=513)
    text_config.num_hidden_layers = 1
    config = make_config()
    config.text_config = text_config
    if CACHE_NAME == "past_key_values":  # before transformers 5.24 its states have yet another name
        with pytest.raises(ValueError, match="Mamba2ForCausalLM keeps no keys and values"):
            JMiniGPT4ForConditionalGeneration(config)
        return
    model = JMiniGPT4ForConditionalGeneration(config).to(torch.bfloat16)
    assert not model.model.family.is_plain
    assert model(**padded(PROMPTS[2])).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("model_type", "trait"),
    [
        ("bert", r"BertLMHeadModel has more than a linear layer behind its base \(cls\.predictions\.bias, "),
        ("bart", "BartForCausalLM is not built on BartModel"),
        ("cpmant", "CpmAntForCausalLM takes no embeddings, which is what pictures are"),
        ("gemma3n_text", "Gemma3nForCausalLM looks every token up in two tables"),
        ("openai-gpt", "OpenAIGPTLMHeadModel keeps no keys and values"),
    ],
)
def test_families_that_cannot_stand_here(make_config, model_type, trait):
    config = make_config()
    config.text_config = AutoConfig.for_model(model_type)
    with torch.device("meta"), pytest.raises(ValueError, match=f"of type '{model_type}', whose {trait}"):
        JMiniGPT4ForConditionalGeneration(config)


def test_image_outputs(model, pixel_values):
    outputs = model(**padded(*PROMPTS), pixel_values=pixel_values)
    assert outputs.image_outputs.pooler_output is outputs.image_hidden_states
    assert torch.equal(outputs.image_outputs.last_hidden_state, model.get_query_features(pixel_values))
    assert model(**padded(PROMPTS[2])).image_outputs is None


def test_float32_parts_are_so_without_a_checkpoint(make_config):
    model = JMiniGPT4ForConditionalGeneration._from_config(make_config(), dtype=torch.float16)
    assert model.dtype == torch.float16
    for name, parameter in model.named_parameters():
        kept = any(part in model._keep_in_fp32_modules_strict for part in name.split("."))
        assert parameter.dtype == (torch.float32 if kept else torch.float16), name


def test_float32_parts_are_parts_with_weights(model):
    for name in model._keep_in_fp32_modules_strict:
        assert any(name in parameter.split(".") for parameter, _ in model.named_parameters()), name


@pytest.mark.parametrize("offloaded", ["model.language_projection", "model.vision_model", "model.language_model"])
def test_parts_offloaded_to_disk(make_model, pixel_values, tmp_path, offloaded):
    model = make_model()
    model.save_pretrained(tmp_path / "saved")
    parts = ("vision_model", "vision_layernorm", "query_tokens", "qformer", "language_model", "language_projection")
    device_map = dict.fromkeys((*(f"model.{part}" for part in parts), "lm_head"), "cpu") | {offloaded: "disk"}
    again = JMiniGPT4ForConditionalGeneration.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert any(parameter.is_meta for parameter in again.parameters())
    inputs = {**padded(*PROMPTS), "pixel_values": pixel_values}
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_offloaded_as_accelerate_chooses(make_model, pixel_values, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "saved")
    again = JMiniGPT4ForConditionalGeneration.from_pretrained(
        tmp_path / "saved", device_map="auto", max_memory={"cpu": 150_000}, offload_folder=tmp_path / "offloaded"
    )
    assert {"cpu", "disk"} == set(map(str, again.hf_device_map.values()))
    inputs = {**padded(*PROMPTS), "pixel_values": pixel_values}
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


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
    half = type(model).from_pretrained(tmp_path, dtype=torch.float16)
    assert half.model.vision_layernorm.weight.dtype == torch.float32


def test_early_layers_and_positions(make_config, tmp_path):
    config = make_config()
    vision = TimmWrapperConfig(architecture="test_efficientnet", do_pooling=False)
    qformer = Blip2QFormerConfig(**{**config.qformer_config.to_dict(), "encoder_hidden_size": 256 + 24 + 32})
    config = JMiniGPT4Config(
        vision_config=vision, qformer_config=qformer, text_config=config.text_config, num_query_tokens=4,
        image_token_id=IMAGE, vision_early_layers=[1, 2], num_vision_positions=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = JMiniGPT4ForConditionalGeneration(config).eval()
    seen, norm = {}, model.model.vision_layernorm
    norm.register_forward_pre_hook(lambda _, given: seen.update(places=given[0]))
    pixel_values = torch.randn(2, 3, 64, 64)
    features = model.get_query_features(pixel_values)
    last, (first, second) = model.model.vision_model.timm_model.forward_intermediates(pixel_values, indices=[1, 2])
    assert last.shape[1:] == (256, 2, 2) and first.shape[1:] == (24, 16, 16) and second.shape[1:] == (32, 8, 8)
    # The place in the second row and the first column has the means of what lies there.
    expected = torch.cat([last[:, :, 1, 0], first[:, :, 8:, :8].mean((2, 3)), second[:, :, 4:, :4].mean((2, 3))], 1)
    torch.testing.assert_close(seen["places"][:, 2], expected)
    torch.testing.assert_close(norm(seen["places"]) - norm.position_embeddings, torch.nn.functional.layer_norm(
        seen["places"], (312,), norm.weight, norm.bias, 1e-5
    ))  # fmt: skip
    assert norm.position_embeddings.std() > 0  # drawn, not left as memory had it
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float16)
    assert loaded.model.vision_layernorm.position_embeddings.dtype == torch.float32
    assert torch.equal(type(model).from_pretrained(tmp_path).get_query_features(pixel_values), features)
    with pytest.raises(ValueError, match="gives 9 places, and the Q-Former has positions for 4: set the image"):
        model.get_query_features(torch.zeros(1, 3, 96, 96))


def test_early_layers_of_an_encoder_of_tokens_are_refused(make_config):
    config = make_config()
    vision = TimmWrapperConfig(architecture="test_vit", do_pooling=False)
    qformer = Blip2QFormerConfig(**{**config.qformer_config.to_dict(), "encoder_hidden_size": 64})
    config = JMiniGPT4Config(
        vision_config=vision, qformer_config=qformer, text_config=config.text_config, num_query_tokens=4,
        image_token_id=IMAGE, vision_early_layers=[1],
    )  # fmt: skip
    model = JMiniGPT4ForConditionalGeneration(config).eval()
    with pytest.raises(ValueError, match=r"vision_early_layers is \[1\], but test_vit gives tokens"):
        model.get_query_features(torch.zeros(1, 3, 160, 160))


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


@pytest.mark.filterwarnings("error::FutureWarning")
def test_gradient_checkpointing_recomputes_and_agrees(make_model, pixel_values):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = make_model()
        model.freeze()
        if checkpointing:
            # Named so since transformers 5.24.
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable()
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


def test_a_projection_of_two_layers(make_config, pixel_values, tmp_path):
    """LLaVA's projector: its modules, its values, its initialisation; float32 in a half-precision model."""
    config = make_config("llama")
    config.projector_hidden_act = "gelu"
    torch.manual_seed(0)
    model = JMiniGPT4ForConditionalGeneration(config).eval()
    projector = model.model.language_projection
    names = {f"linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}
    assert {name for name, _ in projector.named_parameters()} == names
    assert 0.8 < float(projector.linear_2.weight.detach().std()) / config.initializer_range < 1.2
    assert not projector.linear_1.bias.any()

    vision = {"model_type": "clip_vision_model", "hidden_size": projector.in_features, "num_attention_heads": 4}
    text = {"model_type": "llama", "hidden_size": projector.out_features, "num_attention_heads": 4}
    llava = LlavaMultiModalProjector(LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=-2))
    llava.load_state_dict(projector.state_dict())
    features = model.get_query_features(pixel_values)
    assert torch.equal(model.get_image_features(query_features=features).pooler_output, llava(features))

    model.bfloat16().save_pretrained(tmp_path)
    loaded = JMiniGPT4ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.language_projection.linear_2.weight.dtype == torch.float32
    loaded.freeze()
    learning = {name for name, each in loaded.named_parameters() if each.requires_grad}
    assert learning == {f"model.language_projection.{name}" for name in names}
