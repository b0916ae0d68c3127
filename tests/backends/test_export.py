"""Artifacts for other machines: several programs in one, and exports that C programs use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import burnish
from burnish.backends.native import Native
from burnish.build import add_programs
from burnish.errors import ArtifactError, BuildError
from burnish.export import export
from burnish.host import ISAS, Host
from burnish.native import toolchain
from burnish.place.placement import Bench
from burnish.runtime.artifact import Artifact
from burnish.testing.builders import rows
from burnish.testing.models import dcn_v2

LOADER = Path("/usr/aarch64-linux-gnu")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    absent = Native().missing()
    if absent:
        pytest.skip(absent)
    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50)
    made = burnish.compile(graph, "int8", rows(graph, 300, seed=9))
    return made.save(tmp_path_factory.mktemp("artifact") / "ranker")


def said_by(name: str, out: Path, compiler: list[str], runner: list[str], *arguments: str) -> dict[str, Any]:
    """What an exported program prints, built as its README says."""
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", f"{name}.c", "-L.", "-lranker", "-lm", "-Wl,-rpath,$ORIGIN", "-o", name]
    subprocess.run([*compiler, *flags], cwd=out, check=True)
    done = subprocess.run([*runner, f"./{name}", *arguments], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def check_bench(told: dict[str, Any], artifact: Artifact, isa: str, arch: str) -> None:
    """It is a file that `plan` reads, of a machine that a Host describes."""
    assert told["artifact"]["target"] == isa and told["artifact"]["sha256"] == artifact.manifest.sha256
    assert msgspec.convert(told["host"], Host).arch == arch
    assert [row.candidates for row in msgspec.convert(told, Bench).rows] == [1, 37]
    for row in told["rows"]:
        found = row["latency_us"]
        assert 0 < found["p50"] <= found["p99"] <= found["curve"][-1][1] and found["count"] >= 100
        assert sorted(us for _, us in found["curve"]) == [us for _, us in found["curve"]]


def test_an_export_for_this_machine_repeats_the_golden_rows_bit_for_bit(artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no cc here")
    out = tmp_path / "device"
    told = export(artifact.path, "c", None, out)
    assert said_by("example", out, ["cc"], [])["difference"] == 0
    assert told == json.loads((out / "export.json").read_text())
    assert told["total_bytes"] == (out / "libranker.so").stat().st_size + (out / "weights.bin").stat().st_size
    assert told["library_bytes"] < 300_000 and told["target"] == Host.here().isa
    (out / "golden" / "input_1.bin").write_bytes(b"\xff" * (out / "golden" / "input_1.bin").stat().st_size)
    done = subprocess.run(["./example"], cwd=out, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "row 0 has an id outside its table\n"


@pytest.mark.parametrize(
    ("target", "isa", "flags", "machine", "root"),
    [
        ("aarch64-linux", "dotprod", ["asimd", "asimddp"], ["aarch64", "-cpu", "neoverse-n1"], "aarch64-linux-gnu"),
        ("armv7-linux", "armv7", ["neon"], ["arm", "-cpu", "cortex-a7"], "arm-linux-gnueabihf"),
        ("riscv64-linux", "riscv64", [], ["riscv64"], "riscv64-linux-gnu"),
    ],
)
def test_an_export_for_another_machine_is_compiled_from_what_the_artifact_holds(
    target: str, isa: str, flags: list[str], machine: list[str], root: str, artifact: Artifact, tmp_path: Path
) -> None:
    """Under qemu it scores the golden rows, which this machine made, bit for bit."""
    if shutil.which(f"qemu-{machine[0]}-static") is None or not Path("/usr", root).exists():
        pytest.skip("other machines are qemu's: apt-get install qemu-user-static libc6-{arm64,armhf,riscv64}-cross")
    out = tmp_path / "device"
    told = export(artifact.path, "c", target, out)
    assert told["target"] == isa and told["cpu_flags"] == flags
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", toolchain.TARGETS[isa][0]]
    runner = [f"qemu-{machine[0]}-static", *machine[1:], "-L", f"/usr/{root}"]
    said = said_by("example", out, compiler, runner)
    assert said["rows"] == 64 and said["difference"] == 0
    check_bench(said_by("bench", out, compiler, runner, "1,37", "0.01"), artifact, isa, ISAS[isa][0])


@pytest.mark.parametrize(
    ("target", "arch", "cpu", "lacking"),
    [("i8mm", "aarch64", "neoverse-n1", "i8mm"), ("dotprod", "aarch64", "cortex-a72", "asimddp"), ("avx2", "x86_64", "Nehalem", "avx2")],
)
def test_a_library_refuses_a_machine_that_lacks_its_instructions(
    target: str, arch: str, cpu: str, lacking: str, artifact: Artifact, tmp_path: Path
) -> None:
    """By the name of one, from C alone, before it would meet it."""
    if shutil.which(f"qemu-{arch}-static") is None or not LOADER.exists():
        pytest.skip("machines without an instruction are qemu's: apt-get install qemu-user-static libc6-arm64-cross")
    if arch == "x86_64" and Host.here().arch != arch:
        pytest.skip("x86-64 programs need its loader")
    out = tmp_path / "device"
    export(artifact.path, "c", target, out)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-gnu.2.17"]
    flags = ["-O2", "example.c", "-L.", "-lranker", "-lm", "-Wl,-rpath,$ORIGIN", "-o", "example"]
    subprocess.run([*compiler, *flags], cwd=out, check=True)
    system = ["-L", str(LOADER)] if arch == "aarch64" else []
    done = subprocess.run([f"qemu-{arch}-static", "-cpu", cpu, *system, "./example"], cwd=out, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"this machine lacks {lacking}")


def test_a_device_without_python_is_measured_by_a_program_in_c(artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no cc here")
    out = tmp_path / "device"
    export(artifact.path, "c", None, out)
    told = said_by("bench", out, ["cc"], [], "1,37", "0.05")
    check_bench(told, artifact, Host.here().isa, Host.here().arch)
    assert msgspec.convert(told["host"], Host) == Host.here()
    assert told["peak_memory_bytes"] > (out / "weights.bin").stat().st_size
    done = subprocess.run(["./bench", "1,many"], cwd=out, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "candidates are numbers from 1 to 100000, separated by commas; met many\n"


def test_what_cannot_be_exported_is_refused_in_a_sentence(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^no format 'tflite' to export to\. Use one of c"):
        export(artifact.path, "tflite", None, tmp_path / "out")
    with pytest.raises(BuildError, match=r"^no target 'z80'\. Use one of avx512bf16, .*aarch64-linux, .*wasm$"):
        export(artifact.path, "c", "z80", tmp_path / "out")
    with pytest.raises(BuildError, match=r"^cannot export to .*: it holds something\. Choose a new or empty directory$"):
        export(artifact.path, "c", None, artifact.path)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def several(artifact: Artifact, tmp_path: Path) -> Artifact:
    """The artifact with programs for every instruction set of x86-64 below this machine's, and for aarch64."""
    shutil.copytree(artifact.path, tmp_path / "several")
    wanted = [isa for isa in ("avx512", "avx2", "scalar") if Host.here().runs(isa)] + ["dotprod"]
    return add_programs(Artifact.read(tmp_path / "several"), wanted)


