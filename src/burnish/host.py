"""The machine: what generated code may use, and what every measurement carries. Never the machine that happens to generate."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import msgspec

from burnish.errors import BuildError

_AVX2 = frozenset({"avx2", "bmi2", "f16c", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
# instruction sets of the native backend, the most capable first, each with the /proc/cpuinfo flags it needs
ISAS: dict[str, tuple[str, frozenset[str]]] = {
    "avx512bf16": ("x86_64", _AVX512 | {"avx512_vnni", "avx512_bf16"}),
    "avx512vnni": ("x86_64", _AVX512 | {"avx512_vnni"}),
    "avx512": ("x86_64", _AVX512),
    "avx2": ("x86_64", _AVX2),
    "i8mm": ("aarch64", frozenset({"asimd", "asimddp", "i8mm"})),
    "dotprod": ("aarch64", frozenset({"asimd", "asimddp"})),
    "neon": ("aarch64", frozenset({"asimd"})),
    "simd128": ("wasm32", frozenset({"simd128"})),
    "armv7": ("armv7l", frozenset({"neon"})),
    "riscv64": ("riscv64", frozenset()),
    "scalar": ("", frozenset()),
}
# what a system of that kind nearly always has: AVX2 since 2013, the dot products of Armv8.2 since 2018, WebAssembly's SIMD since 2021
SYSTEMS = {"x86_64-linux": "avx2", "aarch64-linux": "dotprod", "armv7-linux": "armv7", "riscv64-linux": "riscv64", "wasm": "simd128"}


class Host(msgspec.Struct, frozen=True):
    """Facts of one machine. Two measurements may be pooled only when their hosts are equal."""

    cpu: str
    arch: str  # x86_64, aarch64, armv7l, riscv64, wasm32
    cores: int
    flags: tuple[str, ...]  # sorted, as in /proc/cpuinfo
    cache_bytes: tuple[int, ...] = ()  # data caches L1, L2, L3 of core 0
    memory_bytes: int = 0
    os: str = ""

    @classmethod
    def here(cls) -> Host:
        """The machine this runs on."""
        return _here()

    @classmethod
    def target(cls, name: str) -> Host:
        """A Host to generate code for: an instruction set of ISAS ("avx2", ...) or one of SYSTEMS; BuildError for another name."""
        name = SYSTEMS.get(name, name)
        if name not in ISAS:
            raise BuildError(f"no target {name!r}. Use one of {', '.join((*ISAS, *SYSTEMS))}")
        arch, flags = ISAS[name]
        return cls(cpu=name, arch=arch or _here().arch, cores=1, flags=tuple(sorted(flags)), cache_bytes=(32 << 10, 1 << 20))

    @property
    def isa(self) -> str:
        """The most capable instruction set of ISAS that this machine has."""
        return next(name for name in ISAS if self.runs(name))

    def runs(self, isa: str) -> bool:
        arch, needed = ISAS[isa]
        return (not arch or arch == self.arch) and needed <= set(self.flags)

    def lacks(self, needed: Iterable[str]) -> tuple[str, ...]:
        """Those of the CPU flags `needed` that this machine does not have."""
        return tuple(flag for flag in needed if flag not in self.flags)


def versions(*packages: str) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _here() -> Host:
    cpu, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                cpu = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Host(
        cpu=cpu,
        arch={"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine()),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        flags=tuple(sorted(flags)),
        cache_bytes=_caches(),
        memory_bytes=memory,
        os=f"{platform.system()} {platform.release()}",
    )


def _caches() -> tuple[int, ...]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[int(level)] = int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
    return tuple(found[level] for level in sorted(found))
