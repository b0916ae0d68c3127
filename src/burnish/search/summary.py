"""report.json, schema 1: the decision and everything it rests on, as one dictionary."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import msgspec

import burnish
from burnish.host import Host, versions
from burnish.job import Job
from burnish.place.plan import placement
from burnish.recipe import describe
from burnish.search.space import BASELINE
from burnish.search.subject import Subject
from burnish.search.trial import Plan, Trial

SCHEMA = 1


def summary(
    subject: Subject,
    trials: tuple[Trial, ...],
    plan: Plan | None,
    compared: dict[str, Any],
    sentence: str,
    done: dict[str, Any],
    built: dict[str, Any],
    command: list[str],
) -> dict[str, Any]:
    """The content of report.json. Without a plan, `sentence` says why nothing was chosen. `built`: what building the model as it came
    found of it."""
    job, chosen = subject.job, plan.chosen if plan else None
    rows = [trial_row(trial, chosen) for trial in trials]
    baseline = next(row for row in rows if row["id"] == BASELINE.id)
    calibration = job.split_path("calibration")
    told = {
        "schema": SCHEMA,
        "title": job.title,
        "decision": {
            "recipe": chosen.recipe.name if chosen else None,
            "backend": chosen.recipe.backend if chosen else None,
            "sentence": plan.sentences[0] if plan else sentence,
            "sentences": list(plan.sentences) if plan else [sentence],
        },
        "baseline": baseline,
        "chosen": next((row for row in rows if chosen and row["id"] == chosen.id), None),
        "ratios": plan.ratios if plan else {},
        "capacity": plan.capacity if plan else None,
        "trials": rows,
        "service_us": compared.get("service_us", []),
        "objective": msgspec.to_builtins(job.objective),
        "accuracy": msgspec.to_builtins(job.accuracy),
        "data": {
            "validation_rows": baseline["quality"]["rows"],
            "calibration": calibration.name if calibration else None,
            "requests": baseline["quality"]["requests"],
        },
        "hosts": msgspec.to_builtins(job.hosts),
        "host": msgspec.to_builtins(Host.here()),
        "versions": {"burnish": burnish.__version__}
        | versions("torch", "onnxruntime", "openvino", "numpy", "mlcommons-loadgen", "ziglang"),
        "notes": _notes(job, chosen, subject.host),
        "job": job.path,
        "model": {"load": job.source, **built["architecture"]},
        "work": built["work"],
        "placement_rules": msgspec.to_builtins(job.placement),
        "measured_on": subject.host,
        "command": shlex.join(command),
        "python": sys.version.split()[0],
        "seconds": done["seconds"],
        "created": done["created"],
    }
    return told | (placement(told) if plan else {"placement": [], "placement_verdict": None})


def trial_row(trial: Trial, chosen: Trial | None) -> dict[str, Any]:
    """One of report.json's trials."""
    measured, recipe = trial.measured, trial.recipe
    status = (
        "chosen"
        if chosen and trial.id == chosen.id
        else "baseline"
        if trial.id == BASELINE.id
        else "rejected"
        if trial.rejected
        else "feasible"
    )
    return {
        "id": trial.id,
        "recipe": recipe.name,
        "steps": [] if not recipe.steps else describe(recipe).split(" > "),
        "backend": recipe.backend,
        "threads": recipe.threads,
        "status": status,
        "stage": trial.rejected.stage if trial.rejected else None,
        "reason": trial.rejected.reason if trial.rejected else None,
        "quality": _quality(measured.quality),
        "verdict": trial.verdict,
        "latency_us": measured.latency_us,
        "candidates_per_second_per_core": measured.candidates_per_second_per_core,
        "weight_bytes": measured.weight_bytes,
        "arena_bytes": measured.arena_bytes,
        "resident_bytes": measured.resident_bytes,
        "decided": measured.decided,
        "layers": measured.layers,
        "load": measured.load,
        "seconds": trial.seconds,
    }


def _quality(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Metrics by name, and beside them what they were measured on."""
    if found is None:
        return None
    return found["metrics"] | {key: found[key] for key in ("rows", "positives", "requests", "confidence", "slices", "notes")}


def _notes(job: Job, chosen: Trial | None, here: str) -> list[str]:
    """What a reader must know beside the decision: figures that are estimates, and what was asked for and not measured."""
    notes = []
    if chosen and chosen.measured.latency_us and chosen.measured.latency_us["note"]:
        notes.append(chosen.measured.latency_us["note"])
    if chosen and chosen.measured.load and chosen.measured.load["simulated"]:
        notes.append(chosen.measured.load["sentence"])
    if chosen and chosen.measured.unsettled:
        notes.append(chosen.measured.unsettled)
    others = [host.name for host in job.hosts if host.name != here and host.measured is None]
    if others:
        notes.append(f"{', '.join(others)}: not measured; what the placement says of it is an estimate")
    if not any(host.name == here for host in job.hosts):
        notes.append(f"no price: give [[hosts]] with name = {here!r} and price_per_hour")
    return [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in notes]
