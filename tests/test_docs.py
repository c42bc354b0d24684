"""What the documentation shows is valid: every YAML block, and every link to a file of the repository."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsf.config.load import load_config
from rlsf.offline.config import SignalsConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KEYS = {"answer": "tasks.0.answer"}
"""Where a fragment belongs that stands alone in a page."""


def fragments() -> Iterator[Any]:
    """Parts of YAML blocks: alternatives under each other begin with the same key."""
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)):
            for part in re.split(r"\n(?=reward:)", block):
                yield pytest.param(part, id=f"{page.relative_to(ROOT)}-{number}")


@pytest.mark.parametrize("fragment", fragments())
def test_configs_in_the_documentation_are_valid(fragment: str) -> None:
    found = yaml.safe_load(fragment)
    if "signals" in found:
        SignalsConfig.model_validate(found)
        return
    load_config(
        ROOT / "configs" / "smoke.yaml",
        [f"{KEYS.get(key, key)}={json.dumps(value)}" for key, value in found.items()],
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_documentation_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "rewards").glob("*.md")), ids=lambda page: page.stem)
def test_every_family_of_rewards_says_what_it_gave(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "\n## Measured\n" in text and "<!--" not in text
