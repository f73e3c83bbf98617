"""Pages that are generated are up to date, links inside docs/ lead somewhere, and code on the pages compiles."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from vinecore.model.config import RANGES, Tunables

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_generated_page_is_what_the_tables_say() -> None:
    spec = importlib.util.spec_from_file_location("make_diagrams", ROOT / "docs" / "make_diagrams.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run python docs/make_diagrams.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [match.split("#")[0] for match in re.findall(r"\]\(([^)]+)\)", text)]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_on_the_pages_compiles(page: Path) -> None:
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)):
        compile(block, f"{page.name}, block {number}", "exec")


def test_every_tunable_is_in_the_table_with_its_range() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text[text.index("| tunable | default | range | meaning |") :].split("\n\n")[0]
    said = {cells[1].strip(): cells[3].strip() for line in table.splitlines()[2:] if (cells := line.split("|"))}
    ranges = {}
    for name, span in RANGES.items():
        less = f"; less is {span.least}" if span.is_raised else ""
        ranges[f"`{name.replace('_', '-')}`"] = f"{'whole, ' if span.is_whole else ''}{span}{less}"
    assert said == ranges
    named = {f.name for f in dataclasses.fields(Tunables)}
    assert named == {*RANGES, "asked_keepalive_interval"}


def test_every_default_is_in_its_range() -> None:
    tunables = Tunables()
    for name, span in RANGES.items():
        assert span.checked(name, getattr(tunables, name)) == getattr(tunables, name)
    assert tunables.asked_keepalive_interval == tunables.keepalive_interval < tunables.keepalive_timeout
