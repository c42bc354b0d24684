"""Who answers held-out prompts: the policy, or where each task has an adapter of its own, the one that is for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlsf.continual.matrix import KL_PROMPTS, kl_terms
from rlsf.evaluation.evaluate import Evaluation, Outcome
from rollouts.types import Prompt

if TYPE_CHECKING:
    from rlsf.run import Run
    from rlsf.tasks import Task


class Serving:
    """Delivers adapters as they are needed."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._key: str | None = None

    @property
    def has_delivered(self) -> bool:
        return self._key is not None

    def evaluate(self, task: "Task", split: str, prompts: Sequence[Prompt], samples: int) -> Evaluation:
        """See `Run.evaluate`, which asks whoever is served."""
        outcomes: dict[int, Outcome] = {}
        for own in self._each_served(task, prompts):
            result = self._run.evaluate(task, split, [prompts[index] for index in own], samples)
            outcomes.update(zip(own, result.outcomes, strict=True))
        return replace(result, outcomes=tuple(outcomes[index] for index in range(len(prompts))))

    def kl_from_base(self, task: "Task") -> float:
        """Of those who answer the test prompts of `task`; see `rlsf.continual.matrix.kl_terms`."""
        prompts = task.test[:KL_PROMPTS]
        terms = [
            kl_terms(self._run, task, [prompts[index] for index in own]) for own in self._each_served(task, prompts)
        ]
        return float(np.concatenate(terms).mean()) if any(map(len, terms)) else 0.0

    def _each_served(self, task: "Task", prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Serves one adapter after the other, and says which of the prompts are its to answer."""
        if self._run.adapters is None or not self._run.state.task:
            yield list(range(len(prompts)))
            return
        names = self._answerers(task, prompts)
        for name in dict.fromkeys(names):
            self._serve(name)
            yield [index for index, answerer in enumerate(names) if answerer == name]

    def _answerers(self, task: "Task", prompts: Sequence[Prompt]) -> list[str]:
        """By prompt, the task whose adapter answers it."""
        adapters = self._run.adapters
        assert adapters is not None
        if adapters.routes:
            return adapters.route(self._run.embeddings.prompts(prompts))
        return [task.name] * len(prompts)

    def _serve(self, name: str) -> None:
        adapters = self._run.adapters
        assert adapters is not None
        if adapters.key_for(name) != self._key:
            if self._key is None:
                adapters.set_aside(self._run.state.task)
            adapters.serve(name, self._run.state.tasks)
            self._run.deliver()
            self._key = adapters.key_for(name)


@contextmanager
def serving(run: "Run") -> Iterator[Serving]:
    """Within the block other adapters than the policy may be served; afterwards it is the policy again."""
    served = Serving(run)
    yield served
    if served.has_delivered:
        assert run.adapters is not None
        run.adapters.take_back()
        run.deliver()
