"""Verified delivery: after every sync, proof that the engine serves the weights that the trainer sent.

Runs have trained for weeks on an engine that never took an adapter over, while every curve looked healthy. So the
engine is questioned in four ways:

1. **Version.** It must name the version that was sent.
2. **Fingerprint**, where the engine has one: the sha256 of the tensors that its worker loaded must equal the file's.
3. **Agreement.** On a fixed probe of T tokens, every log-probability e of the engine must be within `tolerance` of the
   trainer's t. And rms(e − t) may be at most ten times the noise floor, or 1e-4 nats where that is more. The noise
   floor is the rms of e − t at the first check (version 0): the same weights in two programs.
4. **Movement.** A step of a small learning rate moves the probe by less than these limits, so agreement alone cannot
   tell new weights from old ones. Let d = t − t' be how far the trainer's probe moved since an earlier version,
   and x = e − e' how far the engine's did. Engine and trainer differ in kernels and precision, but by nearly the same
   amount in both versions, so that this bias cancels. Least squares through the origin, x = α·d, gives

       α = ⟨x, d⟩ / ⟨d, d⟩,   standard error s = √(Σ(x − α·d)² / (T − 1)) / ‖d‖.

   α is 1 when the weights arrived, 0 when the engine is stale, 2 when the adapter was merged twice. α outside (½, 3/2)
   is an error; that asks whether x is closer to d than to 0 or 2d in squared distance. The verdict counts only where
   the movement can be measured: rms(d) at least twice the noise floor, and s at most ⅛, so that ½ lies four standard
   errors from 0 and from 1.

   Movement is measured against the last version, and also against the last one whose movement was proven: many steps,
   each too small to be seen, add up to one that is not.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rollouts.adapter import read_adapter
from rollouts.config import DeliveryConfig
from rollouts.types import Engine, EngineError, Rollout

Probe = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""(prompt ids, completion ids) of a few rollouts."""

# log-probabilities in float32 carry at least this much rounding (nats).
_FLOAT_NOISE = 1e-6
# Agreement: rms(e − t) stays below this many times the noise floor, or below this many nats.
_NOISE_GROWTH, _AGREEMENT = 10, 1e-4


def take_probe(rollouts: Sequence[Rollout], tokens: int) -> Probe:
    """The first rollouts whose completions hold at least `tokens` tokens together.

    Raises:
        EngineError: there is no completion at all.
    """
    probe: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for rollout in rollouts:
        if sum(len(completion) for _, completion in probe) >= tokens:
            break
        if rollout.completion_ids:
            probe.append((rollout.prompt_ids, rollout.completion_ids))
    if not probe:
        raise EngineError("there is no rollout to make a delivery probe from")
    return tuple(probe)


