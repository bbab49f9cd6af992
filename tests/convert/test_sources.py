"""Every kind of source for the picture side: recognised, read to the last tensor, or refused with a reason."""

import json
import pickle
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    GPTNeoXConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    SiglipConfig,
    SiglipVisionConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
)

from jminigpt4.convert import assemble, swap, verify_folder
from jminigpt4.convert.account import Account

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "initializer_range": 0.3,
}
QFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "encoder_hidden_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
}
TEXT = GPTNeoXConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=0
)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Norms and biases too: initialised to ones and zeros they would hide a mix-up."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def blip2(folder, kind=Blip2ForConditionalGeneration, vision_eps=1e-6, **save_options):
    qformer = QFORMER | {"use_qformer_text_input": kind is Blip2ForImageTextRetrieval}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION, layer_norm_eps=vision_eps).to_dict(),
        qformer_config=Blip2QFormerConfig(**qformer).to_dict(),
        text_config=TEXT.to_dict(),
        num_query_tokens=4,
    )
    model = randomise(kind(config))
    model.save_pretrained(folder, **save_options)
    return model


def query_features(model, pixel_values):
    with torch.no_grad():
        return model.get_query_features(pixel_values)


@pytest.mark.parametrize("kind", [Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval])
def test_blip2_folder(kind, reference, tmp_path):
    """Two things of a BLIP-2 folder are not taken at its word: both epsilons of the image encoder."""
    theirs = blip2(tmp_path / "blip2", kind, vision_eps=1e-5)
    proof = assemble(vision=tmp_path / "blip2", language=reference / "llm", out=tmp_path / "out", progress=False)
    assert {"image encoder", "layer norm", "Q-Former"} <= {row["stage"] for row in proof.rows()}
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert ours.config.vision_config.layer_norm_eps == 1e-6
    assert ours.model.vision_model.post_layernorm.eps == 1e-5
    assert ours.config.qformer_config.layer_norm_eps == 1e-12
    for layer in theirs.vision_model.encoder.layers:
        layer.layer_norm1.eps = layer.layer_norm2.eps = 1e-6
    pixel_values = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        image_embeds = theirs.vision_model(pixel_values).last_hidden_state
        queries = theirs.query_tokens.expand(2, -1, -1)
        expected = theirs.qformer(query_embeds=queries, encoder_hidden_states=image_embeds).last_hidden_state
    torch.testing.assert_close(query_features(ours, pixel_values), expected, rtol=0, atol=1e-5)
    notes = json.loads((tmp_path / "out" / "conversion.json").read_text(encoding="utf-8"))["notes"]
    assert any("epsilon of 1e-05" in note for note in notes)
    texts = [
        path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"
    ]
    assert not any(str(tmp_path) in text for text in texts)  # nothing of this machine's folders is published


def test_sharded_blip2_needs_only_the_shards_in_use(reference, tmp_path):
    blip2(tmp_path / "blip2", max_shard_size="4KB")
    weight_map = json.loads((tmp_path / "blip2" / "model.safetensors.index.json").read_text())["weight_map"]
    used = {file for key, file in weight_map.items() if not key.startswith("language_")}
    unused = set(weight_map.values()) - used
    assert used and unused
    for file in unused:
        (tmp_path / "blip2" / file).unlink()
    assemble(vision=tmp_path / "blip2", language=reference / "llm", out=tmp_path / "out", progress=False)
    (tmp_path / "blip2" / next(iter(used))).unlink()
    with pytest.raises(ValueError, match="lacks model-.*which its index names"):
        assemble(vision=tmp_path / "blip2", language=reference / "llm", out=tmp_path / "out2", progress=False)
    assert not (tmp_path / "out2").exists()


