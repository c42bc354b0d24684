"""Verified delivery: after every sync, proof that the engine serves the weights that the trainer sent.

Runs have trained for weeks on an engine that never took an adapter over, while every curve looked healthy. So the
engine is questioned in four ways:

1. **Version.** It must name the version that was sent.
2. **Fingerprint**, where the engine has one: the sha256 of the tensors that its worker loaded must equal the file's.
3. **Agreement.** On a fixed probe of T tokens, every log-probability e of the engine must be within `tolerance` of the
   trainer's t. And rms(e − t) may be at most ten times the noise floor, or 1e-4 nats where that is more. The noise
   floor is the rms of e − t at the first check (version 0): the same weights in two programs. (In half precision:
   see `Limits`.)
4. **Movement.** A step of a small learning rate moves the probe by less than these limits, so agreement alone cannot
   tell new weights from old ones. Let d = t − t' be how far the trainer's probe moved since an earlier version,
   and x = e − e' how far the engine's did. Engine and trainer differ in kernels and precision, but by nearly the same
   amount in both versions, so that this bias cancels. Least squares through the origin, x = α·d, gives

       α = ⟨x, d⟩ / ⟨d, d⟩,   standard error s = √(Σ(x − α·d)² / (T − 1)) / ‖d‖.

   α is 1 when the weights arrived, 0 when the engine is stale, 2 when the adapter was merged twice. α outside (½, 3/2)
   is an error; that asks whether x is closer to d than to 0 or 2d in squared distance. The verdict counts only where
   the movement can be measured: rms(d) at least twice the noise floor, and s at most ⅛, so that ½ lies four standard
   errors from 0 and from 1. (Four times the noise floor in half precision, where each step rounds every weight and
   activation anew: d then holds a noise floor of its own, which draws α towards 0.)

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
from rollouts.types import LOWER_THE_RATE, Engine, EngineError, Rollout

# Spacing of the numbers next to 1 (2 to the minus mantissa bits).
_HALF_EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10}

Probe = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""(prompt ids, completion ids) of a few rollouts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far apart engine and trainer may be, in nats.

    In half precision, two programs with the same weights differ by much more than a small update moves them, and by
    other amounts at every update. Both must round their logits, and those from 16 to 32 come in steps of 16 epsilon
    (0.125 in bfloat16). Measured in bfloat16 (transformers engine, CPU, probes of 64 tokens, LoRA weights from none to
    large): rms 0.01 to 0.04 on the lab model and 0.05 to 0.09 on SmolLM2-135M, single tokens up to 0.18 and 0.49; never
    above 1.5 times the first check's noise floor. Hence no limit for a single token, an rms of 32 epsilon for the first
    check, which another model exceeds many times over, and 3 noise floors later on. What moves the probe by less is
    left to version and fingerprint.
    """

    worst: float | None
    """Largest |e − t| of one token; None is no limit."""
    rms: float
    """Largest rms(e − t); at the first check there is no other measure."""
    least_noise: float
    """The noise floor is at least this: a probe of near-certain tokens shows less noise than later versions."""
    growth: float
    """Largest rms(e − t) after the first check, in noise floors ..."""
    agreement: float
    """... or this, where it is more."""
    visible: float
    """Noise floors that the trainer's probe must move before the engine's movement is judged."""


def limits_for(dtype: str, tolerance: float | None) -> Limits:
    """Of an engine that computes in `dtype`; a given `tolerance` limits the worst token instead of the default."""
    epsilon = _HALF_EPSILON.get(dtype)
    if epsilon is None:
        return Limits(5e-3 if tolerance is None else tolerance, np.inf, 1e-6, 10, 1e-4, 2)
    return Limits(tolerance, 32 * epsilon if tolerance is None else np.inf, 2 * epsilon, 3, 0.0, 4)


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
        limits = limits_for(getattr(engine, "dtype", "float32"), self._config.tolerance)
        difference = self._check_agreement(anchor, limits)
        movements = self._check_movement(anchor, limits)
        return self._accept(anchor, difference, movements, limits)

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
                f"{LOWER_THE_RATE}"
            )
        return flat

    def _check_agreement(self, now: Anchor, limits: Limits) -> float:
        differences = np.abs(np.subtract(now.engine, now.trainer))
        worst = int(differences.argmax())
        if limits.worst is not None and differences[worst] > limits.worst:
            raise EngineError(
                f"engine and trainer disagree at version {now.version}: log-probability {now.engine[worst]:.5f} "
                f"against {now.trainer[worst]:.5f} on probe token {worst}, {differences[worst]:.2g} nats apart where "
                f"delivery.tolerance is {limits.worst:g}. The engine serves stale or altered weights, or the two "
                "compute with different precision: restart the engine and resume; if that does not help, start a new "
                "run with model.dtype: float32"
            )
        rms = _rms(differences)
        if rms > limits.rms:
            raise EngineError(
                f"engine and trainer disagree at version {now.version}: their log-probabilities on the probe differ by "
                f"{rms:.2g} nats (rms), more than {limits.rms:.2g}, the most that half precision explains. The engine "
                "serves stale or altered weights: restart it; if this model is less exact than that, set "
                "delivery.tolerance (nats, on the worst token), or start a new run with model.dtype: float32"
            )
        if self._noise is not None and rms > max(limits.growth * self._noise, limits.agreement):
            raise EngineError(
                f"engine and trainer disagree at version {now.version}: their log-probabilities on the probe differ by "
                f"{rms:.2g} nats (rms), {rms / self._noise:.0f} times as much as at first. The engine serves stale or "
                "altered weights: check that the adapter on disk is the trainer's newest, then restart the engine"
            )
        return float(differences[worst])

    def _check_movement(self, now: Anchor, limits: Limits) -> tuple[Movement, ...]:
        anchors = {anchor.version: anchor for anchor in (self._last, self._proven) if anchor is not None}
        movements = tuple(measure(anchor, now) for anchor in anchors.values())
        for movement in movements:
            if self._visible(movement, limits) and not 0.5 < movement.ratio < 1.5:
                stale = movement.ratio <= 0.5
                raise EngineError(
                    f"the engine did not take over adapter version {now.version}: since version {movement.since} the "
                    f"trainer's log-probabilities on the probe moved by {movement.trainer_rms:.2g} nats (rms), the "
                    f"engine's by {movement.ratio:.2f} ± {movement.error:.2f} times that, where 1 is right: it "
                    f"{'still answers with old weights' if stale else 'moved too far, as if merged twice'}. Check that "
                    "the adapter on disk is the trainer's newest, try the other engine.sync mode, restart the engine"
                )
        return movements

    def _visible(self, movement: Movement, limits: Limits) -> bool:
        """Whether the movement stands clear of the noise: see the module's text."""
        if self._noise is None:
            return False
        return movement.trainer_rms >= limits.visible * self._noise and movement.error <= 1 / 8

    def _accept(
        self, now: Anchor, difference: float, movements: tuple[Movement, ...], limits: Limits
    ) -> DeliveryReport:
        verdict: Literal["baseline", "moved", "too small to see"] = "too small to see"
        if self._last is None:
            verdict = "baseline"
            self._noise = max(_rms(np.subtract(now.engine, now.trainer)), limits.least_noise)
        elif any(self._visible(movement, limits) for movement in movements):
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
