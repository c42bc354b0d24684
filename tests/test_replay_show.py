"""What `rlsf replay` prints, at 80 columns."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from rlsf.config.replay import ReplayConfig
from rlsf.replay import ReplayStore
from rlsf.replay.show import print_group, print_stats, visible
from tests.replay_groups import make_group


def printed(show, what, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    show(what, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    text.encode("utf-8")
    assert max(map(len, text.splitlines())) <= width
    return text


def test_stats_of_an_empty_and_of_a_long_run(tmp_path):
    with ReplayStore.open(tmp_path, ReplayConfig(capacity=2000), seed=0) as store:
        assert "0 of 2,000 (fifo)" in printed(print_stats, store)
        for iteration in range(1, 96):
            task = "a task with quite a long name, longer than a column" if iteration % 2 else "gcd"
            store.add([make_group(f"g{iteration}", iteration=iteration, task=task)], iteration=iteration)
        text = printed(print_stats, store)
    assert "95 of 2,000 (fifo)" in text and "policy versions  0 to 94" in text
    assert "1–10" in text and "91–95" in text and text.count("█" * 30) == 9
    assert "190" not in text  # rollouts are counted by task: 48 and 47 groups of 2
    assert "96" in text and "94" in text and "0.5" in text


def test_stats_show_the_policy_and_the_largest_clusters(tmp_path):
    with ReplayStore.open(tmp_path, ReplayConfig(keep="diverse"), seed=0) as store:
        groups = [make_group(f"g{i}") for i in range(100)]
        store.add(groups, iteration=1, clusters={group.id: i % 13 for i, group in enumerate(groups[:60])})
        text = printed(print_stats, store)
    assert "100 of 10,000 (diverse)" in text and "Clusters" in text
    assert "none │     40" in text and "4 smaller" in text


def test_a_group_shows_why_each_answer_got_its_reward():
    group = make_group(
        "g1",
        rewards=(0.125, None),
        text="It is [bold]2[/bold]\x1b[2J\0\ud800, 等于二",
        evidence={
            "votes": {"2": 5, "3": 1},
            "winner": True,
            "grade": 1,
            "parsed": None,
            "critique": "First line.\nSecond [line].",
            "samples": [3, 4.25, "x"],
            "judgements": ["a judgement that is too long to be put on one line with others", "short"],
            "spans": [],
            "nested": {},
        },
    )
    first, second = group.experiences
    group = replace(
        group,
        experiences=(first, replace(second, rollout=replace(second.rollout, text="", finish_reason="length"))),
    )
    text = printed(print_group, group)
    for expected in (
        "group g1",
        "task sums · iteration 1 · policy version 0 · priority 1 · temperature 1",
        "prompt prompt-g1",
        "1 + 1 =",
        "level: 3",
        "1/2 · reward 0.125",
        r"It is [bold]2[/bold]\x1b[2J\x00\ud800, 等于二",
        "2 tokens · finished by stop · mean log p -0.375, reference -0.375",
        "majority: 1",
        "    2: 5",
        "winner: yes",
        "grade: 1",
        "parsed: –",
        "Second [line].",
        "samples: 3, 4.25, x",
        "2: short",
        "spans: (none)",
        "nested: (none)",
        "2/2 · no opinion",
        "(empty)",
        "cut off: it has no answer",
    ):
        assert expected in text, expected


def test_chat_prompts_show_their_roles():
    group = make_group("g1")
    content = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"})
    text = printed(print_group, replace(group, prompt=replace(group.prompt, content=content)))
    assert "system" in text and "Be brief." in text and "1 + 1?" in text


@pytest.mark.parametrize(
    ("text", "shown"), [("a\r\x07b\n\tc", "a\\r\\x07b\n\tc"), ("é👩‍🔬", "é👩‍🔬"), ("\x9b", "\\x9b")]
)
def test_control_characters_are_written_out(text, shown):
    assert visible(text) == shown
