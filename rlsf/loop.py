"""The loop, one iteration top to bottom: generate, score, remember, learn, deliver, evaluate, checkpoint.

This is the page to read first. `rlsf.run.Run` holds the parts that are used here.
"""

from rlsf.continual.replaying import (
    begin_with,
    draw,
    earlier_groups,
    remember,
    replayed_prompts,
    replayed_samples,
    stream_parts,
)
from rlsf.continual.tasks import current_task, enter_task, remember_prompts
from rlsf.evaluation.report import show_preflight, summarize
from rlsf.guarding import begin_guard, guard
from rlsf.preflight import preflight, try_reward
from rlsf.run import Run
from rlsf.scoring import (
    Answered,
    batch_metrics,
    count_tokens,
    make_groups,
    make_lessons,
    policy_metrics,
    score_rollouts,
)
from rlsf.stopping import end_if_converged, should_stop, start_counting


def train(run: Run) -> None:
    """Run (or continue) an experiment to its end and write summary.json.

    Raises:
        RlsfError, EngineError, RewardError: something broke, and the message says how to mend it. Everything up to the
            last checkpoint is safe; `rlsf resume` goes on from there.
    """
    if not run.state.prepared:
        prepare(run)
    run.directory.drop_previous()
    while run.state.iteration < run.stream.iterations and run.state.stop_reason is None:
        iterate(run)
    conclude(run)


def prepare(run: Run) -> None:
    """Iteration 0: measure the untouched model, settle the format on a few labels, ask what the signal knows."""
    metrics: dict[str, float] = {}
    with run.phase("try the reward"):
        try_reward(run)
    with run.phase("evaluate"):
        run.evaluate_test("base")
    if run.config.warm_start is not None:
        with run.phase("warm start"):
            metrics |= run.warm_start(*run.warm_started_first)
        with run.phase("sync"):
            run.deliver()
        with run.phase("evaluate"):
            run.evaluate_test("warm_start")
    run.policy.freeze_reference()
    if run.config.preflight.enabled:
        with run.phase("preflight"):
            run.state.preflight = [preflight(run, task) for task in run.graded_tasks]
            show_preflight(run.state.preflight, run.display)
    with run.phase("remember"):
        imported = begin_with(run)
        if imported:
            run.display.say(f"the replay store begins with {imported} groups of {run.config.replay.begin_with}")
    with run.phase("evaluate"):
        metrics |= run.validate(0)
    run.record(0, run.first_task, [], metrics)
    run.state.prepared = True
    with run.phase("checkpoint"):
        run.checkpoint()
    run.finish_preparation()


def iterate(run: Run) -> None:
    """Generate, score, remember, learn, deliver, evaluate, look out, checkpoint."""
    iteration = run.state.iteration + 1
    task, segment = run.stream.active(iteration), run.stream.segment(iteration)
    metrics: dict[str, float] = {}

    with run.phase("consolidate"):
        stream = stream_parts(run, iteration)
        name, noticed = current_task(run, stream, segment)
        metrics |= noticed | enter_task(run, name, iteration)
        remember_prompts(run, stream)
        start_counting(run.state, segment, iteration)
    with run.phase("guard"):
        begin_guard(run, task)

    with run.phase("generate"):
        parts = [*stream, *replayed_prompts(run, iteration, run.replayed_count)]
        rollouts = [run.generate(part, number, iteration) for number, part in enumerate(parts)]

    with run.phase("score"):
        answered = [
            Answered(part, groups, score_rollouts(run, part.task, part.prompts, groups, iteration))
            for part, groups in zip(parts, rollouts, strict=True)
        ]
        metrics |= batch_metrics(run, answered, fresh=len(stream))

    with run.phase("reference"):
        by_part = [make_groups(run, part, iteration) for part in answered]
        metrics |= policy_metrics(run, task, [group for groups in by_part[: len(stream)] for group in groups])
        answers = [group for groups in by_part for group in groups]
        fresh = [*answers, *(lesson for part in answered for lesson in make_lessons(run, part, iteration))]

    with run.phase("remember"):
        metrics |= remember(run, fresh, iteration)
        batch = [*fresh, *replayed_samples(run, len(answers), iteration)]
        run.strategies.replay(draw(run, run.strategies.distilled_groups, iteration, earlier_only=True))

    with run.phase("train"):
        update = run.algorithm.update(
            batch, iteration=iteration, seed=run.seed("update", iteration), earlier=earlier_groups(run, batch)
        )
        run.replay.update_priorities(update.priorities, iteration=iteration)
        metrics |= update.metrics | run.strategies.metrics()
        run.state.steps += int(update.metrics.get("train/steps", 0))

    with run.phase("sync"):
        metrics |= run.deliver()

    run.state.iteration = run.state.served_iteration = iteration
    with run.phase("evaluate"):
        validated = iteration % run.config.evaluation.every == 0 or iteration == segment.last
        if validated:
            metrics |= run.validate(iteration)
            if segment.number == len(run.stream.segments) and iteration < run.stream.iterations:
                run.state.stop_reason = should_stop(run.config.evaluation, run.state)

    with run.phase("guard"):
        metrics |= guard(run, task, iteration, metrics)

    if end_if_converged(run, segment, metrics) and not validated:
        with run.phase("evaluate"):
            metrics |= run.validate(iteration)
    if run.ends_segment(iteration):
        with run.phase("evaluate"):
            run.evaluate_row(iteration)

    run.record(iteration, task, fresh, metrics)
    with run.phase("checkpoint"):
        if run.is_checkpoint_due(iteration):
            run.checkpoint()
    run.finish_iteration(iteration, metrics, count_tokens(answered))


def conclude(run: Run) -> None:
    """Test the chosen adapter on held-out prompts of every task and write the summary."""
    with run.phase("evaluate"):
        run.select_final_adapter()
        if run.adapters is not None:
            run.adapters.keep(run.state.task, run.state.iteration)
        run.evaluate_test("final")
    summary = summarize(run)
    run.directory.write_json(run.directory.summary, summary)
    run.tracker.finish(summary)
