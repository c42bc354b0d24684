"""What the documentation shows is valid: every YAML block, and every link to a file of the repository."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsf.config.clustering import ClusteringConfig
from rlsf.config.load import load_config
from rlsf.offline.config import SignalsConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KEYS = {"answer": "tasks.0.answer"}
"""Where a fragment belongs that stands alone in a page."""
SECTIONS = {"signals": SignalsConfig, "clusters": ClusteringConfig}
"""What a file of its own holds, by a key of it."""


def fragments() -> Iterator[Any]:
    """Parts of YAML blocks: alternatives under each other begin with the same key."""
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)):
            for part in re.split(r"\n(?=reward:)", block):
                yield pytest.param(part, id=f"{page.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize("fragment", fragments())
def test_configs_in_the_documentation_are_valid(fragment: str) -> None:
    found = yaml.safe_load(fragment)
    for key, section in SECTIONS.items():
        if key in found:
            section.model_validate(found)
            return
    load_config(
        ROOT / "configs" / "smoke.yaml",
        [f"{KEYS.get(key, key)}={json.dumps(value)}" for key, value in found.items()],
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_documentation_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8"))
    targets = [(page.parent / link if link else page, anchor) for link, anchor in links]
    assert [target for target, _ in targets if not target.exists()] == []
    assert [(target, anchor) for target, anchor in targets if anchor and anchor not in anchors(target)] == []


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "rewards").glob("*.md")), ids=lambda page: page.stem)
def test_every_family_of_rewards_says_what_it_gave(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "<!--" not in text
    _, _, measured = text.partition("\n## Measured\n")
    assert re.search(r"\d\.\d\d", measured.partition("\n## ")[0])


FIGURE = re.compile(r"([+−]?\d\.\d+)\** \[([+−]?\d\.\d+), ([+−]?\d\.\d+)\]")
"""A value and its interval."""


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "signals.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_figures_with_an_interval_are_those_that_were_measured(page: Path) -> None:
    """signals.md shows what a command prints."""
    shown = FIGURE.findall(page.read_text("utf-8"))
    assert [figures for figures in shown if not any(is_written(figures, row) for row in measured_rows())] == []


def is_written(figures: tuple[str, ...], row: Sequence[float]) -> bool:
    """Whether the figures are those of the row, rounded."""
    return all(
        abs(float(text.replace("−", "-")) - value) <= 0.5 * 10 ** -len(text.partition(".")[2]) + 1e-9
        for text, value in zip(figures, row, strict=True)
    )


@cache
def measured_rows() -> list[tuple[float, float, float]]:
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    rows = [row for file in files for row in json.loads(file.read_text("utf-8"))["rows"]]
    return [(row["value"], row["low"], row["high"]) for row in rows if row.get("low") is not None]