def test_the_first_program_that_a_machine_runs_is_used(several: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    several = Artifact.read(several.path)
    several.verify()
    here = Host.here()
    assert several.program == several.manifest.programs[0] and several.program.target == here.isa
    table, golden = several.golden()
    for program in several.manifest.programs:
        if not here.runs(program.target):
            continue
        smaller = msgspec.structs.replace(here, flags=tuple(sorted(ISAS[program.target][1])))
        monkeypatch.setattr(Host, "here", classmethod(lambda cls, host=smaller: host))
        assert several.program.target == program.target
        several.verify()
        with burnish.load(several.path) as scorer:
            np.testing.assert_allclose(scorer.rows(table), golden["score"].reshape(-1), atol=2e-6)


def test_a_machine_that_runs_none_of_the_programs_is_told_what_it_lacks(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    if not artifact.manifest.programs[0].cpu_flags:
        pytest.skip("this machine's program needs no flags")
    bare = msgspec.structs.replace(Host.here(), flags=())
    monkeypatch.setattr(Host, "here", classmethod(lambda cls: bare))
    lacking = artifact.manifest.programs[0].cpu_flags[0]
    with pytest.raises(ArtifactError, match=rf"lacks {lacking}, .*Compile it with target '"):
        burnish.load(artifact.path)


def test_programs_share_text_and_weights(several: Artifact) -> None:
    files = [program.files for program in several.manifest.programs]
    assert len({names[1:] for names in files}) == 1 and len({names[0] for names in files}) == len(files)
    assert {name for names in files for name in names} <= set(several.manifest.files)
