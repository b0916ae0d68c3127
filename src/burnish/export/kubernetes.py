"""An artifact as what Kubernetes and KServe run: an image of the base install, and manifests with what the plan says.

The manifests are templates in kubernetes_files/. Where the artifact lies in what `burnish optimize` wrote, replicas, and the load of a
core at which to add one, come from its report.json; elsewhere they are the defaults that the manifests name as such.
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from burnish.export.common import NAME, fresh, no_target, planned, resources_of
from burnish.host import versions
from burnish.runtime.artifact import Artifact

PRE_STOP_SECONDS = 5
KUBERNETES = ("deployment.yaml", "service.yaml", "autoscaler.yaml", "disruption.yaml", "kustomization.yaml")
KSERVE = ("serving_runtime.yaml", "inference_service.yaml")


def kubernetes(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write Dockerfile, artifact/, README.md and the manifests of a Deployment with its Service and autoscaler."""
    return _write("k8s", path, target, out, KUBERNETES, _KUBERNETES_README)


def kserve(path: Path, target: str | None, out: Path) -> dict[str, Any]:
    """Write Dockerfile, artifact/, README.md, a ServingRuntime and an InferenceService."""
    return _write("kserve", path, target, out, KSERVE, _KSERVE_README)


def _write(to: str, path: Path, target: str | None, out: Path, names: tuple[str, ...], readme: str) -> dict[str, Any]:
    no_target(to, target)
    from burnish.serve.app import DRAIN_SECONDS  # with granian, which Ray's export does without

    artifact = Artifact.read(path)
    values = {"name": NAME, "tag": artifact.manifest.sha256[:12], "version": versions("burnish").get("burnish", "")}
    values |= {"drain": DRAIN_SECONDS, "grace": DRAIN_SECONDS + PRE_STOP_SECONDS + 5} | planned(path) | resources_of(artifact)
    fresh(out)
    shutil.copytree(path, out / "artifact")
    files = resources.files("burnish.export") / "kubernetes_files"
    for name in ("Dockerfile", *names):
        (out / name).write_text(Template((files / name).read_text()).substitute(values))
    (out / "README.md").write_text(Template(readme).substitute(values))
    return {"schema": 1, "format": to, **{k: values[k] for k in ("name", "tag", "replicas", "cpu", "memory", "utilization")}}


_KUBERNETES_README = """# A ranker on Kubernetes

    docker build -t $name:$tag .
    kubectl apply -k .

The image holds burnish's base install and the artifact. `kustomization.yaml` has the image's name: change it there to that of your
registry. A wheel of burnish put beside the Dockerfile is used instead of a release with
`docker build --build-arg BURNISH=/image/<the wheel> -t $name:$tag .`

$replicas replicas of $cpu core and $memory: $why_replicas. The autoscaler adds one when their cores are used more than $utilization %.
Requests go to port 8000 (REST) and 8001 (gRPC) of the service `$name`, Prometheus to 8002 of each pod.
"""

_KSERVE_README = """# A ranker on KServe

    docker build -t $name:$tag .
    kubectl apply -f serving_runtime.yaml -f inference_service.yaml

The image is burnish's base install; change its name in `serving_runtime.yaml` to that of your registry. The artifact goes where
`storageUri` in `inference_service.yaml` says; KServe puts it at /mnt/models. A wheel of burnish put beside the Dockerfile is used
instead of a release with `docker build --build-arg BURNISH=/image/<the wheel> -t $name:$tag .`

$replicas replicas of $cpu core and $memory: $why_replicas. KServe adds one when their cores are used more than $utilization %.
Clients speak the Open Inference Protocol v2, as with any other KServe runtime.
"""
