"""docs/trainers.md, run section by section, and what its sections promise."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = "docs/trainers.md"


@pytest.fixture
def run_section(blocks, run_blocks, tmp_path):
    """`run_section(*titles)` runs the block before the first section and those of some; the names they leave."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    beginning, *sections = (ROOT / DOCUMENT).read_text(encoding="utf-8").split("\n## ")

    def pair(block: str) -> tuple[str, str | None]:
        return blocks(f"```python\n{block}", "python")[0], next(iter(blocks(block, "text")), None)

    def run(*titles: str) -> dict:
        chosen = [section for title in titles for section in sections if section.startswith(f"{title}\n")]
        assert len(chosen) == len(titles)
        pairs = [pair(block) for part in (beginning, *chosen) for block in part.split("```python\n")[1:]]
        return run_blocks(DOCUMENT, pairs, tmp_path)

    return run


def learnt(names: dict) -> list[str]:
    """What the labels of the trainer's first batch say, row by row; no label is an image token."""
    batch = next(iter(names["trainer"].get_train_dataloader()))
    assert (batch["input_ids"] == names["processor"].image_token_id).any()
    assert not (batch["labels"] == names["processor"].image_token_id).any()
    return [names["processor"].tokenizer.decode(row[row != -100]) for row in batch["labels"]]


def only_the_projection_moved(names: dict) -> bool:
    before = AutoModelForImageTextToText.from_pretrained("demo", trust_remote_code=True, dtype="float32").state_dict()
    after = names["model"].state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name].cpu())}
    return moved == {"model.language_projection.weight", "model.language_projection.bias"}


def test_freeze(run_section):
    model = run_section("Freeze first")["model"]
    model.train()
    assert not model.model.language_model.training and not model.model.qformer.training


def test_trainer(run_section):
    names = run_section("Trainer")
    assert only_the_projection_moved(names)
    rows = names["rows"]
    batch = names["collate"]([rows[1], rows[0]])  # a short answer beside a longer one
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert "".join(names["processor"].tokenizer.decode(batch["labels"][1][batch["labels"][1] != -100])) == (
        "りんごが写っています。</s>"
    )


def test_lora(run_section):
    names = run_section("Trainer", "LoRA")
    again = AutoModelForImageTextToText.from_pretrained("merged", trust_remote_code=True, dtype="float32")
    adapted, inputs = names["adapted"].eval(), {key: value.cpu() for key, value in names["inputs"].items()}
    with torch.no_grad():
        logits = adapted.cpu()(**inputs).logits
        with adapted.disable_adapter():
            assert (adapted(**inputs).logits - logits).abs().max() > 0.1
        torch.testing.assert_close(names["merged"].eval()(**inputs).logits, logits, atol=1e-3, rtol=1e-4)
        assert torch.equal(again.eval()(**inputs).logits, names["merged"](**inputs).logits)


@pytest.mark.trl
def test_sft(run_section):
    names = run_section("TRL: SFTTrainer")
    assert only_the_projection_moved(names)
    assert all(words.endswith("が写っています。</s>") and "ユーザー" not in words for words in learnt(names))


@pytest.mark.trl
def test_sft_of_whole_conversations_learns_no_image_tokens(run_section):
    """TRL's default: every token is a label. Its fused head takes the place of the model's `forward`."""
    from trl import SFTConfig, SFTTrainer
    from trl.chat_template_utils import is_chat_template_stop_token_trained

    names = run_section("TRL: SFTTrainer")
    processor, arguments = names["processor"], SFTConfig("out", **names["settings"])
    assert is_chat_template_stop_token_trained(processor)
    trainer = SFTTrainer(names["model"], arguments, train_dataset=names["data"], processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"] == processor.image_token_id).sum() == 2 * processor.num_query_tokens
    is_text = (batch["labels"] != -100) & (batch["labels"] != processor.image_token_id)
    scored = trainer.model(**batch, fused_lm_head=True).label_mask
    assert torch.equal(scored, is_text[:, 1:])


@pytest.mark.trl
def test_dpo(run_section):
    names = run_section("TRL: DPOTrainer")
    assert math.isclose(names["losses"][0], math.log(2), abs_tol=1e-5)
    assert only_the_projection_moved(names)


@pytest.mark.trl
def test_grpo(run_section):
    """A model that sees nothing earns nothing here: with grey pictures the rewards stay 0."""
    names = run_section("TRL: GRPOTrainer")
    rewards = names["rewards"]
    assert rewards[0] < 0.8 and sum(rewards[-3:]) / 3 > 0.9
    assert only_the_projection_moved(names)
