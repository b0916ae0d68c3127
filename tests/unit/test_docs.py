"""The pages hold: links lead somewhere, commands exist, generated pages are current, blocks are code."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return [code for info, code in re.findall(r"^```(\S+)[^\n]*\n(.*?)^```", page.read_text(), re.S | re.M) if info == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_named_page_exists(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    links = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    for target in links:
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for target in re.findall(r"\bdocs/\w+\.md\b", text):
        assert (ROOT / target).exists(), f"{page.name} names {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_parses(page):
    for code in blocks(page, "python"):
        ast.parse(code)
    for code in blocks(page, "toml"):
        tomllib.loads(code)


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)`|^\$ make ([a-z-]+)", page.read_text(), re.M):
            assert (target[0] or target[1]) in targets, f"{page.name} names make {target}"


def test_every_source_file_that_a_page_names_exists():
    for page in PAGES:
        for name in re.findall(r"`((?:src|tests|examples|benchmarks)/[\w/.-]+\.(?:py|toml|md|c|h|cpp))`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
