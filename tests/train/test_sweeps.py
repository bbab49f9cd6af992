"""The sweep in docs/training.md, run as it stands there but for its size."""

import importlib.util
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna")
def test_the_sweep_in_the_documentation(make_model, processor, captions, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(import optuna.*?)```", TEXT, re.DOTALL)
    for before, after in {
        "steps_per_epoch=200": "steps_per_epoch=2, pictures_per_step=4",
        "validation=0.05": "validation=0.3",
        "n_trials=20": "n_trials=2",
    }.items():
        assert before in code
        code = code.replace(before, after)
    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "captions.jsonl").write_text(captions.read_text().replace('"image": "', '"image": "data/'))
    monkeypatch.chdir(tmp_path)
    for trials in (2, 4):  # the second time the study goes on
        found: dict = {}
        exec(code, found)
        study = found["study"]
        assert [trial.number for trial in study.trials] == list(range(trials))
        assert study.best_value == min(trial.value for trial in study.trials)
    assert len({trial.value for trial in study.trials}) == 4
    folders = {folder.name for folder in (tmp_path / "sweep").iterdir() if (folder / "metrics.jsonl").is_file()}
    assert folders == {"0", "1", "2", "3"}
    rates = [trial.params["learning_rate"] for trial in study.trials]
    recipes = [(tmp_path / "sweep" / str(number) / "recipe.yaml").read_text() for number in range(4)]
    assert all(f"learning_rate: {rate}" in recipe for rate, recipe in zip(rates, recipes, strict=True))
    assert str(study.best_value) in capsys.readouterr().out
