"""`burnish compile --split`: one command, an artifact for the server and one for the device."""

import json

import pytest
import tiny_job

from burnish import cli
from burnish.backends.native import Native
from burnish.runtime.artifact import Artifact

pytest.importorskip("torch")
pytest.importorskip("polars")


def test_compile_split_writes_both(tmp_path, capsys):
    absent = Native().missing()
    if absent:
        pytest.skip(absent)
    job = tiny_job.write(tmp_path)
    command = ["compile", str(job), "--split", "--recipe", "int8", "--out"]
    assert cli.main([*command, str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    user, device = (Artifact.read(tmp_path / "out" / part) for part in ("user", "device"))
    user.verify()
    device.verify()
    assert told["payload_bytes"] == device.manifest.measured["split"]["payload_bytes"]
    assert set(told["sent"]) < {spec.name for spec in device.manifest.inputs}
    assert set(told["sent"]) == {output.name for output in user.manifest.outputs}
    assert (told["user_bytes"], told["device_bytes"]) == (user.weight_bytes, device.weight_bytes)
    assert cli.main([*command, str(tmp_path / "again"), "--target", "wasm,riscv64"]) == 0
    assert f"a request sends {told['payload_bytes']:,} bytes between them" in capsys.readouterr().out
    assert {p.target for p in Artifact.read(tmp_path / "again" / "device").manifest.programs} == {"simd128", "riscv64"}
    assert cli.main([*command, str(tmp_path / "other"), "--backend", "eager"]) == 2
    assert "--split cuts the model for the native backend, and met --backend eager" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
