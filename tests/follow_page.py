"""A page of docs that shows files and changes, followed literally on a copy of the sources."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def followed(page: str, folder: Path) -> tuple[int, int]:
    """Copy src to `folder` and do there what docs/`page` shows; how many files it adds, and how many changes it makes."""
    text = (ROOT / "docs" / page).read_text()
    files = re.findall(r"^```python\n# (\S+)\n(.*?)^```", text, re.S | re.M)
    changes = re.findall(r"^```diff\n--- (\S+)\n(.*?)^```", text, re.S | re.M)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name, content in files:
        (folder / name).write_text(content)
    for name, change in changes:
        (folder / name).write_text(changed((folder / name).read_text(), change))
    return len(files), len(changes)


def changed(text: str, change: str) -> str:
    """The text with a page's lines: those that stay or go are found in order, and those that come stand where they do there."""
    lines, at, coming = text.splitlines(), 0, list[str]()
    for line in change.splitlines():
        kind, told = line[:1], line[1:]
        if kind == "+":
            coming.append(told)
            continue
        found = lines.index(told, at)
        place = at or found
        lines[place:place] = coming
        at, coming = found + len(coming), []
        if kind == "-":
            del lines[at]
        else:
            at += 1
    lines[at:at] = coming
    return "\n".join(lines) + "\n"
