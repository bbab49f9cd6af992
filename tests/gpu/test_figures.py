"""The figures of `docs/gpu.md`: on a GPU at true size, on the CPU at tiny size to see that all of it runs."""

import json
from pathlib import Path

import pytest


def test_figures(gpu, device, figures, tmp_path):
    results = gpu.measure(device, gpu.TRUE if device == "cuda" else gpu.TINY)
    figures(results)
    assert set(results["training"]) == {
        f"{kind}/{name}" for kind in ("captions", "questions") for name in gpu.CONTENDERS
    }
    for each in results["training"].values():
        assert each["seconds"] > 0 and each["mfu"] > 0 and each["rows_per_gb"] > 0
    exact = [results["training"][f"{kind}/ours"]["gradient_relative_error"] for kind in ("captions", "questions")]
    assert max(exact) < (0.1 if device == "cuda" else 1e-5)
    assert results["training"]["captions/ours"]["rows_per_gb"] > results["training"]["captions/article"]["rows_per_gb"]
    packs = [each["packs"] for name, each in results["packs"].items() if name.startswith("questions")]
    assert packs == sorted(packs, reverse=True) and packs[0] > packs[-1]
    assert all(each["seconds"] > 0 and each["seconds_article"] > 0 for each in results["packs"].values())
    assert len(results["decoding"]) == 5 and results["encoding"]["pictures_per_second"] > 0
    for name, each in results["decoding"].items():
        if name.startswith("batch"):
            assert each["tokens_per_second"] / each["limit"] == pytest.approx(each["of_limit"])
    gpu.write_page({**results, "checks": {"a check": 0.01}}, tmp_path)
    for name, words in (("gpu.md", gpu.ENGLISH), ("gpu_ja.md", gpu.JAPANESE)):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert results["device"] in page and words.not_run not in page and "| a check | 1.0e-02 |" in page
        for table in ("| captions/article | ", "| questions/ours_no_cache | ", "| batch 1/static cache, compiled | "):
            assert table in page
    assert json.loads((tmp_path / "gpu.json").read_text())["training"] == results["training"]


def test_the_page_says_so_until_it_was_run(gpu):
    docs = Path(__file__).parents[2] / "docs"
    path = docs / "gpu.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    assert (docs / "gpu.md").read_text(encoding="utf-8") == gpu.page(results)
    assert (docs / "gpu_ja.md").read_text(encoding="utf-8") == gpu.page(results, gpu.JAPANESE)
