"""The Python of README.md and docs/quickstart.md runs as it stands, block after block, in a folder of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("torch", reason="the pages capture a torch model")
pytest.importorskip("ziglang", reason="the pages build native code")


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_a_page_runs_as_it_stands(page, tmp_path):
    script = []
    for info, code in re.findall(r"^```python([^\n]*)\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M):
        name = re.search(r"file=(\S+)", info)
        if name:
            (tmp_path / name[1]).write_text(code)
        else:
            script.append(code)
    (tmp_path / "page.py").write_text("\n".join(script))
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
