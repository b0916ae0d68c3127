"""What stands under a published table: the day, the machine, the versions and the command."""

from __future__ import annotations

import datetime

from burnish.host import Host, versions

PACKAGES = ("burnish", "torch", "onnxruntime", "openvino", "nncf", "numpy", "ziglang")


def footer(command: str, *more: str) -> str:
    """One line in italics; `more` are further packages to name."""
    host = Host.here()
    caches = " / ".join(f"{n >> 10} KiB" for n in host.cache_bytes)
    told = ", ".join(f"{name} {version}" for name, version in versions(*PACKAGES, *more).items())
    when = datetime.datetime.now(datetime.UTC).date()
    return f"*{when}, {host.cpu}, {host.cores} cores, {host.isa}, caches {caches}; {told}; `{command}`*"
