"""C++ text -> shared library, through the clang of the `ziglang` wheel or a system compiler.

Libraries are kept by content, so a second build is a lookup. Commands are lists; nothing passes through a shell.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from burnish.errors import BuildError

FLAGS = (
    "-std=c++20",
    "-O3",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wno-psabi",
)
SHARED = ("-fPIC", "-shared")
# a module that is called, not run; its memory is its own, and what fills it asks malloc where
STACK = 256 << 10  # bytes of a module; a kernel keeps little there, and the default is 16 MiB of memory
REACTOR = (
    "-msimd128",
    "-mexec-model=reactor",
    "-rdynamic",
    f"-Wl,--export=malloc,--export=free,--strip-all,-z,stack-size={STACK}",
)
AVX2 = ("-mavx2", "-mbmi2", "-mf16c", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
# instruction set -> (zig's -target, flags of any compiler)
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "avx512bf16": ("x86_64-linux-gnu.2.17", (*AVX512, "-mavx512vnni", "-mavx512bf16")),
    "avx512vnni": ("x86_64-linux-gnu.2.17", (*AVX512, "-mavx512vnni")),
    "avx512": ("x86_64-linux-gnu.2.17", AVX512),
    "avx2": ("x86_64-linux-gnu.2.17", AVX2),
    "i8mm": ("aarch64-linux-gnu.2.17", ("-mcpu=generic+dotprod+i8mm",)),
    "dotprod": ("aarch64-linux-gnu.2.17", ("-mcpu=generic+dotprod",)),
    "neon": ("aarch64-linux-gnu.2.17", ()),
    "armv7": ("arm-linux-gnueabihf.2.17", ("-mcpu=generic+v7a+neon",)),
    "riscv64": ("riscv64-linux-gnu.2.27", ()),
    "simd128": ("wasm32-wasi", REACTOR),
}
NATIVE_SCALAR = {"x86_64": "x86_64-linux-gnu.2.17", "aarch64": "aarch64-linux-gnu.2.17"}


def missing(compiler: str = "zig") -> str | None:
    """None, or the sentence that says which compiler is not here and how to get one."""
    if compiler == "zig":
        if importlib.util.find_spec("ziglang") is None:
            return "the native backend needs a compiler: pip install ziglang (it brings clang), or name a system compiler with BURNISH_CXX"
        return None
    if shutil.which(compiler) is None:
        return f"the compiler {compiler!r} is not on the PATH. Install it, or unset BURNISH_CXX and pip install ziglang"
    return None


def compiler_name() -> str:
    """ "zig" unless BURNISH_CXX names a system compiler."""
    return os.environ.get("BURNISH_CXX") or "zig"


STRIPPED = ("-s",)  # zig writes debug information otherwise, seven times as large as the code


def command(isa: str, source: Path, out: Path, compiler: str | None = None, extra: Sequence[str] = STRIPPED) -> list[str]:
    """The compiler's command line for a program of one instruction set."""
    compiler = compiler or compiler_name()
    target, machine = TARGETS.get(isa, (NATIVE_SCALAR.get(platform.machine(), ""), ()))
    if compiler == "zig":
        front = [sys.executable, "-m", "ziglang", "c++", "-nostdlib++", *(("-target", target) if target else ())]
    else:
        front = [compiler, "-nodefaultlibs", "-lc"]
    kind = () if isa == "simd128" else SHARED
    return [*front, *FLAGS, *kind, *machine, *extra, str(source), "-o", str(out), "-lm"]


def cache_dir() -> Path:
    """Where built libraries are kept: BURNISH_CACHE, else burnish/ in the XDG cache directory."""
    given = os.environ.get("BURNISH_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burnish"


def build(text: str, isa: str, compiler: str | None = None, extra: Sequence[str] = STRIPPED) -> Path:
    """The library of a program's text, from the cache when the same text was built before by the same compiler with the same flags."""
    compiler = compiler or compiler_name()
    sentence = missing(compiler)
    if sentence:
        raise BuildError(sentence)
    told = command(isa, Path("ranker.cpp"), Path("ranker.so"), compiler, extra)
    key = hashlib.sha256("\0".join([version(compiler), *told[1:], text]).encode()).hexdigest()[:32]
    kept = cache_dir() / "native" / f"{key}.so"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as work:
        source, out = Path(work) / "ranker.cpp", Path(work) / "ranker.so"
        source.write_text(text)
        words = command(isa, source, out, compiler, extra)
        show(4, " ".join(words))
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            keep = kept.parent / f"{key}.cpp"
            keep.write_text(text)
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise BuildError(f"{compiler} could not compile the generated program ({keep}): {first}. Please report it with that file")
        os.replace(out, kept)
    return kept


def show(level: int, text: str) -> None:
    """Print to stderr when BURNISH_DEBUG is at least `level`: 3 shows the generated C++ of a model, 4 the compiler's commands."""
    given = os.environ.get("BURNISH_DEBUG", "")
    if given.isdigit() and int(given) >= level:
        print(text, file=sys.stderr)


@functools.cache
def version(compiler: str) -> str:
    """What the compiler calls itself, part of the cache's key."""
    if compiler == "zig":
        from importlib.metadata import version as installed

        return f"zig {installed('ziglang')}"
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    return done.stdout.splitlines()[0] if done.stdout else compiler
