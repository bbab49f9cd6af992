"""Every causal family of transformers, tiny and random: it converts, and with a picture is equal to its own
`ForCausalLM`; or it is refused, by its trait."""

import io
import math

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jminigpt4 import JMiniGPT4ForConditionalGeneration
from jminigpt4.configuration_jminigpt4 import check_language_model
from jminigpt4.convert import swap
from jminigpt4.data.pictures import MemoryPicture
from jminigpt4.data.rows import question_row
from jminigpt4.language_jminigpt4 import Family, model_without_head
from jminigpt4.train import engine, train
from jminigpt4.train.loss import PackLoss
from jminigpt4.train.packing import EncodedGroup, EncodedRow, Packer
from jminigpt4.train.packing_proof import exact_packer

IMAGE = 300  # the row that is appended to a full table
PICTURE = [IMAGE] * 8
SIZE = 56
WHOLE = {"augmentation": False, "validation": 0.0}  # of the recipe: pictures as they are, all of them for training
PROMPTS = ([3, 40, *PICTURE, 50, 51, 52], [3, 60, *PICTURE, 61, *PICTURE, 62], [3, 70, 71, 72])
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
# A recurrent layer whose convolution has a bias is moved by padding, in its own family as here.
MOVED_BY_PADDING = {"recurrent_gemma"}
# Whose own step with a cache is that far from its own pass over the whole.
OWN_CACHE_TOLERANCE = {"nemotron_h": 1e-3}
# transformers 5.19 cannot read what it writes of their configuration where that is a part of another: nor does a
# conversion write it then.
UNREADABLE = {"dbrx"} if transformers.__version__.startswith("5.19.") else set()
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


def assert_equal(logits: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5):
    """Equal relative to the largest logit; the image token is one here and not in its family."""
    if logits.shape[-1] > IMAGE:
        logits = torch.cat([logits[..., :IMAGE], logits[..., IMAGE + 1 :]], -1)
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


def own_family(config) -> torch.nn.Module:
    """The family's own causal model, no weight of it zero or one."""
    torch.manual_seed(0)
    family = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in family.parameters():
            # What begins as zeros or ones would hide what is done with it.
            if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return family


def converted(family: torch.nn.Module, image_side, save_tokenizer, folder, kind: str = "byte-level"):
    """The family behind pictures: saved as its publisher would, converted with a proof, loaded as a user would."""
    family.save_pretrained(folder / "language")
    save_tokenizer(kind, folder / "language")
    language, out = folder / "language", folder / "whole"
    proof = swap(image_side, language=language, out=out, prompt_format="article-3.6b", progress=False)
    assert proof.passed and "language model" in {row["stage"] for row in proof.rows()}
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(out).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        model.model.language_projection.weight.normal_(0, 0.3)  # fresh ones hardly show
    return model


def refusal(config, image_side, save_tokenizer, folder) -> str:
    """Why a conversion stops, before a tensor is read."""
    config.save_pretrained(folder / "language")
    save_file({"weight_of_no_use": torch.zeros(1)}, folder / "language" / "model.safetensors")
    save_tokenizer("byte-level", folder / "language")
    with pytest.raises(ValueError) as error:
        swap(
            image_side,
            language=folder / "language",
            out=folder / "whole",
            prompt_format="article-3.6b",
            progress=False,
        )
    assert not (folder / "whole").exists()
    return str(error.value)


def with_pictures(model, family: torch.nn.Module, ids: list[int], pixel_values: torch.Tensor | None):
    """Embeddings of a prompt, `(1, len(ids), 32)`, the family's own, and pictures in their places."""
    is_picture = torch.tensor(ids) == IMAGE
    embeddings = family.get_input_embeddings()(torch.tensor([ids]).masked_fill(is_picture, 0))
    if family.config.model_type == "falcon_h1":  # what its own model does to text, and not to embeddings
        embeddings = embeddings * family.config.embedding_multiplier
    if pixel_values is not None:
        pictures = model.get_image_features(pixel_values).pooler_output.flatten(0, 1)
        embeddings[0, is_picture] = pictures.to(embeddings.dtype)
    return embeddings


@torch.no_grad()
def compare_with_family(model: JMiniGPT4ForConditionalGeneration, family: torch.nn.Module, name: str):
    """Text and picture prompts in one pass, then a padded batch generated with a cache: all as the family computes
    each row alone and at once."""
    ids = torch.tensor([[3, 10, 11, 12, 13, 14, 15, 16]])
    assert_equal(model(input_ids=ids).logits, family(input_ids=ids).logits)
    pixel_values = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
    pictures = (pixel_values[:1], pixel_values[1:], None)
    logits = model(input_ids=torch.tensor([PROMPTS[0]]), pixel_values=pictures[0]).logits
    assert_equal(logits, family(inputs_embeds=with_pictures(model, family, PROMPTS[0], pictures[0])).logits)

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
        expected = family(inputs_embeds=with_pictures(model, family, whole, own)).logits[:, len(prompt) - 1 :]
        assert_equal(steps[row : row + 1], expected, OWN_CACHE_TOLERANCE.get(name, 1e-4))


