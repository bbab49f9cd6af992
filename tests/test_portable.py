"""What Windows and macOS would meet, as far as it shows on Linux: modules and calls that only some systems have, texts
without an encoding, double precision on Apple's GPUs. Locks and renames: test_checkpoint.py; consoles: test_cli.py."""

import ast
import os
import sys
from pathlib import Path

import pytest
import torch

import jminigpt4
from jminigpt4.train import engine, metrics
from jminigpt4.train.recipe import Recipe

ROOT = Path(jminigpt4.__file__).parent
FILES = [
    file
    for folder in (".", "data", "inference", "serving", "convert", "train", "chat", "evaluate")
    for file in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
    if file.name not in ("setup.py", "conftest.py")
]
UNIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "posix", "syslog"}
TEXT = {"open", "read_text", "write_text", "fdopen", "NamedTemporaryFile"}


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def in_attempts(tree: ast.AST) -> set[int]:
    """Nodes in a `try` or `with suppress`: what is not there is expected there."""
    return {id(node) for each in ast.walk(tree) if isinstance(each, ast.Try | ast.With) for node in ast.walk(each)}


def test_modules_of_unix_are_never_taken_for_granted():
    taken, expected = [], 0
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        attempts = in_attempts(tree)
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            if UNIX.intersection(names):
                expected += id(node) in attempts
                taken += [f"{file.name}, line {node.lineno}: {names}"] * (id(node) not in attempts)
    assert taken == [] and expected >= 2  # fcntl and resource


def test_texts_have_an_encoding():
    """Windows reads and writes its own by default, such as cp932."""
    found, missing = 0, []
    for file in FILES:
        for node, name in calls(ast.parse(file.read_text(encoding="utf-8"))):
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if name not in TEXT or (name in ("open", "read_text") and owner is not None and not _is_a_path(owner)):
                continue
            modes = [each.value for each in (*node.args, *(k.value for k in node.keywords if k.arg == "mode"))
                     if isinstance(each, ast.Constant) and isinstance(each.value, str)]  # fmt: skip
            if any("b" in mode and set(mode) <= set("rwabx+t") for mode in modes):
                continue
            found += 1
            if all(keyword.arg != "encoding" for keyword in node.keywords):
                missing.append(f"{file.relative_to(ROOT)}, line {node.lineno}")
    assert missing == [] and found > 20


def _is_a_path(owner: ast.AST) -> bool:
    """Not `Image.open`, `tarfile.open`, `Shard.open` …, which open no texts, nor a distribution, whose are UTF-8."""
    others = {"Image", "tarfile", "Shard", "os", "gzip", "cls", "self", "distribution"}
    return not (isinstance(owner, ast.Name) and owner.id in others)


def test_peak_memory_on_every_system(monkeypatch):
    assert 0.05 < metrics.peak_memory_gb() < 1000
    if sys.platform == "linux":
        linux = metrics.peak_memory_gb()
        monkeypatch.setattr(sys, "platform", "darwin")  # which counts bytes
        assert metrics.peak_memory_gb() == pytest.approx(linux / 1024, rel=0.1)
    monkeypatch.setitem(sys.modules, "resource", None)

    class Process:
        def memory_info(self):
            return type("Info", (), {"peak_wset": 3_000_000_000})

    monkeypatch.setattr(metrics.psutil, "Process", Process)
    assert metrics.peak_memory_gb() == 3.0


def test_nothing_is_in_double_precision_but_on_the_cpu(make_model, processor, captions, tmp_path, monkeypatch):
    """Apple's GPUs have no float64: what becomes one was brought to the CPU in the same breath."""
    monkeypatch.setattr(engine, "draw_learning_curve", lambda metrics, picture: None)
    double, cpu, counted = torch.Tensor.double, torch.Tensor.cpu, []

    def brought(self, *given):
        result = cpu(self, *given)
        if result is self:
            result = self.view_as(self)
        result.is_brought = True
        return result

    def doubled(self):
        counted.append(getattr(self, "is_brought", False))
        return double(self)

    monkeypatch.setattr(torch.Tensor, "cpu", brought)
    monkeypatch.setattr(torch.Tensor, "double", doubled)
    recipe = Recipe(warmup_steps=0, epochs=1, steps_per_epoch=2, pictures_per_step=3, validation=0.3, log_steps=1)
    engine.train(make_model(), captions, tmp_path / "run", recipe, processor=processor, progress=False)
    assert counted and all(counted)


def test_the_dictionary_is_found_without_dev_null(monkeypatch):
    pytest.importorskip("fugashi")
    from jminigpt4.evaluate.metrics import tokenization

    given = []
    monkeypatch.setattr(os, "devnull", "nul")
    tokenization.tagger.cache_clear()
    monkeypatch.setattr("fugashi.Tagger", given.append)
    tokenization.tagger()
    tokenization.tagger.cache_clear()
    assert given[0].startswith('-r "nul" -d ')
