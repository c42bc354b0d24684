"""The replay store against torchrl's replay buffers, at 10^4, 10^5 and 10^6 experiences.

    python -m benchmarks.replay                          # about 10 GB of disk, and most of an hour
    python -m benchmarks.replay --sizes 10000 100000

torchrl is left out where it cannot be imported. None of its wheels is built for torch 2.13, so its C++ part is built
here: pip install pybind11 'tensordict<0.14' pyvers cloudpickle, then
pip install --no-build-isolation --no-deps git+https://github.com/pytorch/rl@v0.13.3

An experience is a group: a prompt of 48 tokens with 4 rollouts of 64, each token with its log-probability, each rollout
with its text and evidence. Both draw by priority (alpha 0.6). torchrl stores the same numbers and no text: `memmap` as
tensors of fixed shape in files, `stack` as a list of tensordicts in memory (what its GRPO recipe does; it cannot be
saved, and takes too much memory beyond 10^5). Every figure is of a process of its own; what takes milliseconds is
measured in rounds, one library after the other, and the median of the rounds stands in the table.

rlsf's insertion is durable: what `add` returned from survives a kill. torchrl's buffers survive as far as the last
`dumps`, so that stands beside it.
"""

import argparse
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cells import RUNS
from benchmarks.results import Row, write_results
from reward.types import Score
from rlsf.config.replay import PrioritizedDraw, ReplayConfig
from rlsf.experience import Experience, Group
from rlsf.replay import ReplayStore
from rollouts.types import Prompt, Rollout, SamplingParams

PROMPT_TOKENS, ROLLOUTS, TOKENS = 48, 4, 64
BATCH = 64
"""Groups added at a time, as by an iteration of 64 prompts."""
DRAWN = 256
SIZES = (10_000, 100_000, 1_000_000)
STACK_LIMIT = 100_000
ROUNDS = 5
LATER = 10**6
"""An iteration behind all those that fill a store."""
LIBRARIES = ("rlsf", "memmap", "stack")
FOLDER = RUNS / "replay"
WORDS = (
    "so",
    "the",
    "sum",
    "of",
    "both",
    "numbers",
    "is",
    "their",
    "difference",
    "we",
    "take",
    "away",
    "then",
    "answer",
)


