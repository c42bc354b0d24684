import sys

import pytest

from rollouts.config import AutoEngineConfig, TransformersEngineConfig, VllmEngineConfig
from rollouts.factory import create_engine, explain_choice
from rollouts.transformers_engine import TransformersEngine
from rollouts.types import EngineError
from tests.rollouts_tiny import save_model


@pytest.fixture
def no_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # `import vllm` raises ImportError


def test_transformers_is_taken_where_it_is_asked_for(tmp_path):
    choice = explain_choice(TransformersEngineConfig(sync="merge"))
    assert choice[:2] == ("transformers", "merge")
    engine = create_engine(TransformersEngineConfig(), save_model(tmp_path))
    assert isinstance(engine, TransformersEngine)
    assert engine.description == "transformers, sync adapter, cpu, float32"


def test_auto_falls_back_to_transformers_and_says_why(no_vllm, tmp_path):
    kind, sync, reason = explain_choice(AutoEngineConfig())
    assert (kind, sync) == ("transformers", "adapter")
    assert "vLLM cannot be imported" in reason
    engine = create_engine(AutoEngineConfig(max_model_len=32), save_model(tmp_path))
    assert isinstance(engine, TransformersEngine) and engine.max_model_len == 32


def test_explicit_vllm_that_is_missing_says_how_to_install_it(no_vllm, tmp_path):
    for call in (lambda: explain_choice(VllmEngineConfig()), lambda: create_engine(VllmEngineConfig(), tmp_path)):
        with pytest.raises(EngineError, match=r"`make setup` in rlsf.s source folder installs the one"):
            call()
