"""Who answers held-out prompts: the policy, or where each task has an adapter of its own, the one that is for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

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
        if self._run.adapters is None or not self._run.state.task:
            return self._run.evaluate(task, split, prompts, samples)
        outcomes: dict[int, Outcome] = {}
        names = self._answerers(task, prompts)
        for name in dict.fromkeys(names):
            own = [index for index, answerer in enumerate(names) if answerer == name]
            self._serve(name)
            result = self._run.evaluate(task, split, [prompts[index] for index in own], samples)
            outcomes.update(zip(own, result.outcomes, strict=True))
        return replace(result, outcomes=tuple(outcomes[index] for index in range(len(prompts))))

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
            adapters.serve(name, self._run.state.tasks)
            self._run.deliver()
            self._key = adapters.key_for(name)


@contextmanager
def serving(run: "Run") -> Iterator[Serving]:
    """Within the block other adapters than the policy may be served; afterwards it is the policy again."""
    if run.adapters is not None and run.state.task:
        run.adapters.keep(run.state.task)
    served = Serving(run)
    yield served
    if served.has_delivered:
        assert run.adapters is not None
        run.policy.load_adapter(run.adapters.folder_of(run.state.task))
        run.deliver()
