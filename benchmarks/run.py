"""Every published figure, made again: `make bench`. Writes one page with the machine, the versions and the command under each table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import native_speed
import speed
from models import complete_journey
from pages import footer

DOUBTS = """# Benchmarks

Made by `make bench`. Reasons to doubt these figures: the machine was shared and virtual, so absolute times move from run to run and
only ratios within one table mean anything; one model on one data set is not your model on your data; Complete Journey is, by its
package's own account, simulated from real shopping patterns. Run `burnish optimize` on your own model before you believe any of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each engine and number of rows")
    options = parser.parse_args()
    demo = complete_journey()
    command = f"python benchmarks/run.py --seconds {options.seconds:g}"
    times = speed.measure(demo, options.seconds)
    setting = f"{demo.name}, one core, microseconds a call, median of 10 rounds in turns (± half of the spread)."
    lines = [DOUBTS, "", "## Speed", "", setting]
    lines += [*_doc(speed), "", *speed.table(times), "", footer(command)]
    lines += ["", "## The native backend", "", *_doc(native_speed), ""]
    for section in native_speed.pages(options.seconds / 3, list(native_speed.MODELS), native_speed.ALL_PEERS):
        lines += section
        options.out.write_text("\n".join(lines) + "\n")  # what is done is kept, should the rest be stopped
    options.out.write_text("\n".join([*lines, footer(command)]) + "\n")
    print(options.out)


def _doc(module: object) -> list[str]:
    return [(module.__doc__ or "").strip()]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