@pytest.fixture(scope="module")
def instructblip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instructblip")
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**VISION).to_dict(),
        qformer_config=InstructBlipQFormerConfig(**QFORMER).to_dict(),
        text_config=TEXT.to_dict(),
        num_query_tokens=4,
    )
    randomise(InstructBlipForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def test_the_qformer_of_instructblip_is_refused(instructblip, reference, tmp_path):
    with pytest.raises(ValueError, match="reads the question along with the picture"):
        assemble(vision=instructblip, language=reference / "llm", out=tmp_path / "out")


def test_the_image_encoder_of_instructblip_is_taken(instructblip, reference, tmp_path):
    blip2(tmp_path / "blip2")
    proof = assemble(
        vision=instructblip,
        qformer=tmp_path / "blip2",
        language=reference / "llm",
        out=tmp_path / "out",
        progress=False,
    )
    assert proof.passed
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(instructblip / "model.safetensors")
    name = "vision_model.encoder.layers.1.self_attn.qkv.weight"
    assert torch.equal(ours[f"model.{name}"], theirs[name])


def test_a_question_reading_lavis_file_is_refused(originals, reference, tmp_path):
    state = torch.load(reference / "checkpoints" / "blip2_pretrained_stage1.pth", weights_only=True)["model"]
    heads = ("itm_head", "vision_proj", "text_proj")
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    torch.save({"model": state | {"llm_proj.weight": torch.zeros(4, 32)}}, tmp_path / "instruct.pth")
    with pytest.raises(ValueError, match="reads the question"):
        assemble(**originals | {"qformer": tmp_path / "instruct.pth"}, out=tmp_path / "out")


def timm_folder(folder, architecture, **arguments):
    config = TimmWrapperConfig(architecture=architecture, model_args=arguments, do_pooling=False)
    randomise(TimmWrapperModel(config)).save_pretrained(folder)


def qformer_folder(folder, encoder_hidden_size, prefix="qformer.", layernorm=True, positions=0, **settings):
    config = Blip2QFormerConfig(**QFORMER | {"encoder_hidden_size": encoder_hidden_size})
    qformer = randomise(Blip2QFormerModel(config))
    tensors = {f"{prefix}{name}": tensor for name, tensor in qformer.state_dict().items()}
    tensors["query_tokens"] = torch.randn(1, 4, 24)
    if layernorm:
        tensors |= {"vision_layernorm.weight": torch.randn(encoder_hidden_size)}
        tensors |= {"vision_layernorm.bias": torch.randn(encoder_hidden_size)}
    if positions:
        tensors["vision_layernorm.position_embeddings"] = torch.randn(1, positions, encoder_hidden_size)
    config.save_pretrained(folder)
    if settings:
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(stated | settings))
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_early_layers_and_positions_of_a_convolutional_encoder(reference, tmp_path):
    """They are a part of the Q-Former: a folder of one brings them, and swapping the language model keeps them."""
    timm_folder(tmp_path / "timm", "test_efficientnet")
    early = sum(timm.create_model("test_efficientnet").feature_info[layer]["num_chs"] for layer in (1, 2))
    places = (dict(timm.get_pretrained_cfg("test_efficientnet").to_dict())["input_size"][1] // 32) ** 2
    tensors = qformer_folder(tmp_path / "qformer", 256 + early, positions=places, vision_early_layers=[1, 2])
    parts = {"vision": tmp_path / "timm", "qformer": tmp_path / "qformer", "language": reference / "llm"}
    proof = assemble(**parts, out=tmp_path / "out", progress=False)
    assert {"image encoder", "early layers", "layer norm", "Q-Former"} <= {row["stage"] for row in proof.rows()}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_early_layers"] == [1, 2] and config["num_vision_positions"] == places
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    norm = model.model.vision_layernorm
    torch.testing.assert_close(norm.position_embeddings.data, tensors["vision_layernorm.position_embeddings"])
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    pixels = processor(images=picture, text="<ImageHere>", return_tensors="pt")["pixel_values"]
    seen = query_features(model, pixels)
    assert not torch.equal(seen, query_features(model, pixels.flip(-1)))
    swap(tmp_path / "out", language=reference / "llm", out=tmp_path / "swapped", progress=False)
    swapped = AutoModelForImageTextToText.from_pretrained(tmp_path / "swapped")
    assert torch.equal(query_features(swapped, pixels), seen)
    with pytest.raises(ValueError, match="set the image processor's `size`"):
        query_features(model, torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="channels, but the Q-Former reads"):
        qformer_folder(tmp_path / "narrow", 256, vision_early_layers=[1, 2])
        assemble(**parts | {"qformer": tmp_path / "narrow"}, out=tmp_path / "none", progress=False)


@pytest.mark.parametrize(
    ("architecture", "arguments", "width"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}, 24),
        ("test_efficientnet", {}, 256),
    ],
    ids=["ViT", "CNN"],
)
@pytest.mark.parametrize("prefix", ["qformer.", ""], ids=["prefixed", "bare"])
def test_timm_and_a_qformer_folder(architecture, arguments, width, prefix, reference, tmp_path):
    timm_folder(tmp_path / "timm", architecture, **arguments)
    tensors = qformer_folder(tmp_path / "qformer", width, prefix, layernorm=not prefix)
    proof = assemble(
        vision=tmp_path / "timm",
        qformer=tmp_path / "qformer",
        language=reference / "llm",
        out=tmp_path / "out",
        progress=False,
    )
    assert {"image encoder", "layer norm", "Q-Former"} <= {row["stage"] for row in proof.rows()}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(model.model.query_tokens.data, tensors["query_tokens"])
    expected = tensors.get("vision_layernorm.weight", torch.ones(width))
    torch.testing.assert_close(model.model.vision_layernorm.weight.data, expected)
    inputs = processor(images=Image.new("RGB", (50, 40), "red"), text="<ImageHere>", return_tensors="pt")
    assert query_features(model, inputs["pixel_values"]).shape == (1, 4, 24)


