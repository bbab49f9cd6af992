"""Every stage against the numbers that the original code computed on its own checkpoints."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jminigpt4.convert import assemble

IMAGE_TOKEN, QUERIES, BOS = 512, 8, 2
PICTURES = ["a_97x131_rgb", "b_64x64_gray", "c_113x40_rgba", "d_30x30_palette"]
PROMPTS = ["article_q", "article_cap", "release4b", "two_images", "text_only"]
TOLERANCE = 1e-5
# Logits and gradients reach 10, where float32 is ten times coarser; the reference is float32 itself.
TOLERANCE_AT_10 = 2e-5


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def prompt_inputs(expected, name: str, bos: bool) -> dict:
    """Model inputs of a reference prompt, from the segments that the original tokenized."""
    meta = expected["meta"]
    ids = [BOS] if bos else []
    for index, segment in enumerate(meta["segment_ids"][name]):
        ids += [IMAGE_TOKEN] * QUERIES * (index > 0) + segment
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    rows = [PICTURES.index(picture) for picture in meta["prompt_images"][name]]
    return inputs | ({"pixel_values": expected["forward"]["pixel_values"][rows]} if rows else {})


def embeddings(model, inputs: dict) -> torch.Tensor:
    """What the language model is given."""
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return seen["inputs_embeds"]


@torch.no_grad()
def test_image_encoder_block_by_block(converted, expected, pixel_values):
    vision = converted.model.model.vision_model
    patches = vision.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    assert difference(patches, expected["forward"]["vit.patch_embed"]) < TOLERANCE
    outputs = vision(pixel_values, output_hidden_states=True)
    assert len(outputs.hidden_states) == 4
    for index, hidden in enumerate(outputs.hidden_states[1:]):
        assert difference(hidden, expected["forward"][f"vit.block{index}"]) < TOLERANCE
    assert difference(outputs.last_hidden_state, expected["forward"]["ln_vision.out"]) < TOLERANCE


@torch.no_grad()
def test_qformer_layer_by_layer(converted, expected, pixel_values):
    parts = converted.model.model
    outputs = parts.qformer(
        query_embeds=parts.query_tokens.expand(4, -1, -1),
        encoder_hidden_states=parts.vision_model(pixel_values).last_hidden_state,
        output_hidden_states=True,
    )
    assert len(outputs.hidden_states) == 5
    for index, hidden in enumerate(outputs.hidden_states):
        assert difference(hidden, expected["forward"][f"qformer.hidden{index}"]) < TOLERANCE
    assert difference(converted.model.get_query_features(pixel_values), expected["forward"]["qformer.out"]) < TOLERANCE


@torch.no_grad()
def test_encode_img(converted, expected, pixel_values):
    features = converted.model.get_image_features(pixel_values).pooler_output
    assert difference(features, expected["forward"]["encode_img.out"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", PROMPTS)
def test_context(converted, expected, name):
    context = embeddings(converted.model, prompt_inputs(expected, name, bos=False))
    assert difference(context, expected["forward"][f"context.{name}"]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("bos", [False, True], ids=["nobos", "bos"])
@pytest.mark.parametrize("name", PROMPTS)
def test_logits(converted, expected, name, bos):
    logits = converted.model(**prompt_inputs(expected, name, bos)).logits
    reference = expected["forward"][f"logits.{name}.{'bos' if bos else 'nobos'}"]
    assert difference(logits[..., :IMAGE_TOKEN], reference) < TOLERANCE_AT_10
    assert torch.equal(logits[..., IMAGE_TOKEN], logits[..., :IMAGE_TOKEN].amax(-1) - 200)  # never the answer


@pytest.mark.parametrize("name", PROMPTS)
def test_the_processor_makes_the_same_prompt(converted, expected, picture, name):
    meta = expected["meta"]
    pictures = [picture(each) for each in meta["prompt_images"][name]]
    inputs = converted.processor(images=pictures or None, text=meta["prompts"][name], return_tensors="pt")
    assert inputs["input_ids"].tolist() == prompt_inputs(expected, name, bos=False)["input_ids"].tolist()


@pytest.mark.parametrize("bos", [False, True], ids=["nobos", "bos"])
@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_answer(converted, expected, name, bos):
    reference = expected["meta"]["generate"][f"{name}.{'bos' if bos else 'nobos'}"]
    inputs = prompt_inputs(expected, name, bos)
    sequence = converted.model.generate(**inputs, max_new_tokens=20)
    assert sequence[0, inputs["input_ids"].shape[1] :].tolist() == reference["new_ids"]


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("beam3", {"num_beams": 3, "max_new_tokens": 12}),
        ("rep1.5", {"repetition_penalty": 1.5, "max_new_tokens": 20}),
        ("minlen8", {"min_length": 8, "max_new_tokens": 20}),
    ],
)
def test_generation_variants(converted, expected, variant, options):
    """On embeddings, as the originals generate: their repetition penalty sees the answer and a BOS, not the prompt."""
    reference = expected["meta"]["generate"][f"article_q.bos.{variant}"]
    inputs = prompt_inputs(expected, "article_q", bos=True)
    with torch.no_grad():
        context = embeddings(converted.model, inputs)
    outputs = converted.model.generate(
        inputs_embeds=context,
        attention_mask=inputs["attention_mask"],
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    assert outputs.sequences[0].tolist() == reference["raw_sequences"][1:]
    if "score" in reference:  # the mean over the answer; the originals' also counts the BOS they return
        score = outputs.sequences_scores.item() * outputs.sequences.shape[1] / len(reference["raw_sequences"])
        assert score == pytest.approx(reference["score"], abs=1e-5)


def training_batch(expected, name: str) -> dict:
    """The article's training batch: BOS, prompt, picture, prompt, caption; padded on the right."""
    meta, tensors = expected["meta"][f"train_{name}"], expected["train"]
    rows = [
        [BOS, *meta["prompt_start_ids"], *[IMAGE_TOKEN] * QUERIES, *meta["prompt_after_ids"], *target]
        for target in meta["target_ids"]
    ]
    pictures = [PICTURES.index(picture) for picture in meta["images"]]
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": tensors[f"{name}.attention_mask"],
        "labels": tensors[f"{name}.labels"],
        "pixel_values": expected["forward"]["pixel_values"][pictures],
    }


