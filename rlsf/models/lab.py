"""The lab model: a Llama of 0.9 million parameters that half knows some procedural tasks.

It is small enough that a whole reinforcement-learning run takes about a minute on two cores, and its competence is
partial on purpose, so that there is something left to learn and something to lose. Its weights lie beside this file in
`lab/`, and `lab/README.md` says what they can do.

    python -m rlsf.models.lab train FOLDER    makes them again from the fixed seed
    python -m rlsf.models.lab measure         measures them on every lab task
"""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlsf.models.lab_tasks import LAB_DIR, LAB_TASKS, MIXTURE, is_reserved
from rlsf.models.loading import load_base_model, load_tokenizer, quiet_transformers

SEED = 20_000_000
"""reasoning-gym draws problem i of seed s from `Random(s + i)`; a run that uses a small seed draws from others."""
STEPS = 1000
BATCH = 128
LEARNING_RATE = 3e-3
"""After WARMUP steps; then it falls with the square root of the step, so that STEPS can be chosen afterwards."""
WARMUP = 100
THREADS = 1
"""Sums are split between threads, so the number of threads changes the last bits of the weights."""

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
ALPHABET = (*map(chr, range(32, 127)), "\n")
WORDINGS = (
    "Find the Greatest Common Divisor (GCD) of these numbers: ",
    ". Give only the GCD as your final answer.",
    "State the final answer to the following arithmetic problem: ",
    "Solve the following multiplication: ",
    ". Give only the result as your final answer.",
    "Spell this word backward (example: sun -> nus): ",
    "How many 1 bits are there in the binary representation of the number ",
    "Find the Least Common Multiple (LCM) of these numbers: ",
)
"""Fixed wordings of the tasks, one token each: a prompt then costs 10 to 20 tokens instead of 60 to 110."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""A user's or system's turn ends with a newline, the model's with <eos>."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII and newline as single tokens, plus one token per fixed wording. Any other character is <unk>."""
    vocab = {token: index for index, token in enumerate(SPECIAL + ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(wording, normalized=False) for wording in WORDINGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, float32, drawn from SEED."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,  # the smallest that vLLM's CPU attention takes
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Competence:
    """What a model knows of one task, as shares of prompts (of samples for `pass_at_1`), at temperature 1."""

    task: str
    prompts: int
    pass_at_1: float
    majority: float
    """Share of prompts whose most frequent answer is right; truncated samples cast no vote."""
    greedy: float
    pass_at_n: float
    most_frequent: float
    """What always giving the most frequent right answer would score."""


def problems(task: str, seed: int) -> Iterator[tuple[str, str]]:
    """Questions and answers of a lab task without end, duplicates included."""
    import reasoning_gym

    source = LAB_TASKS[task]["source"]
    data = reasoning_gym.create_dataset(source["dataset"], seed=seed, size=sys.maxsize, **source["params"])
    index = 0
    while True:
        entry = data[index]
        yield entry["question"], entry["answer"]
        index += 1


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def batches(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Input ids and labels, both (BATCH, longest row), padded on the right; labels are -100 outside the answer."""
    streams = {task: (pair for pair in problems(task, SEED) if not is_reserved(pair[0])) for task in MIXTURE}
    rng = np.random.default_rng(SEED)
    pad = tokenizer.pad_token_id
    while True:
        rows = []
        for task in rng.choice(list(MIXTURE), size=BATCH, p=list(MIXTURE.values())):
            question, answer = next(streams[task])
            rows.append((prompt_ids(tokenizer, question), [*tokenizer.encode(answer), tokenizer.eos_token_id]))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        fill = [width - len(prompt) - len(answer) for prompt, answer in rows]
        inputs = [prompt + answer + [pad] * n for (prompt, answer), n in zip(rows, fill, strict=True)]
        labels = [[-100] * len(prompt) + answer + [-100] * n for (prompt, answer), n in zip(rows, fill, strict=True)]
        yield torch.tensor(inputs), torch.tensor(labels)


def train(steps: int, log: Callable[[int, float], None]) -> LlamaForCausalLM:
    """Next-token loss on the answers; `log` gets each step and its loss (nats per answer token)."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (WARMUP / (step + 1)) ** 0.5)
    )
    for step, (inputs, labels) in enumerate(islice(batches(tokenizer), steps), start=1):
        loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log(step, loss.item())
    return model


def save(model: LlamaForCausalLM, folder: Path, steps: int = STEPS) -> None:
    """Write weights (float16, for a small file; config.json asks for float32 at load), config, tokenizer, manifest."""
    with quiet_transformers():
        half = LlamaForCausalLM(model.config).half()
        half.load_state_dict(model.state_dict())
        half.save_pretrained(folder)
        # chat template inside tokenizer_config.json: the package's data files are *.json and *.safetensors
        build_tokenizer().save_pretrained(folder, save_jinja_files=False)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)  # safetensors writes 0600, which a wheel would keep
    config = json.loads((folder / "config.json").read_text())
    _write_json(folder / "config.json", config | {"dtype": "float32"})
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    facts = {"seed": SEED, "steps": steps, "batch": BATCH, "threads": THREADS, "torch": torch.__version__}
    _write_json(folder / "manifest.json", facts | {"sha256": digest})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def evaluation_problems(task: str, count: int, *, reserved: bool | None = None) -> list[tuple[str, str]]:
    """Distinct problems drawn apart from the training data's; only those (not) in the reserved quarter if asked for."""
    chosen: dict[str, str] = {}
    for question, answer in problems(task, SEED // 2):
        if reserved is None or is_reserved(question) is reserved:
            chosen.setdefault(question, answer)
        if len(chosen) == count:
            return list(chosen.items())
    raise AssertionError("problems() never ends")


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    *,
    max_tokens: int,
    n: int = 1,
    greedy: bool = False,
    seed: int = 0,
) -> list[list[str | None]]:
    """`n` answers to each question at temperature 1; None where it was cut off before its end."""
    rows = [prompt_ids(tokenizer, question) for question in questions]
    inputs = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawing = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "num_return_sequences": n}
        output = model.generate(**inputs, max_new_tokens=max_tokens, **drawing)
    answers = []
    for row in output[:, inputs["input_ids"].shape[1] :].tolist():
        ended = tokenizer.eos_token_id in row
        answers.append(tokenizer.decode(row[: row.index(tokenizer.eos_token_id)]).strip() if ended else None)
    return [answers[i : i + n] for i in range(0, len(answers), n)]


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: str, pairs: Sequence[tuple[str, str]], n: int = 8
) -> Competence:
    """Sample every question `n` times at temperature 1 and once greedily; an answer is right if it is the reference."""
    questions, references = zip(*pairs, strict=True)
    max_tokens = LAB_TASKS[task]["max_tokens"]
    groups = sample(model, tokenizer, questions, max_tokens=max_tokens, n=n)
    first = sample(model, tokenizer, questions, max_tokens=max_tokens, greedy=True)
    right = np.array([[answer == ref for answer in group] for group, ref in zip(groups, references, strict=True)])
    votes = [Counter(answer for answer in group if answer).most_common(1) for group in groups]
    return Competence(
        task=task,
        prompts=len(pairs),
        pass_at_1=float(right.mean()),
        majority=float(np.mean([bool(v) and v[0][0] == ref for v, ref in zip(votes, references, strict=True)])),
        greedy=float(np.mean([answer[0] == ref for answer, ref in zip(first, references, strict=True)])),
        pass_at_n=float(right.any(axis=1).mean()),
        most_frequent=Counter(references).most_common(1)[0][1] / len(references),
    )


