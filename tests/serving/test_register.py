"""The entry point, with a stand-in for vLLM: what happens before any of its internals is imported."""

import sys
from types import SimpleNamespace

import pytest

from jminigpt4 import serving


@pytest.fixture
def registered(monkeypatch) -> dict[str, str]:
    """Architectures that a vLLM of a version nobody tried was told of."""
    names: dict[str, str] = {}
    registry = SimpleNamespace(register_model=names.__setitem__)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.99.1+cpu", ModelRegistry=registry))
    return names


def test_an_unknown_version_is_refused_when_it_serves_a_checkpoint_and_not_before(registered):
    serving.register()
    serving.register()
    assert list(registered) == [serving.ARCHITECTURE]
    module, _, name = registered[serving.ARCHITECTURE].partition(":")
    assert "jminigpt4.serving.vllm_plugin" not in sys.modules
    with pytest.raises(ImportError, match=r"vLLM 0\.32, found 0\.99\.1\+cpu\. Remedy: pip install 'vllm==0\.32\.\*'"):
        getattr(sys.modules[module], name)


def test_no_other_name_is_made_up():
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        serving.Missing  # noqa: B018