@pytest.mark.parametrize("name", ["max8", "max32"])
def test_training_loss_and_gradient(converted, expected, name):
    model, tensors = converted.model, expected["train"]
    batch = training_batch(expected, name)
    with torch.no_grad():
        context = embeddings(model, {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")})
    assert difference(context, tensors[f"{name}.inputs_embeds"]) < TOLERANCE
    model.zero_grad()
    outputs = model(**batch)
    attended = batch["attention_mask"].bool()
    ours = outputs.logits.detach()[attended][:, :IMAGE_TOKEN]
    assert difference(ours, tensors[f"{name}.logits"][attended]) < TOLERANCE_AT_10
    assert outputs.loss.item() == pytest.approx(tensors[f"{name}.loss"].item(), abs=TOLERANCE)
    outputs.loss.backward()
    for kind in ("weight", "bias"):
        gradient = getattr(model.model.language_projection, kind).grad
        assert difference(gradient, tensors[f"{name}.grad.llama_proj.{kind}"]) < TOLERANCE_AT_10
    model.zero_grad()


def test_eight_steps_of_training(converted, expected):
    recipe, tensors = expected["meta"]["train_8steps"], expected["train"]
    model = converted.model
    layer = model.model.language_projection
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    groups = [
        {"params": [parameter], "weight_decay": decay}
        for parameter, decay in zip((layer.weight, layer.bias), recipe["weight_decay"], strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe["init_lr"], betas=tuple(recipe["betas"]))
    batch = training_batch(expected, "max32")
    try:
        for rate, loss in zip(recipe["lrs"], recipe["losses"], strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            outputs = model(**batch)
            assert outputs.loss.item() == pytest.approx(loss, abs=TOLERANCE_AT_10)
            outputs.loss.backward()
            optimizer.step()
        for kind in ("weight", "bias"):
            assert difference(getattr(layer, kind).detach(), tensors[f"steps8.llama_proj.{kind}"]) < TOLERANCE_AT_10
    finally:
        layer.load_state_dict(before)
        model.zero_grad()


@torch.no_grad()
def test_interpolated_positions(converted, expected):
    vision = converted.model.model.vision_model
    pixels = expected["forward"]["vit84.pixel_values"]
    outputs = vision(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    assert difference(outputs.hidden_states[-1], expected["forward"]["vit84.out"]) < TOLERANCE


def test_preprocessing(converted, expected, reference):
    pictures = [Image.open(reference / "images" / f"{name}.png") for name in PICTURES]
    ours = converted.processor.image_processor(pictures, plain_rgb=True, return_tensors="pt")["pixel_values"]
    assert difference(ours, expected["forward"]["pixel_values"]) < 1e-6
    large = converted.processor.image_processor(
        pictures[:1], size={"height": 224, "width": 224}, plain_rgb=True, return_tensors="pt"
    )["pixel_values"][0]
    rows = large[:, [0, 100, 223]]
    assert difference(rows, expected["forward"]["preproc224.a.rows_0_100_223"]) < 1e-6


@pytest.mark.parametrize("source", ["stage 1 layout", "MiniGPT-4's naming", "pickled language model", "safetensors"])
def test_every_layout_of_the_same_weights_gives_the_same_file(originals, converted, reference, tmp_path, source):
    sources = dict(originals)
    if source == "stage 1 layout":
        sources["qformer"] = reference / "checkpoints" / "blip2_pretrained_stage1.pth"
    elif source == "MiniGPT-4's naming":
        sources["projection"] = reference / "checkpoints" / "pretrained_minigpt4.pth"
        sources["prompt_format"] = "article-3.6b"
    else:
        unwanted = "model.safetensors" if source.startswith("pickled") else "pytorch_model.bin"
        sources["language"] = tmp_path / "llm"
        shutil.copytree(reference / "llm", sources["language"], ignore=shutil.ignore_patterns(unwanted))
    assemble(**sources, out=tmp_path / "out", prove_equal=False)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", converted.folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
