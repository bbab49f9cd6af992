"""Every causal family of transformers, tiny and random: with a picture equal to its own `ForCausalLM`, or refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.packing import EncodedGroup, EncodedRow, Packer
from jminigpt4.train.packing_proof import exact_packer

IMAGE = 98
PICTURE = [IMAGE] * 4
PROMPTS = ([3, 40, *PICTURE, 50, 51, 52], [3, 60, *PICTURE, 61, *PICTURE, 62], [3, 70, 71, 72])
# Whose tiny model is not one, or takes half a minute: halves of other models, and encoders with a picture part inside.
LEFT_OUT = {
    "blt",
    "git",
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "cohere_compass_text",
    "dots3_note",
    "got_ocr2",
    "kimi_linear",
    "moss_transcribe_diarize",
    "musicgen",
    "musicgen_melody",
    "phi4_multimodal",
    "qwen4_exp_text",
    "reformer",
    "trocr",
    "xlstm",
    "xmod",
    "zamba2",
}
FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - LEFT_OUT)
# A recurrent layer whose convolution has a bias is moved by padding, in its own family as here.
MOVED_BY_PADDING = {"recurrent_gemma"}
# Whose own step with a cache is that far from its own pass over the whole.
OWN_CACHE_TOLERANCE = {"nemotron_h": 1e-3}
# Attention over a mask and positions, windows and experts or none: their rows stay packed.
PACKED = {
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
}
# Whose gradient is that far from itself when the same row is computed in another way: a recurrence 60 times over.
OWN_GRADIENT_TOLERANCE = {"hrm_text": 1e-3}
# Fails by itself, and not silently: its layers look tokens up by their ids, and a picture has none.
NEEDS_IDS = {"deepseek_v4": "AttributeError"}


def assert_equal(logits: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5):
    """Equal relative to the largest logit; the image token's is masked here and not in its family."""
    logits, expected = (torch.cat([each[..., :IMAGE], each[..., IMAGE + 1 :]], -1) for each in (logits, expected))
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


def tiny(text_config) -> JMiniGPT4ForConditionalGeneration:
    """The language model behind one layer of encoder and Q-Former, no weight of it zero or one."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = JMiniGPT4Config(
        vision_config=Blip2VisionConfig(**sizes, image_size=28, patch_size=14, initializer_range=0.3),
        qformer_config=Blip2QFormerConfig(**sizes, vocab_size=8, initializer_range=0.3, max_position_embeddings=16),
        text_config=text_config,
        num_query_tokens=4,
        image_token_id=IMAGE,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = JMiniGPT4ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            # What begins as zeros or ones would hide what is done with it.
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def own_family(model: JMiniGPT4ForConditionalGeneration) -> torch.nn.Module:
    """The family's own causal model with the same weights."""
    family = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    language_model = model.model.language_model
    base = next(module for module in family.modules() if type(module) is type(language_model))
    base.load_state_dict(language_model.state_dict())
    family.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    return family


def with_pictures(model: JMiniGPT4ForConditionalGeneration, ids: list[int], pixel_values: torch.Tensor | None):
    """Embeddings of a prompt, `(1, len(ids), 32)`, pictures in their places."""
    embeddings = model.get_input_embeddings()(torch.tensor([ids]))
    if pixel_values is not None:
        pictures = model.get_image_features(pixel_values).pooler_output.flatten(0, 1)
        embeddings[0, torch.tensor(ids) == IMAGE] = pictures.to(embeddings.dtype)
    return embeddings


@torch.no_grad()
def compare_with_family(model: JMiniGPT4ForConditionalGeneration, name: str):
    """Text and picture prompts in one pass, then a padded batch generated with a cache: all as the family computes
    each row alone and at once."""
    family = own_family(model)
    ids = torch.tensor([[3, 10, 11, 12, 13, 14, 15, 16]])
    assert_equal(model(input_ids=ids).logits, family(input_ids=ids).logits)
    pixel_values = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(7))
    pictures = (pixel_values[:1], pixel_values[1:], None)
    logits = model(input_ids=torch.tensor([PROMPTS[0]]), pixel_values=pictures[0]).logits
    assert_equal(logits, family(inputs_embeds=with_pictures(model, PROMPTS[0], pictures[0])).logits)

    width = max(map(len, PROMPTS))
    output = model.generate(
        input_ids=torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]),
        pixel_values=pixel_values,
        max_new_tokens=4,
        do_sample=False,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    steps = torch.stack(output.logits, 1)
    for row, (prompt, own) in enumerate(zip(PROMPTS, pictures, strict=True)):
        if len(prompt) < width and name in MOVED_BY_PADDING:
            continue
        whole = [*prompt, *output.sequences[row, width:-1].tolist()]
        expected = family(inputs_embeds=with_pictures(model, whole, own)).logits[:, len(prompt) - 1 :]
        assert_equal(steps[row : row + 1], expected, OWN_CACHE_TOLERANCE.get(name, 1e-4))


