"""The tasks of the lab model. Imports nothing heavy."""

import zlib
from pathlib import Path
from typing import Any

LAB_DIR = Path(__file__).parent / "lab"
"""The model that ships with rlsf: a folder that transformers and vLLM load."""


def _task(
    name: str, dataset: str, params: dict[str, Any], *, answer: str = "number", max_tokens: int = 8
) -> dict[str, Any]:
    source = {"kind": "reasoning_gym", "dataset": dataset, "params": params}
    return {"name": name, "source": source, "answer": {"kind": answer}, "max_tokens": max_tokens}


LAB_TASKS: dict[str, dict[str, Any]] = {
    task["name"]: task
    for task in (
        _task("reverse", "spell_backward", {"min_word_len": 3, "max_word_len": 8}, answer="text", max_tokens=10),
        _task("gcd", "gcd", {"min_value": 1, "max_value": 300}),
        _task("sum", "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}),
        _task("product", "products", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
        _task("bits", "count_bits", {"min_n": 1, "max_n": 65_535}),
        _task("three_terms", "chain_sum", {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}),
        _task("lcm", "lcm", {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 100}),
    )
}
"""Ready-made tasks by name: each value is a `TaskConfig` in plain form."""

MIXTURE = {"reverse": 0.15, "gcd": 0.20, "sum": 0.35, "product": 0.15, "bits": 0.15}
"""Share of each task in the training data. `three_terms` and `lcm` are never trained on."""


def is_reserved(question: str) -> bool:
    """Whether a problem was kept out of the lab model's training data: a quarter of them, chosen by CRC-32."""
    return zlib.crc32(question.encode()) % 4 == 0
