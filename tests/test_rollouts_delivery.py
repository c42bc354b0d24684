import json

import numpy as np
import pytest

from rollouts.config import DeliveryConfig
from rollouts.delivery import Anchor, DeliveryCheck, measure, take_probe
from rollouts.types import EngineError, Rollout, SamplingParams
from tests.rollouts_tiny import save_adapter, save_model

PROBE = (((1, 2), tuple(range(40))), ((3,), tuple(range(24))))
TOKENS = 64


class ScriptedEngine:
    """Answers with the log-probabilities it was given: noise of its own on top of some policy."""

    description = "scripted"

    def __init__(self, noise: float, seed: int = 0) -> None:
        self._bias = np.random.default_rng(seed).normal(scale=noise, size=TOKENS)
        self._jitter = np.random.default_rng(seed + 1)
        self._noise = noise
        self.version = 0
        self.serving = np.zeros(TOKENS)

    def score_tokens(self, sequences, *, temperature=1.0):
        jitter = self._jitter.normal(scale=self._noise / 10, size=TOKENS)
        return _rows(self.serving + self._bias + jitter)


def _rows(flat):
    return [list(flat[:40]), list(flat[40:])]


def _policy(steps: int, size: float) -> np.ndarray:
    """Log-probabilities after a random walk of `steps` steps with rms `size`."""
    walk = np.random.default_rng(5).normal(scale=size, size=(steps, TOKENS))
    return -2 + walk.sum(0)


def _check(**config) -> DeliveryCheck:
    return DeliveryCheck(DeliveryConfig(**config), PROBE)


def _started(noise: float, size: float, **config):
    engine, check = ScriptedEngine(noise), _check(**config)
    engine.serving = _policy(0, size)
    assert check.verify(engine, 0, _rows(_policy(0, size))).verdict == "baseline"
    return engine, check


