"""How long `burnish refresh` takes on the demo with a checkpoint that was trained anew, and whether a full search says the same.

python benchmarks/refresh.py            refreshes what `make demo` left in out/demo (a search, where that is missing), into docs/decision.md
python benchmarks/refresh.py --full     and searches for the new checkpoint too, which takes the job's budget
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

import burnish
from burnish.job import Job
from burnish.search import journal
from burnish.search.trial import Trial
from models import ROOT
from pages import footer

DEMO, DATA = ROOT / "examples" / "complete_journey", ROOT / "data" / "complete_journey"
PAGE = ROOT / "docs" / "decision.md"
BEGIN, END = "<!-- refresh: python benchmarks/refresh.py -->", "<!-- /refresh -->"
SEED = 1


def retrained() -> Path:
    """The demo's model trained from another seed."""
    path = DATA / f"dcn_v2_seed{SEED}.pt"
    if not path.exists():
        spec = importlib.util.spec_from_file_location("ranker", DEMO / "ranker.py")
        assert spec and spec.loader
        ranker = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(ranker)
        ranker.train(DATA, path, seed=SEED)
    return path


def searched(out: Path) -> Path:
    """The output of a search of the demo, made now where there is none that can be refreshed."""
    report = out / "report.json"
    if not report.exists() or "model" not in json.loads(report.read_text()):
        shutil.rmtree(out, ignore_errors=True)
        burnish.optimize(DEMO / "job.toml", out)
    return out


def named(trial: Trial) -> str:
    return f"{trial.recipe.name} on {trial.recipe.backend}"


def told(trial: Trial) -> list[str]:
    """AUC's change, candidates a second a core, and the highest load."""
    measured = trial.measured
    auc = (measured.quality or {})["metrics"]["auc"]
    return [
        named(trial),
        f"{auc['relative']:+.4%} [{auc['relative_low']:+.4%}, {auc['relative_high']:+.4%}]",
        f"{measured.candidates_per_second_per_core:,.0f}",
        f"{(measured.load or {}).get('qps', 0):,.0f}",
    ]


def measure(full: bool, folder: Path) -> list[str]:
    """The table's lines, and where the time went."""
    checkpoint, demo = retrained(), searched(ROOT / "out" / "demo")
    before = json.loads((demo / "report.json").read_text())["chosen"]
    began = time.monotonic()
    found = burnish.refresh(demo, checkpoint, folder / "refreshed")
    seconds = time.monotonic() - began
    auc = before["quality"]["auc"]
    change = f"{auc['relative']:+.4%} [{auc['relative_low']:+.4%}, {auc['relative_high']:+.4%}]"
    load = (before.get("load") or {}).get("qps", 0)
    first = [f"{before['recipe']} on {before['backend']}", change, f"{before['candidates_per_second_per_core']:,.0f}", f"{load:,.0f}"]
    rows: list[list[Any]] = [["search, first checkpoint", *first, ""]]
    rows.append(["refresh, new checkpoint", *told(found.result.plan.chosen), f"{seconds:.0f} s"])
    if full:
        job = Job.read(DEMO / "job.toml")
        load_new = f"{job.model.load.partition('@')[0]}@{checkpoint}"
        job = msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, load=load_new))
        began = time.monotonic()
        result = burnish.optimize(job, folder / "full")
        rows.append(["full search, new checkpoint", *told(result.plan.chosen), f"{time.monotonic() - began:.0f} s"])
    lines = ["| | chosen | AUC change | candidates/s/core | requests/s/core | took |", "|" + "---|" * 6]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    steps = [line for line in journal.read(folder / "refreshed" / journal.NAME) if line.seconds >= 0.5]
    spent = ", ".join(
        f"{line.step.split()[0]}{' of the original' if line.trial.startswith('eager') else ''} {line.seconds:.0f} s" for line in steps
    )
    return [*lines, "", f"{found.sentence}. Of the refresh: {spent}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="burnish-refresh-") as folder:
        lines = measure(options.full, Path(folder))
    command = f"python benchmarks/refresh.py{' --full' if options.full else ''}"
    body = "\n".join([BEGIN, "", *lines, "", footer(command), END])
    PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: body, PAGE.read_text(), flags=re.DOTALL))
    print(body)


if __name__ == "__main__":
    main()
