"""The learning curve, and another run's beside it."""

import json

import pytest
import yaml

from jminigpt4.train import engine, metrics
from jminigpt4.train.engine import train
from jminigpt4.train.metrics import draw_learning_curve
from jminigpt4.train.recipe import Recipe

RECIPE = Recipe(pictures_per_step=4, steps_per_epoch=2, epochs=1, warmup_steps=1, log_steps=1, validation=0.3)


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **named: figures.append(self) or save(self, *given, **named)
    )
    return figures


def lines_of(figure) -> dict:
    """Label of every line to its points and how it is drawn."""
    return {
        line.get_label(): (line.get_xydata().tolist(), line.get_linestyle(), line.get_marker())
        for line in figure.axes[0].lines
    }


def write_run(folder, optimizer: str, loss: float):
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(Recipe(optimizer=optimizer).values()))
    lines = [
        {"step": 1, "loss": loss, "loss/one": loss, "learning_rate": 1e-3},
        {"step": 2, "loss": loss / 2, "loss/one": loss / 2, "learning_rate": 1e-4},
        {"step": 2, "eval_loss": loss / 4},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_validation_shows_though_it_is_a_single_point(tmp_path, drawn):
    run = write_run(tmp_path / "run", "adamw", 4.0)
    draw_learning_curve(run / "metrics.jsonl", run / "curve.png")
    lines = lines_of(drawn[0])
    assert set(lines) == {"training", "one", "validation"}
    assert lines["training"] == ([[1, 4.0], [2, 2.0]], "-", "None")
    assert lines["validation"] == ([[2, 1.0]], "-", "o")


def test_both_runs_are_named_by_their_optimisers(tmp_path, drawn):
    run, other = write_run(tmp_path / "new", "muon", 4.0), write_run(tmp_path / "old", "adamw", 8.0)
    draw_learning_curve(run / "metrics.jsonl", run / "curve.png", other)
    lines = lines_of(drawn[0])
    assert lines["training (muon)"] == ([[1, 4.0], [2, 2.0]], "-", "None")
    assert lines["training (adamw, old)"] == ([[1, 8.0], [2, 4.0]], ":", "None")
    assert lines["validation (adamw, old)"] == ([[2, 2.0]], ":", "o")
    shown = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert sorted(shown) == sorted(lines) and len(lines) == 6


def test_a_run_is_compared_also_when_it_is_over(make_model, processor, captions, tmp_path, drawn):
    other = write_run(tmp_path / "old", "muon", 8.0)

    def go(**options):
        train(make_model(), captions, tmp_path / "run", RECIPE, processor=processor, progress=False, **options)

    go()
    go(compare=other)
    alone, compared = map(lines_of, drawn)
    assert len(alone["validation"][0]) == 1 and len(alone["training"][0]) == 2
    assert compared["training (adamw)"] == alone["training"] and "training (muon, old)" in compared
    assert compared["validation (adamw)"][0][0] == alone["validation"][0][0]


def test_what_cannot_be_compared_with_is_said_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_prepare", lambda *given, **named: pytest.fail("loaded"))
    with pytest.raises(FileNotFoundError, match="old has no metrics.jsonl: name the output folder of a run"):
        train("model", output=tmp_path / "run", compare=tmp_path / "old")
    run = write_run(tmp_path / "old", "adamw", 1.0)
    (run / "recipe.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"old has no recipe.yaml"):
        train("model", output=tmp_path / "run", compare=run)
    assert metrics.check_comparable(write_run(tmp_path / "whole", "adamw", 1.0)) == tmp_path / "whole"