class Sample:
    """Numbers and texts like those of real rollouts; 512 different groups, given out again under other ids."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.prompt_ids = rng.integers(0, 49_152, (512, PROMPT_TOKENS)).astype(np.int32)
        self.completion_ids = rng.integers(0, 49_152, (512, ROLLOUTS, TOKENS)).astype(np.int32)
        self.logprobs = -rng.exponential(0.5, (512, ROLLOUTS, TOKENS)).astype(np.float32)
        self.rewards = rng.integers(0, 2, (512, ROLLOUTS)).astype(np.float32)
        self.priorities = rng.random(1024).astype(np.float32)
        self.texts = [[" ".join(rng.choice(WORDS, TOKENS)) for _ in range(ROLLOUTS)] for _ in range(512)]

    def batches(self, first: int, last: int) -> Iterator[range]:
        for start in range(first, last, BATCH):
            yield range(start, min(start + BATCH, last))

    def group(self, number: int, iteration: int) -> Group:
        kind = number % 512
        name, prompt_ids = f"g{number}", tuple(self.prompt_ids[kind].tolist())
        return Group(
            id=name,
            prompt=Prompt(id=f"p{number}", task=f"task{number % 4}", content=self.texts[kind][0]),
            experiences=tuple(
                Experience(
                    rollout=Rollout(
                        id=f"{name}:{i}",
                        prompt_id=f"p{number}",
                        group_id=name,
                        prompt_ids=prompt_ids,
                        completion_ids=tuple(self.completion_ids[kind, i].tolist()),
                        text=self.texts[kind][i],
                        logprobs=tuple(self.logprobs[kind, i].tolist()),
                        finish_reason="stop",
                        policy_version=iteration,
                        sampling=SamplingParams(n=ROLLOUTS),
                    ),
                    score=Score(
                        value=float(self.rewards[kind, i]),
                        components={"majority": float(self.rewards[kind, i])},
                        evidence={"votes": 3, "of": ROLLOUTS},
                    ),
                    task=f"task{number % 4}",
                    iteration=iteration,
                    priority=float(self.priorities[number % 1024]),
                )
                for i in range(ROLLOUTS)
            ),
        )

    def tensors(self, numbers: range) -> Any:
        """What torchrl stores of the same groups: a TensorDict of (len(numbers),)."""
        from tensordict import TensorDict

        kinds = np.asarray(numbers) % 512
        return TensorDict(
            {
                "number": torch.tensor(list(numbers)),
                "iteration": torch.full((len(kinds),), numbers[0] // BATCH),
                "prompt_ids": torch.from_numpy(self.prompt_ids[kinds]),
                "completion_ids": torch.from_numpy(self.completion_ids[kinds]),
                "logprobs": torch.from_numpy(self.logprobs[kinds]),
                "rewards": torch.from_numpy(self.rewards[kinds]),
                "priority": torch.from_numpy(self.priorities[np.asarray(numbers) % 1024]),
            },
            batch_size=[len(kinds)],
        )


class Store:
    """rlsf's."""

    def __init__(self, folder: Path, capacity: int) -> None:
        config = ReplayConfig(capacity=capacity, draw=PrioritizedDraw(alpha=0.6, age_decay=1.0))
        self._store = ReplayStore.open(folder / "rlsf", config, seed=0)
        self._sample = Sample()
        self._drawn: list[Group] = []

    def fill(self, first: int, last: int) -> float:
        """Seconds that the insertions took, durable ones."""
        seconds = 0.0
        for numbers in self._sample.batches(first, last):
            iteration = numbers[0] // BATCH + 1
            groups = [self._sample.group(number, iteration) for number in numbers]
            seconds += timed(partial(self._store.add, groups, iteration=iteration))
            if iteration % 10 == 0:  # as a run does behind each checkpoint
                seconds += timed(partial(self._store.prune_journal, iteration - 1))
        return seconds

    def draw(self) -> int:
        self._drawn = self._store.draw(DRAWN, iteration=LATER, policy_version=0)
        return sum(len(experience.rollout.logprobs) for group in self._drawn for experience in group.experiences)

    def update(self) -> None:
        new = dict(zip((group.id for group in self._drawn), np.linspace(0.1, 1, DRAWN).tolist(), strict=True))
        self._store.update_priorities(new, iteration=LATER)

    def save(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        self._store.close()


class TorchRL:
    """Its prioritized replay buffer, with one of two storages."""

    def __init__(self, folder: Path, capacity: int, storage: str) -> None:
        from torchrl.data import LazyMemmapStorage, LazyStackStorage, TensorDictPrioritizedReplayBuffer

        self._folder = folder / f"{storage}.saved"
        self._stack = storage == "stack"
        self._buffer = TensorDictPrioritizedReplayBuffer(
            alpha=0.6,
            beta=0.4,
            storage=LazyStackStorage(capacity)
            if self._stack
            else LazyMemmapStorage(capacity, scratch_dir=folder / "memmap", existsok=True),
            batch_size=DRAWN,
            priority_key="priority",
        )
        self._sample, self._drawn = Sample(), None
        if self._folder.exists():
            self._buffer.loads(self._folder)

    def fill(self, first: int, last: int) -> float:
        from tensordict import lazy_stack

        seconds = 0.0
        for numbers in self._sample.batches(first, last):
            data = self._sample.tensors(numbers)
            if self._stack:
                data = lazy_stack([group.clone() for group in data.unbind(0)])
            seconds += timed(partial(self._buffer.extend, data))
        return seconds

    def draw(self) -> int:
        self._drawn = self._buffer.sample()
        return int(self._drawn["logprobs"].numel())

    def update(self) -> None:
        self._drawn["priority"] = torch.linspace(0.1, 1, DRAWN)
        self._buffer.update_tensordict_priority(self._drawn)

    def save(self) -> None:
        self._buffer.dumps(self._folder)

    def close(self) -> None:
        pass


def open_buffer(library: str, folder: Path, capacity: int) -> Store | TorchRL:
    return Store(folder, capacity) if library == "rlsf" else TorchRL(folder, capacity, library)


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def resident() -> tuple[int, int]:
    """MiB of this process: of its own, and of files that are mapped (which the system takes back when it must)."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(fields[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def child(action: str, library: str, size: int, folder: Path) -> dict[str, float]:
    """In a process of its own: fill an empty buffer up to `size`, or use one that was filled."""
    if library != "rlsf":
        importlib.import_module("torchrl.data")  # the import is not what is measured
        Sample().tensors(range(1))
    before = resident()
    start = time.perf_counter()
    buffer = open_buffer(library, folder, size)
    opened = time.perf_counter() - start
    if action == "fill":
        figures = fill(buffer, library, size, folder)
        return figures | (use(buffer, before) if library == "stack" else {})
    return {"open": opened, "memory": resident()[0] - before[0], **use(buffer, before)}


def fill(buffer: Store | TorchRL, library: str, size: int, folder: Path) -> dict[str, float]:
    seconds = buffer.fill(0, size)
    more = size // 10
    evicting = buffer.fill(size, size + more)
    figures = {"insert": seconds / size, "evict": evicting / more}
    if library == "stack":
        return figures
    return figures | {"save": timed(buffer.save), "disk": size_on_disk(folder)}


def use(buffer: Store | TorchRL, before: tuple[int, int]) -> dict[str, float]:
    draws, updates = [], []
    for _ in range(6):
        start = time.perf_counter()
        tokens = buffer.draw()
        draws.append(time.perf_counter() - start)
        assert tokens == DRAWN * ROLLOUTS * TOKENS, tokens
        updates.append(timed(buffer.update))
    used = resident()
    return {
        "first draw": draws[0],
        "draw": float(np.median(draws[1:])),
        "update": float(np.median(updates)),
        "memory in use": used[0] - before[0],
        "mapped in use": used[1] - before[1],
    }


def too_large(library: str, size: int) -> bool:
    return library == "stack" and size > STACK_LIMIT


def call(action: str, library: str, size: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.replay", "--child", action, library, str(size), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(sizes: Sequence[int]) -> dict[int, dict[str, dict[str, float]]]:
    figures: dict[int, dict[str, dict[str, float]]] = {}
    torchrl = importlib.util.find_spec("torchrl") is not None
    for size in sizes:
        libraries = [name for name in LIBRARIES if name == "rlsf" or (torchrl and not too_large(name, size))]
        folder = FOLDER / str(size)
        shutil.rmtree(folder, ignore_errors=True)
        figures[size] = {}
        for library in libraries:
            (folder / library).mkdir(parents=True)
            figures[size][library] = call("fill", library, size, folder / library)
        opened = [name for name in libraries if name != "stack"]
        rounds = [{library: call("use", library, size, folder / library) for library in opened} for _ in range(ROUNDS)]
        for library in opened:
            for name in rounds[0][library]:
                figures[size][library][name] = float(np.median([by[library][name] for by in rounds]))
        shutil.rmtree(folder)
        print_table(figures)
    return figures


SHOWN: tuple[tuple[str, str, str, float], ...] = (
    ("insert", "insertion, a group", "ms", 1e3),
    ("evict", "insertion into a full one", "ms", 1e3),
    ("save", "to be safe from a kill, beyond insertion", "s", 1),
    ("draw", f"draw of {DRAWN}, with payload", "ms", 1e3),
    ("first draw", "the first after opening", "ms", 1e3),
    ("update", f"{DRAWN} priorities", "ms", 1e3),
    ("open", "opening", "s", 1),
    ("memory", "memory once open", "MiB", 1),
    ("memory in use", "after six draws", "MiB", 1),
    ("mapped in use", "mapped files in memory then", "MiB", 1),
    ("disk", "on disk", "MiB", 2**-20),
)


def print_table(figures: dict[int, dict[str, dict[str, float]]]) -> None:
    for size, by_library in figures.items():
        table = Table(title=f"{size:,} groups", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("", "unit", *by_library, *[f"{name} / rlsf" for name in by_library if name != "rlsf"]):
            table.add_column(heading, justify="left" if heading in ("", "unit") else "right")
        for key, name, unit, factor in SHOWN:
            values = [by[key] * factor if key in by else None for by in by_library.values()]
            ratios = [shown(None if value is None or not values[0] else value / values[0]) for value in values[1:]]
            table.add_row(name, unit, *map(shown, values), *ratios)
        Console().print(table)


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def rows_of(figures: dict[int, dict[str, dict[str, float]]]) -> list[Row]:
    return [
        Row(f"{library}, {size} groups: {name}", by[key] * factor, unit)
        for size, by_library in figures.items()
        for library, by in by_library.items()
        for key, name, unit, factor in SHOWN
        if key in by
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--again", action="store_true", help="as it is anyway: nothing is kept between runs")
    parser.add_argument("--child", nargs=4, metavar=("ACTION", "LIBRARY", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        action, library, size, folder = arguments.child
        torch.set_num_threads(1)
        print(json.dumps(child(action, library, int(size), Path(folder))))
        return
    figures = measure(arguments.sizes)
    print(f"written to {write_results('replay', rows_of(figures))}")


if __name__ == "__main__":
    main()