def compare_training(model: JMiniGPT4ForConditionalGeneration, name: str):
    """Gradient of the projection as a run computes it, in packs or row by row, and by the model's own loss."""
    model.freeze()
    random, width = torch.Generator().manual_seed(3), model.config.qformer_config.hidden_size
    groups, features = [], torch.randn(2, 8, width, generator=random)
    for picture in range(2):
        prompt = [3, 40, *PICTURE, *torch.randint(41, 90, (3,), generator=random).tolist()]
        answers = [torch.randint(41, 90, (length,), generator=random).tolist() for length in (4, 20, 7)]
        rows = (EncodedRow(prompt + each, [-100] * len(prompt) + each, len(each) + picture) for each in answers)
        groups.append(EncodedGroup(tuple(rows), (picture,)))
    loss, learnt = PackLoss(model), list(model.model.language_projection.parameters())
    packer = exact_packer(loss, Packer(IMAGE, 8, prefix=(3, 40)), groups)
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


def two_steps(model, folder, output):
    """As `jminigpt4 train` takes them: the loss is a number, the projection moves, and nothing else does. The weight
    would also by its decay alone; that the bias moves says that the answers saw the pictures."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawing = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (200, 30, 30)).save(drawing, "PNG")
    picture = MemoryPicture("drawing", drawing.getvalue())
    rows = [question_row("何?", answer, picture, "drawing", "test") for answer in ("a red dog", "犬が走っています。")]
    settings = {"epochs": 2, "steps_per_epoch": None, "pictures_per_step": 1, "warmup_steps": 0, "progress": False}
    run = train(model, rows, output, processor=AutoProcessor.from_pretrained(folder), **settings, **WHOLE)
    assert run.steps == 2 and math.isfinite(run.loss)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"model.language_projection.{name}" for name in ("weight", "bias")}


def trait_against(config, name: str) -> str | None:
    """The sentence by which a family is refused when a model of it is made."""
    try:
        check_language_model(config)
        with torch.device("meta"):
            Family(config, model_without_head(config))
    except ValueError as refused:
        assert f"The language model is of type '{name}', wh" in str(refused)
        return str(refused)
    return None


def attention(model) -> str:
    """The implementation that was chosen when the model was loaded."""
    return model.config._attn_implementation


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_to_its_own_family_or_refused(
    make_family_config, image_side, save_tokenizer, documented, record_property, tmp_path, name
):
    config = make_family_config(name)
    if reason := trait_against(config, name):
        assert refusal(config, image_side, save_tokenizer, tmp_path) == reason
        found = "refused: " + reason.partition(" wh")[2].partition(": ")[0].partition(" (")[0].partition(" ")[2]
    elif name in UNREADABLE:
        with pytest.raises(ValueError, match="Found unknown kwargs"):
            type(config).from_dict(config.to_dict())
        with pytest.raises(ValueError, match="Found unknown kwargs"):
            converted(own_family(config), image_side, save_tokenizer, tmp_path)
        assert not (tmp_path / "whole").exists()
        found = "refused: this transformers cannot read its configuration as a part of another"
    else:
        family = own_family(config)
        model = converted(family, image_side, save_tokenizer, tmp_path)
        assert attention(model.model.language_model) == attention(family)
        compare_with_family(model, family, name)
        compare_training(model, name)
        two_steps(model, tmp_path / "whole", tmp_path / "run")
        found = "equal" if model.model.family.is_plain else "equal, by its own head"
    record_property("family", (name, found))
    assert documented.get(name, found) == found


@pytest.mark.parametrize("name, with_picture", [("recurrent_gemma", True), ("nemotron_h", False)])
def test_what_rounds_on_its_own_does_so_in_its_own_generate(
    make_family_config, image_side, save_tokenizer, tmp_path, name, with_picture
):
    """A padded batch with a cache, to the last bits; Nemotron-H generates from no embeddings: its prompts are text."""
    family = own_family(make_family_config(name))
    model = converted(family, image_side, save_tokenizer, tmp_path)
    family.generation_config.eos_token_id, family.generation_config.pad_token_id = None, 0
    prompts = PROMPTS if with_picture else ([3, 40, 41, 42, 43, 44, 45, 46], [3, 60, 61, 62])
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    given, own = {"input_ids": ids}, {"input_ids": ids}
    if with_picture:
        given["pixel_values"] = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))
        features = model.get_image_features(given["pixel_values"]).pooler_output.flatten(0, 1)
        embeddings = family.get_input_embeddings()(ids.masked_fill(ids == IMAGE, 0))
        own = {"inputs_embeds": embeddings.masked_scatter((ids == IMAGE)[..., None], features)}
    settings = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "use_cache": True}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    steps = zip(model.generate(**given, **settings).logits, family.generate(**own, **settings).logits, strict=True)
    for logits, expected in steps:
        assert_equal(logits, expected, 1e-6)
