"""The loop, one iteration top to bottom: generate, score, remember, learn, deliver, evaluate, checkpoint.

This is the page to read first. `rlsf.run.Run` holds the parts that are used here.
"""

from rlsf.evaluation.report import show_preflight, summarize
from rlsf.guarding import begin_guard, guard
from rlsf.preflight import preflight, try_reward
from rlsf.run import Run
from rlsf.scoring import (
    count_tokens,
    make_groups,
    make_lessons,
    policy_metrics,
    reward_metrics,
    score_rollouts,
    vote_metrics,
)
from rlsf.stopping import should_stop


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
            metrics |= run.warm_start()
        with run.phase("sync"):
            run.deliver()
        with run.phase("evaluate"):
            run.evaluate_test("warm_start")
    run.policy.freeze_reference()
    if run.config.preflight.enabled:
        with run.phase("preflight"):
            run.state.preflight = [preflight(run, task) for task in run.graded_tasks]
            show_preflight(run.state.preflight, run.display)
    with run.phase("evaluate"):
        metrics |= run.validate(0)
    run.record(0, run.stream.tasks[0], [], metrics)
    run.state.prepared = True
    with run.phase("checkpoint"):
        run.checkpoint()
    run.finish_preparation()


def iterate(run: Run) -> None:
    """Generate, score, remember, learn, deliver, evaluate, look out, checkpoint."""
    iteration = run.state.iteration + 1
    task = run.stream.active(iteration)
    metrics: dict[str, float] = {}

    with run.phase("guard"):
        begin_guard(run, task)

    with run.phase("generate"):
        prompts = task.train_batch(iteration, run.config.loop.prompts)
        rollouts = run.engine.generate(prompts, run.sampling(task), seed=run.seed("generate", iteration))

    with run.phase("score"):
        scored = score_rollouts(run, task, prompts, rollouts, iteration)
        metrics |= reward_metrics(rollouts, scored) | vote_metrics(run, task, rollouts)

    with run.phase("reference"):
        answers = make_groups(run, task, prompts, rollouts, scored, iteration)
        metrics |= policy_metrics(run, task, answers)
        fresh = [*answers, *make_lessons(run, task, scored, iteration)]

    with run.phase("remember"):
        run.replay.add(fresh, iteration=iteration)
        replayed = run.replay.draw(
            round(run.config.replay.ratio * len(answers)),
            iteration=iteration,
            policy_version=run.state.policy_version,
            exclude_iteration=iteration,
        )

    with run.phase("train"):
        update = run.algorithm.update([*fresh, *replayed], iteration=iteration, seed=run.seed("update", iteration))
        run.replay.update_priorities(update.priorities, iteration=iteration)
        metrics |= update.metrics
        run.state.steps += int(update.metrics.get("train/steps", 0))

    with run.phase("sync"):
        metrics |= run.deliver()

    run.state.iteration = run.state.served_iteration = iteration
    with run.phase("evaluate"):
        if iteration % run.config.evaluation.every == 0 or iteration == run.stream.iterations:
            metrics |= run.validate(iteration)
            if task is run.stream.tasks[-1] and iteration < run.stream.iterations:
                run.state.stop_reason = should_stop(run.config.evaluation, run.state)

    with run.phase("guard"):
        metrics |= guard(run, task, iteration, metrics)

    run.record(iteration, task, fresh, metrics)
    with run.phase("checkpoint"):
        if run.is_checkpoint_due(iteration):
            run.checkpoint()
    run.finish_iteration(iteration, metrics, count_tokens(rollouts))


def conclude(run: Run) -> None:
    """Test the chosen adapter on held-out prompts of every task and write the summary."""
    with run.phase("evaluate"):
        run.select_final_adapter()
        run.evaluate_test("final")
    summary = summarize(run)
    run.directory.write_json(run.directory.summary, summary)
    run.tracker.finish(summary)