def report(folder: Path, prompts: int) -> str:
    """A table in Markdown: every lab task, and pass@1 apart for problems in and out of the training data's range."""
    model, tokenizer = load_base_model(folder, "float32", "cpu"), load_tokenizer(folder)
    columns = ["task", "share of training", "pass@1", "majority@8", "greedy", "pass@8", "most frequent answer"]
    columns += ["pass@1, trainable", "pass@1, kept out"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for task in LAB_TASKS:
        known = measure(model, tokenizer, task, evaluation_problems(task, prompts))
        apart = [
            measure(model, tokenizer, task, evaluation_problems(task, prompts, reserved=reserved)).pass_at_1
            for reserved in (False, True)
        ]
        figures = (known.pass_at_1, known.majority, known.greedy, known.pass_at_n, known.most_frequent, *apart)
        share = f"{MIXTURE[task]:.0%}" if task in MIXTURE else "none"
        lines.append(f"| {task} | {share} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m rlsf.models.lab", description="Train or measure the lab model.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train it from the fixed seed (about ten minutes on one core)")
    training.add_argument("folder", type=Path, help="where the weights, the tokenizer and manifest.json go")
    training.add_argument("--steps", type=int, default=STEPS)
    measuring = commands.add_parser("measure", help="print what it can do, as a table")
    measuring.add_argument("folder", type=Path, nargs="?", default=LAB_DIR)
    measuring.add_argument("--prompts", type=int, default=200, help="distinct problems per task")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    if options.command == "measure":
        print(report(options.folder, options.prompts))
        return
    started = time.monotonic()

    def log(step: int, loss: float) -> None:
        if step % 50 == 0 or step == options.steps:
            print(f"step {step} of {options.steps}, loss {loss:.3f}, {time.monotonic() - started:.0f} s", flush=True)

    save(train(options.steps, log), options.folder, options.steps)


if __name__ == "__main__":
    main()
