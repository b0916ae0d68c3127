"""A finished search as a run in MLflow, where MLFLOW_TRACKING_URI says there is one. Nothing is sent anywhere otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.errors import JobError

URI = "MLFLOW_TRACKING_URI"
FILES = ("report.html", "report.json", "trials.jsonl")


def check() -> None:
    """JobError when a run is wanted and MLflow is not installed: before the search, not after it."""
    if os.environ.get(URI) and find_spec("mlflow") is None:
        raise JobError(f"{URI} is set, and MLflow is not installed: pip install mlflow-skinny, or unset {URI}")


def track(report: Mapping[str, Any], out: Path) -> str | None:
    """Log the decision: parameters, metrics, the artifact and the report; the run's id, None where no run is wanted.

    The experiment is MLFLOW_EXPERIMENT_NAME's, else one with the job's title. JobError when the store does not take it.
    """
    uri = os.environ.get(URI)
    if not uri:
        return None
    check()
    import mlflow

    try:
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            mlflow.set_experiment(report["title"] or "burnish")
        with mlflow.start_run(run_name=_name(report)) as run:
            mlflow.set_tags({"burnish": report["versions"]["burnish"], "decision": report["decision"]["sentence"]})
            mlflow.log_params(params(report))
            mlflow.log_metrics(metrics(report))
            for name in FILES:
                if (out / name).exists():
                    mlflow.log_artifact(str(out / name))
            if report["chosen"] and (out / "artifact").is_dir():
                mlflow.log_artifacts(str(out / "artifact"), "artifact")
            return str(run.info.run_id)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise JobError(f"the decision is in {out}, and MLflow at {uri} did not take it: {told}") from error


def params(report: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked, and what was chosen for it."""
    chosen = report["chosen"] or {}
    return {
        **{f"objective.{name}": value for name, value in report["objective"].items() if value is not None},
        **{f"accuracy.{name}": value for name, value in report["accuracy"].items()},
        "model": report["model"]["load"],
        "host": report["host"]["cpu"],
        **{name: chosen[name] for name in ("recipe", "backend", "threads") if name in chosen},
        **({"steps": " > ".join(chosen["steps"])} if chosen else {}),
    }


def metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Of the chosen trial, beside the model as it came."""
    chosen, capacity, ratios = report["chosen"] or {}, report["capacity"] or {}, report["ratios"]
    quality, latency, load = chosen.get("quality") or {}, chosen.get("latency_us") or {}, chosen.get("load") or {}
    found: dict[str, Any] = {"trials": len(report["trials"]), "seconds": report["seconds"], "met": float(bool(chosen))}
    for name, metric in quality.items():
        if isinstance(metric, Mapping) and "value" in metric:
            found |= {f"{name}.{key}": metric.get(key) for key in ("value", "delta", "low", "high", "relative_low")}
    found |= {f"latency_us.{name}": latency.get(name) for name in ("p50", "p99", "mean")}
    found |= {f"load.{name}": load.get(name) for name in ("qps", "p99_us")}
    found |= {name: chosen.get(name) for name in ("candidates_per_second_per_core", "weight_bytes", "resident_bytes")}
    found |= {name: capacity.get(name) for name in ("replicas", "machines", "usd_per_million_candidates", "usd_per_month")}
    found |= {name: ratios.get(name) for name in ("throughput_vs_baseline", "throughput_vs_best_peer")}
    return {name: float(value) for name, value in found.items() if value is not None}


def _name(report: Mapping[str, Any]) -> str:
    chosen = report["chosen"]
    return f"{chosen['recipe']} on {chosen['backend']}" if chosen else "nothing meets the objective"