def compare_training(model: JMiniGPT4ForConditionalGeneration, name: str):
    """Gradient of the projection as a run computes it, in packs or row by row, and by the model's own loss."""
    model.freeze()
    random = torch.Generator().manual_seed(3)
    groups, features = [], torch.randn(2, 4, 32, generator=random)
    for picture in range(2):
        prompt = [3, 40, *PICTURE, *torch.randint(41, 90, (3,), generator=random).tolist()]
        answers = [torch.randint(41, 90, (length,), generator=random).tolist() for length in (4, 20, 7)]
        rows = (EncodedRow(prompt + each, [-100] * len(prompt) + each, len(each) + picture) for each in answers)
        groups.append(EncodedGroup(tuple(rows), (picture,)))
    loss, learnt = PackLoss(model), list(model.model.language_projection.parameters())
    packer = exact_packer(loss, Packer(IMAGE, 4, prefix=(3, 40)), groups)
    assert loss.packed or name not in PACKED
    total = torch.cat([loss(pack, features) for pack in packer.pack(groups)]).sum()
    own = torch.zeros(())
    for group in groups:
        for row in group.rows:
            labels, pictures = torch.tensor([row.labels]), features[list(group.pictures)]
            output = model(torch.tensor([row.input_ids]), query_features=pictures, labels=labels, use_cache=False)
            own = own + output.loss * (labels != -100).sum()
    found, expected = (torch.cat([each.flatten() for each in torch.autograd.grad(x, learnt)]) for x in (total, own))
    assert (found - expected).norm() <= OWN_GRADIENT_TOLERANCE.get(name, 1e-4) * expected.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_to_its_own_family_or_refused(make_family_config, documented, record_property, name):
    try:
        model = tiny(make_family_config(name))
    except ValueError as refusal:
        reason = str(refusal)
        assert f"The language model is of type '{name}', wh" in reason
        found = "refused: " + reason.partition(" wh")[2].partition(": ")[0].partition(" (")[0].partition(" ")[2]
    else:
        found = "equal" if model.model.family.is_plain else "equal, by its own head"
        if name in NEEDS_IDS:
            with pytest.raises(Exception) as error:
                compare_with_family(model, name)
            assert error.type.__name__ == NEEDS_IDS[name]
            found = "refused: fails without ids of tokens"
        else:
            compare_with_family(model, name)
            compare_training(model, name)
    record_property("family", (name, found))
    assert documented.get(name, found) == found


@pytest.mark.parametrize("name, with_picture", [("recurrent_gemma", True), ("nemotron_h", False)])
def test_what_rounds_on_its_own_does_so_in_its_own_generate(make_family_config, name, with_picture):
    """A padded batch with a cache, to the bit; Nemotron-H generates from no embeddings, so its prompts are text."""
    model = tiny(make_family_config(name))
    family = own_family(model)
    family.generation_config.eos_token_id, family.generation_config.pad_token_id = None, 0
    prompts = PROMPTS if with_picture else ([3, 40, 41, 42, 43, 44, 45, 46], [3, 60, 61, 62])
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    given, own = {"input_ids": ids}, {"input_ids": ids}
    if with_picture:
        given["pixel_values"] = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(7))
        features = model.get_image_features(given["pixel_values"]).pooler_output.flatten(0, 1)
        embeddings = model.get_input_embeddings()(ids)
        own = {"inputs_embeds": embeddings.masked_scatter((ids == IMAGE)[..., None], features)}
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "use_cache": True}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    steps = zip(model.generate(**given, **settings).logits, family.generate(**own, **settings).logits, strict=True)
    for logits, expected in steps:
        assert torch.equal(logits[:, :IMAGE], expected[:, :IMAGE])