def test_measure_is_least_squares_through_the_origin():
    then = Anchor(3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    now = Anchor(4, (1.0, 2.0, -2.0), (2.0, 2.0, 0.0))  # d = 1, 2, -2; x = 1, 1, -1
    movement = measure(then, now)
    assert movement.since == 3 and movement.trainer_rms == pytest.approx(np.sqrt(3))
    assert movement.ratio == pytest.approx(5 / 9)  # (1 + 2 + 2) / 9
    # residuals 4/9, -1/9, 1/9: sum of squares 18/81, over T - 1 = 2 and ⟨d, d⟩ = 9
    assert movement.error == pytest.approx(np.sqrt(18 / 81 / 2 / 9))


@pytest.mark.parametrize(
    ("noise", "size", "verdict"),
    [
        (1e-5, 0.0, "too small to see"),
        (1e-5, 1e-7, "too small to see"),
        (1e-5, 1e-4, "moved"),
        (1e-5, 1.0, "moved"),
        (1e-2, 1e-4, "too small to see"),
        (1e-2, 0.1, "moved"),
    ],
)
def test_honest_deliveries_pass_at_every_size_of_step(noise, size, verdict):
    engine, check = _started(noise, size, tolerance=6 * noise)
    for version in range(1, 30):
        engine.version, engine.serving = version, _policy(version, size)
        assert check.verify(engine, version, _rows(_policy(version, size))).verdict == verdict


def test_a_stale_engine_is_caught_though_the_step_is_far_below_the_tolerance():
    engine, check = _started(1e-5, 5e-5, tolerance=5e-3)
    engine.version = 1
    with pytest.raises(EngineError, match=r"did not take over adapter version 1: since version 0 .* old weights"):
        check.verify(engine, 1, _rows(_policy(1, 5e-5)))


def test_altered_weights_are_caught_within_the_tolerance():
    engine, check = _started(1e-5, 1e-3, tolerance=5e-3)
    engine.version = 1
    engine.serving = _policy(1, 1e-3) + np.random.default_rng(8).normal(scale=5e-4, size=TOKENS)
    with pytest.raises(EngineError, match=r"disagree at version 1: .* 0\.000\d+ nats \(rms\), \d\d times as much"):
        check.verify(engine, 1, _rows(_policy(1, 1e-3)))


def test_an_engine_one_version_late_is_caught():
    engine, check = _started(1e-5, 5e-5)
    for version in range(1, 4):
        engine.version, engine.serving = version, _policy(version, 5e-5)
        check.verify(engine, version, _rows(_policy(version, 5e-5)))
    engine.version = 4
    with pytest.raises(EngineError, match="since version 3"):
        check.verify(engine, 4, _rows(_policy(4, 5e-5)))


def test_stale_weights_are_caught_when_small_steps_add_up():
    size, noise = 3e-6, 1e-5
    engine, check = _started(noise, size)
    for version in range(1, 200):
        engine.version = version  # never takes anything over
        try:
            report = check.verify(engine, version, _rows(_policy(version, size)))
        except EngineError as error:
            assert "since version 0" in str(error) and version > 5
            return
        assert report.verdict == "too small to see"
    pytest.fail("200 lost deliveries went unnoticed")


def test_an_adapter_merged_twice_is_caught():
    engine, check = _started(1e-5, 5e-5)
    engine.version, engine.serving = 1, 2 * _policy(1, 5e-5) - _policy(0, 5e-5)
    with pytest.raises(EngineError, match="merged twice"):
        check.verify(engine, 1, _rows(_policy(1, 5e-5)))


def test_disagreement_names_the_token_and_the_numbers():
    engine, check = _started(1e-5, 1e-2)
    engine.version, engine.serving = 1, _policy(1, 1e-2)
    engine.serving[17] += 0.3
    with pytest.raises(EngineError, match=r"disagree at version 1: .* probe token 17, 0\.3 nats .* is 0\.005"):
        check.verify(engine, 1, _rows(_policy(1, 1e-2)))


def test_a_dropped_sync_is_caught_by_the_version():
    engine, check = _started(1e-5, 1e-3)
    with pytest.raises(EngineError, match="serves adapter version 0, but version 1 was sent"):
        check.verify(engine, 1, _rows(_policy(1, 1e-3)))


def test_another_fingerprint_is_caught(tmp_path):
    sent = save_adapter(save_model(tmp_path / "model"), tmp_path / "sent", seed=1)
    engine, check = _started(1e-5, 1e-3)
    engine.version, engine.serving, engine.fingerprint = 1, _policy(1, 1e-3), "0" * 64
    with pytest.raises(EngineError, match="loaded other weights than adapter version 1: sha256 000000000000"):
        check.verify(engine, 1, _rows(_policy(1, 1e-3)), sent)


def test_broken_weights_and_wrong_shapes_are_named():
    engine, check = _started(1e-5, 1e-3)
    with pytest.raises(EngineError, match=r"the trainer scored \[64\] tokens"):
        check.verify(engine, 0, [list(_policy(0, 1e-3))])
    engine.serving = engine.serving * np.nan
    with pytest.raises(EngineError, match="the engine gives log-probabilities that are not finite"):
        check.verify(engine, 0, _rows(_policy(0, 1e-3)))


def test_a_failed_check_leaves_the_state_as_it_was():
    engine, check = _started(1e-5, 1e-3)
    before = check.state()
    engine.version = 1
    with pytest.raises(EngineError):
        check.verify(engine, 1, _rows(_policy(1, 1e-3)))
    assert check.state() == before


def test_state_survives_a_checkpoint():
    engine, check = _started(1e-5, 5e-5)
    engine.version, engine.serving = 1, _policy(1, 5e-5)
    check.verify(engine, 1, _rows(_policy(1, 5e-5)))
    restored = DeliveryCheck.restore(DeliveryConfig(), json.loads(json.dumps(check.state())))
    assert restored.state() == check.state() and restored.probe == PROBE
    engine.version = 2
    with pytest.raises(EngineError, match="since version 1"):
        restored.verify(engine, 2, _rows(_policy(2, 5e-5)))


def test_probe_takes_whole_completions_until_there_are_enough_tokens():
    def rollout(index: int, length: int) -> Rollout:
        ids = tuple(range(length))
        return Rollout(str(index), "p", "g", (index,), ids, "", (0.0,) * length, "stop", 0, SamplingParams())

    rollouts = [rollout(index, length) for index, length in enumerate((0, 5, 3, 9))]
    assert take_probe(rollouts, 8) == (((1,), (0, 1, 2, 3, 4)), ((2,), (0, 1, 2)))
    with pytest.raises(EngineError, match="no rollout"):
        take_probe(rollouts[:1], 8)