@dataclass(frozen=True, slots=True)
class Anchor:
    """The probe at one verified version: log-probabilities of its tokens in order, in nats."""

    version: int
    trainer: tuple[float, ...]
    engine: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Movement:
    """How the engine's probe followed the trainer's since an anchor."""

    since: int
    """Version of the anchor."""
    trainer_rms: float
    """rms(d), nats."""
    ratio: float
    """α; 1 is right. NaN where the trainer's probe did not move at all."""
    error: float
    """Standard error of the ratio."""


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What a passed check found."""

    version: int
    largest_difference: float
    """max |e − t|, nats."""
    verdict: Literal["baseline", "moved", "too small to see"]
    """`baseline`: the first check, with nothing to compare to. `too small to see`: the trainer's probe moved less than
    the noise, so that only version, fingerprint and agreement speak for the delivery."""
    movements: tuple[Movement, ...]


class DeliveryCheck:
    """Checks an engine after every sync; call it at version 0 first, which also measures the noise floor.

    Args:
        probe: fixed for the life of the run; `take_probe` makes one.
    """

    def __init__(self, config: DeliveryConfig, probe: Probe) -> None:
        self._config = config
        self._probe = probe
        self._noise: float | None = None
        self._last: Anchor | None = None
        self._proven: Anchor | None = None

    @property
    def probe(self) -> Probe:
        """For the trainer, which scores the same tokens at temperature 1."""
        return self._probe

    def verify(
        self,
        engine: Engine,
        version: int,
        trainer_logprobs: Sequence[Sequence[float]],
        adapter_dir: Path | None = None,
    ) -> DeliveryReport:
        """Raise unless `engine` serves `version`, the weights under which `trainer_logprobs` were computed.

        Args:
            trainer_logprobs: per probe sequence, log-probability (nats, temperature 1) of each completion token.
            adapter_dir: what was synced; None for the untouched model.

        Raises:
            EngineError: the adapter did not arrive, or not as it was sent. The state of the check is then unchanged.
        """
        self._check_version(engine, version)
        if adapter_dir is not None:
            self._check_fingerprint(engine, version, adapter_dir)
        anchor = Anchor(
            version,
            self._flatten(trainer_logprobs, "the trainer"),
            self._flatten(engine.score_tokens(self._probe), "the engine"),
        )
        difference = self._check_agreement(anchor)
        movements = self._check_movement(anchor)
        return self._accept(anchor, difference, movements)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, JSON-serialisable."""
        return {
            "probe": [[list(prompt), list(completion)] for prompt, completion in self._probe],
            "noise": self._noise,
            "last": None if self._last is None else asdict(self._last),
            "proven": None if self._proven is None else asdict(self._proven),
        }

    @classmethod
    def restore(cls, config: DeliveryConfig, state: dict[str, Any]) -> "DeliveryCheck":
        """The check as it was when `state()` was taken."""
        check = cls(config, tuple((tuple(prompt), tuple(completion)) for prompt, completion in state["probe"]))
        check._noise = state["noise"]
        check._last, check._proven = (_anchor(state[key]) for key in ("last", "proven"))
        return check

    def _check_version(self, engine: Engine, version: int) -> None:
        served = engine.version
        if served != version:
            raise EngineError(
                f"the engine ({engine.description}) says it serves adapter version {served}, but version {version} was "
                "sent: the sync was dropped; call engine.sync before generating, or restart the engine and resume"
            )

    def _check_fingerprint(self, engine: Engine, version: int, adapter_dir: Path) -> None:
        loaded = getattr(engine, "fingerprint", None)  # not every engine can tell
        if loaded is None:
            return
        sent = read_adapter(adapter_dir).fingerprint
        if loaded != sent:
            raise EngineError(
                f"the engine ({engine.description}) loaded other weights than adapter version {version}: sha256 "
                f"{loaded[:12]} instead of {sent[:12]} in {adapter_dir}; the file was altered or exchanged during or "
                "after the sync. Write each version to a folder of its own, completely, before syncing it"
            )

    def _flatten(self, logprobs: Sequence[Sequence[float]], whose: str) -> tuple[float, ...]:
        lengths = [len(row) for row in logprobs]
        expected = [len(completion) for _, completion in self._probe]
        if lengths != expected:
            raise EngineError(f"{whose} scored {lengths} tokens of the delivery probe, which has {expected}")
        flat = tuple(float(value) for row in logprobs for value in row)
        if not np.isfinite(flat).all():
            raise EngineError(
                f"{whose} gives log-probabilities that are not finite on the delivery probe: the weights are broken; "
                "lower the learning rate and resume from the last checkpoint"
            )
        return flat

    def _check_agreement(self, now: Anchor) -> float:
        differences = np.abs(np.subtract(now.engine, now.trainer))
        worst = int(differences.argmax())
        if differences[worst] > self._config.tolerance:
            raise EngineError(
                f"engine and trainer disagree at version {now.version}: log-probability {now.engine[worst]:.5f} "
                f"against {now.trainer[worst]:.5f} on probe token {worst}, {differences[worst]:.2g} nats apart where "
                f"delivery.tolerance is {self._config.tolerance:g}. The engine serves stale or altered weights, or the "
                "two compute with different precision: check model.dtype (bfloat16 needs a tolerance of about 5e-2) "
                "and that LoRA dropout is 0, then restart the engine"
            )
        rms = _rms(differences)
        if self._noise is not None and rms > max(_NOISE_GROWTH * self._noise, _AGREEMENT):
            raise EngineError(
                f"engine and trainer disagree at version {now.version}: their log-probabilities on the probe differ by "
                f"{rms:.2g} nats (rms), {rms / self._noise:.0f} times as much as at first. The engine serves stale or "
                "altered weights: check that the adapter on disk is the trainer's newest, then restart the engine"
            )
        return float(differences[worst])

    def _check_movement(self, now: Anchor) -> tuple[Movement, ...]:
        anchors = {anchor.version: anchor for anchor in (self._last, self._proven) if anchor is not None}
        movements = tuple(measure(anchor, now) for anchor in anchors.values())
        for movement in movements:
            if self._visible(movement) and not 0.5 < movement.ratio < 1.5:
                stale = movement.ratio <= 0.5
                raise EngineError(
                    f"the engine did not take over adapter version {now.version}: since version {movement.since} the "
                    f"trainer's log-probabilities on the probe moved by {movement.trainer_rms:.2g} nats (rms), the "
                    f"engine's by {movement.ratio:.2f} ± {movement.error:.2f} times that, where 1 is right: it "
                    f"{'still answers with old weights' if stale else 'moved too far, as if merged twice'}. Check that "
                    "the adapter on disk is the trainer's newest, try the other engine.sync mode, restart the engine"
                )
        return movements

    def _visible(self, movement: Movement) -> bool:
        """Whether the movement stands clear of the noise: see the module's text."""
        return self._noise is not None and movement.trainer_rms >= 2 * self._noise and movement.error <= 1 / 8

    def _accept(self, now: Anchor, difference: float, movements: tuple[Movement, ...]) -> DeliveryReport:
        verdict: Literal["baseline", "moved", "too small to see"] = "too small to see"
        if self._last is None:
            verdict = "baseline"
            self._noise = max(_rms(np.subtract(now.engine, now.trainer)), _FLOAT_NOISE)
        elif any(self._visible(movement) for movement in movements):
            verdict = "moved"
        if verdict != "too small to see":
            self._proven = now
        self._last = now
        return DeliveryReport(now.version, difference, verdict, movements)


def measure(then: Anchor, now: Anchor) -> Movement:
    """Regress the engine's movement on the trainer's: α and its standard error, as in the module's text."""
    d = np.subtract(now.trainer, then.trainer)
    x = np.subtract(now.engine, then.engine)
    square = float(d @ d)
    if square == 0:
        return Movement(then.version, 0.0, float("nan"), float("inf"))
    ratio = float(x @ d) / square
    residual = x - ratio * d
    error = float(np.sqrt(residual @ residual / max(len(d) - 1, 1) / square))
    return Movement(then.version, _rms(d), ratio, error)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _anchor(state: dict[str, Any] | None) -> Anchor | None:
    return None if state is None else Anchor(state["version"], tuple(state["trainer"]), tuple(state["engine"]))