def test_timm_pictures_are_normalised_as_timm_says(reference, tmp_path):
    timm_folder(tmp_path / "timm", "vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2)
    qformer_folder(tmp_path / "qformer", 24)
    sources = {"vision": tmp_path / "timm", "qformer": tmp_path / "qformer", "language": reference / "llm"}
    assemble(**sources, out=tmp_path / "out", prove_equal=False, progress=False)
    image_processor = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    assert image_processor.size["height"] == image_processor.size["width"] == 32
    assert list(image_processor.image_mean) == [0.5, 0.5, 0.5]


def test_a_qformer_for_another_encoder_is_refused(reference, tmp_path):
    timm_folder(tmp_path / "timm", "vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2)
    qformer_folder(tmp_path / "qformer", 36)
    with pytest.raises(ValueError, match="features of 24 channels, but the Q-Former reads 36"):
        assemble(
            vision=tmp_path / "timm", qformer=tmp_path / "qformer", language=reference / "llm", out=tmp_path / "out"
        )
    blip2(tmp_path / "blip2")
    with pytest.raises(ValueError, match="image encoder is 32 wide, but the Q-Former .* 36"):
        assemble(
            vision=tmp_path / "blip2", qformer=tmp_path / "qformer", language=reference / "llm", out=tmp_path / "out"
        )


def test_timms_eva_giant_is_taken_as_blip2_takes_it(originals, reference, tmp_path):
    """The same weights as `eva_vit_g.pth`, in a folder as timm publishes it: the last block and norm are left out."""
    state = torch.load(originals["vision"], weights_only=True)
    (tmp_path / "eva").mkdir()
    save_file(state, tmp_path / "eva" / "model.safetensors")
    config = {"architecture": "eva_giant_patch14_clip_224", "num_classes": 16, "num_features": 64}
    (tmp_path / "eva" / "config.json").write_text(json.dumps(config))
    assemble(**originals | {"vision": tmp_path / "eva"}, out=tmp_path / "out", prove_equal=False)
    assemble(**originals, out=tmp_path / "out2", prove_equal=False)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "out2"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_timms_own_eva(originals, tmp_path):
    """timm's class and timm's own way of publishing it; our features are those of its last block but one."""
    sizes = {"img_size": 56, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 4.3637}
    theirs = randomise(timm.create_model("eva_giant_patch14_224", pretrained=False, num_classes=7, **sizes))
    save_for_hf(theirs, tmp_path / "eva", safe_serialization=True)
    proof = assemble(**originals | {"vision": tmp_path / "eva"}, out=tmp_path / "out")
    assert "image encoder" in {row["stage"] for row in proof.rows()}
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    pixel_values = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        hidden = ours.model.vision_model(pixel_values, output_hidden_states=True).hidden_states[-1]
        (expected,) = theirs.forward_intermediates(
            pixel_values, indices=[2], return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
    torch.testing.assert_close(hidden, torch.cat([expected[1], expected[0]], 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_timm_model_as_timm_publishes_it(architecture, reference, tmp_path):
    """Classifiers, one or two of them, stay behind; everything else is used."""
    sizes = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
    theirs = randomise(timm.create_model(architecture, pretrained=False, num_classes=5, **sizes))
    save_for_hf(theirs, tmp_path / "timm", model_args=sizes, safe_serialization=True)
    qformer_folder(tmp_path / "qformer", 24)
    sources = {"vision": tmp_path / "timm", "qformer": tmp_path / "qformer", "language": reference / "llm"}
    assert assemble(**sources, out=tmp_path / "out", progress=False).passed
    saved = load_file(tmp_path / "out" / "model.safetensors")
    names = {name.split("timm_model.")[1] for name in saved if "timm_model." in name}
    assert names == {name for name in theirs.state_dict() if not name.startswith(("head.", "head_dist."))}


def test_a_norm_in_the_head_of_a_timm_model(reference, tmp_path):
    """ConvNeXt's last norm is called `head.norm`; a folder without `pretrained_cfg` does not say where heads are."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}
    timm_folder(tmp_path / "timm", "convnext_atto", **sizes)
    state = load_file(tmp_path / "timm" / "model.safetensors")
    name = "timm_model.head.norm.weight"
    assert name in state
    state |= {"timm_model.head.fc.weight": torch.zeros(5, 24), "timm_model.head.fc.bias": torch.zeros(5)}
    save_file(state, tmp_path / "timm" / "model.safetensors", metadata={"format": "pt"})
    qformer_folder(tmp_path / "qformer", 24)
    sources = {"vision": tmp_path / "timm", "qformer": tmp_path / "qformer", "language": reference / "llm"}
    assert assemble(**sources, out=tmp_path / "out", progress=False).passed
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(saved[f"model.vision_model.{name}"], state[name])


def test_the_image_encoder_of_blip2_alone(reference, tmp_path):
    """A `Blip2VisionModel` folder is the encoder of the whole folder; the norm behind it is the Q-Former's."""
    whole = blip2(tmp_path / "blip2")
    with torch.no_grad():
        whole.vision_model.post_layernorm.weight += 1
    whole.vision_model.save_pretrained(tmp_path / "vision")
    sources = {"qformer": tmp_path / "blip2", "language": reference / "llm", "progress": False}
    assert assemble(**sources, vision=tmp_path / "vision", out=tmp_path / "out").passed
    assemble(**sources, vision=tmp_path / "blip2", out=tmp_path / "out2", prove_equal=False)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "out2"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    notes = [json.loads((tmp_path / name / "conversion.json").read_text())["notes"] for name in ("out", "out2")]
    assert [any("another layer norm behind" in note for note in each) for each in notes] == [True, False]


@pytest.mark.parametrize("sharded", [False, True])
def test_files_in_half_precision_alone(originals, reference, sharded, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(reference / "llm", dtype=torch.float16)
    model.save_pretrained(tmp_path / "llm", variant="fp16", **({"max_shard_size": "100KB"} if sharded else {}))
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copyfile(reference / "llm" / name, tmp_path / "llm" / name)
    assert not (tmp_path / "llm" / "model.safetensors").exists()
    proof = assemble(**originals | {"language": tmp_path / "llm"}, out=tmp_path / "out")
    assert proof.passed and json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


def test_lavis_file_without_image_encoder(originals, tmp_path):
    with pytest.raises(ValueError, match="holds no image encoder.*eva_vit_g.pth"):
        assemble(**originals | {"vision": originals["qformer"]}, out=tmp_path / "out")


def test_heads_are_asked_for_and_not_guessed(originals, tmp_path):
    with pytest.raises(ValueError, match="64 wide.*vision_heads"):
        assemble(**originals | {"vision_heads": None}, out=tmp_path / "out")
    with pytest.raises(ValueError, match="32 wide.*qformer_heads"):
        assemble(**originals | {"qformer_heads": None}, out=tmp_path / "out")
    with pytest.raises(ValueError, match="do not divide into 5"):
        assemble(**originals | {"vision_heads": 5}, out=tmp_path / "out")


@pytest.mark.parametrize("part", ["vision", "qformer", "projection"])
def test_a_tensor_nobody_knows_stops_the_conversion(originals, part, tmp_path):
    loaded = torch.load(originals[part], weights_only=True)
    state = loaded.get("model", loaded)
    state["mystery.weight"] = torch.zeros(2)
    torch.save(loaded, tmp_path / "source.pth")
    with pytest.raises(ValueError, match="neither used nor known to be of no use: mystery.weight"):
        assemble(**originals | {part: tmp_path / "source.pth"}, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


@pytest.mark.parametrize("part", ["vision", "qformer", "projection", "language"])
def test_a_value_that_is_not_finite_stops_the_conversion(originals, reference, part, tmp_path):
    if part == "language":
        source = tmp_path / "llm"
        shutil.copytree(reference / "llm", source)
        state = load_file(source / "model.safetensors")
        state["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"][3] = float("inf")
        save_file(state, source / "model.safetensors")
        name = "model.language_model.layers.1.mlp.dense_h_to_4h.bias"
    else:
        source = tmp_path / "source.pth"
        loaded = torch.load(originals[part], weights_only=True)
        state = loaded.get("model", loaded)
        key = {"vision": "blocks.1.attn.v_bias", "qformer": "query_tokens", "projection": "llama_proj.bias"}[part]
        state[key].view(-1)[1] = float("nan")
        torch.save(loaded, source)
        name = {
            "vision": "model.vision_model.encoder.layers.1.self_attn.qkv.bias",
            "qformer": "model.query_tokens",
            "projection": "model.language_projection.bias",
        }[part]
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"{name} holds 1 values that are NaN or infinite"):
        assemble(**originals | {part: source}, out=tmp_path / "out", prove_equal=False)
    assert set(tmp_path.iterdir()) == before


def test_a_file_that_holds_code_is_not_opened(originals, tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"model": {"llama_proj.weight": torch.zeros(2)}, "config": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="not a file of tensors alone, .* asks for .*open") as raised:
        assemble(**originals | {"projection": tmp_path / "bad.pth"}, out=tmp_path / "out")
    assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "pwned").exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("damage", ["cut off", "empty", "text", "pointer", "a list", "pickled text"])
def test_a_damaged_file_is_named(originals, damage, tmp_path):
    good = originals["qformer"].read_bytes()
    bad = {"cut off": good[: len(good) // 2], "empty": b"", "text": b"<html>404</html>", "pointer": LFS}
    if damage == "a list":
        torch.save([torch.zeros(2)], tmp_path / "bad.pth")
    else:
        (tmp_path / "bad.pth").write_bytes(bad.get(damage, pickle.dumps("text")))
    with pytest.raises(ValueError, match="bad.pth") as raised:
        assemble(**originals | {"qformer": tmp_path / "bad.pth"}, out=tmp_path / "out")
    assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "part, key, tensor, sentence",
    [
        ("projection", "llama_proj.weight", torch.zeros(48), r"llama_proj.weight is \(48,\) in its source, but 2 dim"),
        ("projection", "llama_proj.bias", torch.zeros(48, dtype=torch.int64), "bias is torch.int64 in its source"),
        ("qformer", "query_tokens", torch.zeros(32), r"query_tokens is \(32,\) in its source, but 3 dim"),
        ("vision", "cls_token", torch.zeros(()), r"cls_token is \(\) in its source, but 3 dimensions"),
        ("vision", "pos_embed", None, "no pos_embed in its source"),
    ],
)
def test_tensors_of_another_form(originals, part, key, tensor, sentence, tmp_path):
    loaded = torch.load(originals[part], weights_only=True)
    state = loaded.get("model", loaded)
    if tensor is None:
        del state[key]
    else:
        state[key] = tensor
    torch.save(loaded, tmp_path / "source.pth")
    with pytest.raises(ValueError, match=sentence):
        assemble(**originals | {part: tmp_path / "source.pth"}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("config.json", "[1]", "holds a JSON list"),
        ("config.json", '{"model_type": ["gpt_neox"]}', "a model_type that is no text"),
        ("config.json", LFS.decode(), "pointer of git-lfs"),
        ("model.safetensors", "", "is not a complete safetensors file"),
        ("model.safetensors.index.json", "{}", "has no `weight_map`"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x.bin"}}', "no weight file of its own folder"),
    ],
)
def test_a_damaged_folder_is_named(originals, reference, name, text, sentence, tmp_path):
    shutil.copytree(reference / "llm", tmp_path / "llm")
    (tmp_path / "llm" / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        assemble(**originals | {"language": tmp_path / "llm"}, out=tmp_path / "out")


def test_a_local_name_is_not_asked_of_the_hub(originals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(f"jminigpt4.convert.sources.{name}", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    (tmp_path / "models").mkdir()
    for name in ("nofolder/", "models/nofolder", "./nofolder", "~/nofolder", "/nofolder/x"):
        with pytest.raises(FileNotFoundError, match="does not exist, and is no Hub id"):
            assemble(**originals | {"language": name}, out=tmp_path / "out")
    with pytest.raises(ValueError, match="~nosuchuser/x names the home"):
        assemble(**originals | {"language": "~nosuchuser/x"}, out=tmp_path / "out")


def test_sources_that_do_not_exist(originals, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.pth does not exist, and is no Hub id"):
        assemble(**originals | {"projection": "missing.pth"}, out=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nobody/nothing is no local path, and the Hub does not give it"):
        assemble(**originals | {"language": "nobody/nothing"}, out=tmp_path / "out")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "checkpoint.pth").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="has no config.json; it holds checkpoint.pth: name the file itself"):
        assemble(**originals | {"projection": tmp_path / "folder"}, out=tmp_path / "out")


def test_parts_in_the_wrong_place(originals, reference, tmp_path):
    for part, wrong, match in [
        ("vision", reference / "llm", "holds no image encoder"),
        ("qformer", originals["vision"], "holds no Q-Former"),
        ("language", originals["vision"], "is no language model"),
        ("projection", originals["vision"], "holds no projection"),
    ]:
        with pytest.raises(ValueError, match=match):
            assemble(**originals | {part: wrong}, out=tmp_path / "out")


VISION_TYPES = {
    "vit": ViTConfig,
    "dinov2": Dinov2Config,
    "clip_vision_model": CLIPVisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
}
TEXT_TOWER = {"vocab_size": 50, "max_position_embeddings": 16, "projection_dim": 24, "projection_size": 32}


def save_image_processor(folder, **changes):
    settings = {"size": {"height": 28, "width": 28}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    text = json.dumps(settings | {"resample": 2, "rescale_factor": 1 / 255} | changes)
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def vision_model(folder, kind):
    """A tiny vision model of transformers: alone, as a dual model, or under a classifier."""
    name = kind.removesuffix(" with a classifier")
    if name in ("clip", "siglip"):
        vision, text = (
            VISION_TYPES[f"{name}_vision_model"](**VISION),
            VISION | TEXT_TOWER | {"eos_token_id": 2, "pad_token_id": 0},
        )
        config = (CLIPConfig if name == "clip" else SiglipConfig)(vision_config=vision.to_dict(), text_config=text)
        model = AutoModel.from_config(config)
    else:
        config = VISION_TYPES[kind.split()[0]](**VISION)
        cls = AutoModelForImageClassification if kind.endswith("classifier") else AutoModel
        model = cls.from_config(config)
    randomise(model).save_pretrained(folder)
    save_image_processor(folder)
    return getattr(model, "vision_model", None) or getattr(model, "base_model", model)


@pytest.mark.parametrize(
    "kind", [*VISION_TYPES, "clip", "siglip", "vit with a classifier", "dinov2 with a classifier"]
)
def test_a_vision_model_of_transformers(kind, reference, tmp_path):
    """It converts, proves itself, loads, sees what its source sees, and goes on into another checkpoint."""
    theirs = vision_model(tmp_path / "vision", kind)
    qformer_folder(tmp_path / "qformer", 32)
    proof = assemble(
        vision=tmp_path / "vision",
        qformer=tmp_path / "qformer",
        language=reference / "llm",
        out=tmp_path / "out",
        prompt_format="article-3.6b",
        progress=False,
    )
    assert {"image encoder", "layer norm", "Q-Former"} <= {row["stage"] for row in proof.rows()}
    assert verify_folder(tmp_path / "out") == []
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    pixel_values = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(pixel_values).last_hidden_state
        found = ours.model.vision_model(pixel_values).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_processor.image_mean) == [0.4, 0.5, 0.6] and processor.image_processor.resample == 2
    content = [{"type": "image", "image": Image.new("RGB", (50, 40), "red")}, {"type": "text", "text": "何?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = ours.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3

    if kind in ("clip_vision_model", "dinov2"):
        return  # a norm that could be taken for the Q-Former's, and names that change, are in the others
    swap(tmp_path / "out", language=reference / "llm", out=tmp_path / "swapped", progress=False)
    again, once = (load_file(tmp_path / name / "model.safetensors") for name in ("swapped", "out"))
    assert again.keys() == once.keys()
    assert all(torch.equal(again[name], once[name]) for name in once if "language_" not in name)


def test_what_a_vision_model_leaves_behind_is_counted(reference, tmp_path):
    qformer_folder(tmp_path / "qformer", 32)
    sources = {"qformer": tmp_path / "qformer", "language": reference / "llm", "prove_equal": False}
    for kind in ("siglip", "vit with a classifier"):
        vision_model(tmp_path / kind, kind)
        assemble(vision=tmp_path / kind, out=tmp_path / f"{kind} out", progress=False, **sources)
    account = Account.read(tmp_path / "siglip out")
    left_out = account.sources["vision"]["left_out"]
    names = load_file(tmp_path / "siglip" / "model.safetensors")
    towers = [name for name in names if name.startswith("text_model.")]
    assert towers and left_out == {"text tower": len(towers), "temperature of the pre-training": 2}
    account = Account.read(tmp_path / "vit with a classifier out")
    assert account.sources["vision"]["left_out"] == {"head of the pre-training": 2}
    assert any("has no pooler" in note for note in account.notes)


def test_a_vision_model_of_transformers_that_cannot_be_used(reference, tmp_path):
    folder = tmp_path / "vision"
    vision_model(folder, "siglip")
    qformer_folder(tmp_path / "qformer", 36)
    sources = {"vision": folder, "language": reference / "llm", "out": tmp_path / "out", "progress": False}
    with pytest.raises(ValueError, match="image encoder is 32 wide, but the Q-Former .* 36"):
        assemble(**sources, qformer=tmp_path / "qformer")
    with pytest.raises(ValueError, match="holds no Q-Former"):
        assemble(**sources)
    qformer_folder(tmp_path / "fitting", 32)
    sources["qformer"] = tmp_path / "fitting"
    save_image_processor(folder, rescale_factor=1.0)
    with pytest.raises(ValueError, match="another scale than 1/255"):
        assemble(**sources)
    save_image_processor(folder, size={"height": 42, "width": 42})
    with pytest.raises(ValueError, match="'siglip_vision_model' cannot stand before a Q-Former"):
        assemble(**sources)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="has no preprocessor_config.json"):
        assemble(**sources)
    save_image_processor(folder)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"vision_model.mystery": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="neither used nor known to be of no use: vision_model.mystery"):
        assemble(**sources)
    state.pop("vision_model.post_layernorm.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="1 tensors of the model are in no source, .*post_layernorm.bias"):
        assemble(**sources)
    assert not (tmp_path / "out").exists()


def test_pictures_cut_to_their_middle_are_noted(reference, tmp_path):
    """CLIP's processor: the shortest edge first, then the middle. The size is that of the middle."""
    vision_model(tmp_path / "vision", "clip")
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
    save_image_processor(tmp_path / "vision", **crop)
    qformer_folder(tmp_path / "qformer", 32)
    sources = {"vision": tmp_path / "vision", "qformer": tmp_path / "qformer", "language": reference / "llm"}
    assemble(**sources, out=tmp_path / "out", prove_equal=False, progress=False)
    size = AutoProcessor.from_pretrained(tmp_path / "out").image_processor.size
    assert (size["height"], size["width"]) == (28, 28)
    assert any("the middle of pictures" in note for note in Account.read(tmp_path / "out").notes)
