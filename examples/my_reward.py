"""A reward of one's own, with TRL's signature: even numbers, and the shorter the better.

rlsf run configs/smoke.yaml --name own --set "reward={kind: function, path: examples/my_reward.py:short_and_even}"
"""


def short_and_even(completions, **columns):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(text.strip().isdecimal() and int(text) % 2 == 0) - 0.01 * len(text) for text in texts]
