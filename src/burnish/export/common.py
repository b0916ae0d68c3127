"""What exports have in common: where they go, what they refuse, and what a plan and an artifact say of a replica."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from burnish.errors import BuildError
from burnish.runtime.artifact import Artifact

NAME = "ranker"  # of the model, where a format wants one
BASE_BYTES = 256 << 20  # Python, numpy and granian in two processes, with room
UTILIZATION = 60  # percent of a core at which a replica is added, where no plan says it


def fresh(out: Path) -> None:
    """Make `out`; BuildError when it holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BuildError(f"cannot export to {out}: it holds something. Choose a new or empty directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"cannot export to {out}: {error.strerror}. Choose a directory that can be written") from None


def no_target(to: str, target: str | None) -> None:
    """BuildError when a target is given for a format that carries the artifact as it is."""
    if target is not None:
        raise BuildError(f"{to} carries the artifact as it is and takes no target. Compile the artifact with --target {target} instead")


def planned(path: Path) -> dict[str, Any]:
    """Replicas and when to add one, from the report beside the artifact."""
    try:
        capacity = json.loads((path.parent / "report.json").read_text())["capacity"]
    except (OSError, ValueError, KeyError):
        capacity = None
    if not capacity:
        return {
            "replicas": 2,
            "most_replicas": 4,
            "why_replicas": "a default: there is no plan beside the artifact",
            "utilization": UTILIZATION,
            "why_utilization": "a default: there is no plan beside the artifact",
        }
    load = f"{capacity['qps']:,.0f} requests a second at p99 {capacity['p99_ms']:g} ms"
    return {
        "replicas": capacity["replicas"],
        "most_replicas": 2 * capacity["replicas"],
        "why_replicas": f"the plan for {load}",
        "utilization": max(1, round(100 * capacity["autoscaling"]["utilization_out_above"])),
        "why_utilization": f"of a core, where the plan adds a replica: {capacity['autoscaling']['scale_out_above']:,.0f} requests a second",
    }


def resources_of(artifact: Artifact) -> dict[str, Any]:
    """Cores and memory of one replica, one worker in it."""
    program = artifact.manifest.programs[0]
    memory = BASE_BYTES + 2 * (program.weight_bytes + program.arena_bytes)  # two versions are open while one takes the other's place
    return {"cpu": int(artifact.manifest.recipe.get("threads", 1)), "memory": f"{-(-memory // (1 << 20))}Mi"}
