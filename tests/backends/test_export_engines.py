"""Exports to engines and platforms that others run: each is read, and where that can be done run, by that engine's own package."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

import burnish
from burnish.cli import app
from burnish.errors import BuildError
from burnish.export import export
from burnish.runtime.artifact import Artifact
from burnish.testing.builders import rows
from burnish.testing.models import dcn_v2

AUTOSCALING = {"utilization_out_above": 0.463, "scale_out_above": 14200.0}
PLAN = json.dumps({"capacity": {"qps": 50000.0, "p99_ms": 10.0, "replicas": 6, "autoscaling": AUTOSCALING}})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50)
    made = burnish.compile(graph, "int8", rows(graph, 300, seed=9))
    return made.save(tmp_path_factory.mktemp("out") / "artifact")


@pytest.fixture(scope="module")
def call(artifact: Artifact) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """A request, its candidates, and what they score."""
    table, _ = artifact.golden()
    request, candidates = {}, {}
    for spec in artifact.manifest.inputs:
        for half in spec.halves:
            taken = table[spec.name] if half.columns is None else table[spec.name][:, list(half.columns)]
            (request if half.side == "request" else candidates)[spec.name] = (
                taken[0] if half.side == "request" else np.ascontiguousarray(taken)
            )
    return request, candidates, burnish.load(artifact.path)(request, candidates)


def manifests(out: Path) -> dict[str, dict]:
    yaml = pytest.importorskip("yaml")
    return {file.name: yaml.safe_load(file.read_text()) for file in sorted(out.glob("*.yaml"))}


def test_kubernetes_manifests_are_valid_and_say_what_the_plan_says(artifact: Artifact, tmp_path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    report = artifact.path.parent / "report.json"
    report.write_text(PLAN)
    try:
        told = export(artifact.path, "k8s", None, tmp_path / "k8s")
    finally:
        report.unlink()
    found = manifests(tmp_path / "k8s")
    kustomization = found.pop("kustomization.yaml")
    for manifest in found.values():
        validate.validate(manifest, validate.latest_version(), strict=True)
    assert set(kustomization["resources"]) == set(found)
    pods = found["deployment.yaml"]["spec"]
    container = pods["template"]["spec"]["containers"][0]
    assert pods["replicas"] == found["autoscaler.yaml"]["spec"]["minReplicas"] == told["replicas"] == 6
    assert found["autoscaler.yaml"]["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 46
    assert container["image"] == f"{kustomization['images'][0]['newName']}:{kustomization['images'][0]['newTag']}"
    assert pods["selector"]["matchLabels"] == pods["template"]["metadata"]["labels"] == found["service.yaml"]["spec"]["selector"]
    assert "the plan for 50,000 requests a second at p99 10 ms" in (tmp_path / "k8s" / "deployment.yaml").read_text()
    served = burnish.load(tmp_path / "k8s" / "artifact", verify=True)
    assert served.artifact.manifest.sha256 == artifact.manifest.sha256


def test_without_a_plan_the_manifests_say_that_their_numbers_are_defaults(artifact: Artifact, tmp_path: Path) -> None:
    export(artifact.path, "k8s", None, tmp_path / "k8s")
    assert "replicas: 2  # a default: there is no plan beside the artifact" in (tmp_path / "k8s" / "deployment.yaml").read_text()


def test_the_images_command_is_one_that_burnish_serve_takes(artifact: Artifact, tmp_path: Path) -> None:
    """No test builds the Dockerfile, but its command line can be parsed."""
    export(artifact.path, "k8s", None, tmp_path / "k8s")
    lines = (tmp_path / "k8s" / "Dockerfile").read_text().splitlines()
    entry, arguments = (json.loads(line.partition(" ")[2]) for line in lines if line.startswith(("ENTRYPOINT", "CMD")))
    assert entry[:2] == ["burnish", "serve"]
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    parsed = command.make_context("serve", entry[2:] + arguments).params
    assert parsed["directory"] == Path("/image/artifact") and parsed["host"] == "0.0.0.0" and parsed["grpc"] == 8001
    assert (tmp_path / "k8s" / "artifact" / "manifest.json").exists()


def test_kserves_own_models_take_the_kserve_manifests(artifact: Artifact, tmp_path: Path) -> None:
    kserve = pytest.importorskip("kserve")
    export(artifact.path, "kserve", None, tmp_path / "kserve")
    found = manifests(tmp_path / "kserve")

    models = vars(kserve.models)
    for name, kind in (("serving_runtime.yaml", "V1alpha1ServingRuntime"), ("inference_service.yaml", "V1beta1InferenceService")):
        _check_fields(found[name], models[kind], models, name)
    service = found["inference_service.yaml"]["spec"]["predictor"]
    runtime = found["serving_runtime.yaml"]
    assert service["model"]["runtime"] == runtime["metadata"]["name"]
    assert service["model"]["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]


def _check_fields(content: object, kind: type, models: dict, where: str) -> None:
    """Each key is a field of KServe's model; each value of a type of theirs is looked into."""
    assert isinstance(content, dict), where
    known = {wire: kind.openapi_types[name] for name, wire in kind.attribute_map.items()}
    for key, value in content.items():
        assert key in known, f"{where}: KServe knows no {key!r} in {kind.__name__}"
        told = known[key]
        inner = models.get(told.removeprefix("list[").removesuffix("]"))
        for each in value if isinstance(value, list) else [value]:
            if isinstance(inner, type) and hasattr(inner, "openapi_types"):
                _check_fields(each, inner, models, f"{where}.{key}")


def test_tritons_model_scores_as_burnish_does_and_its_configuration_is_read_by_tritons_schema(
    artifact: Artifact, call, tmp_path: Path
) -> None:
    request, candidates, scores = call
    export(artifact.path, "triton", None, tmp_path / "repository")
    folder = tmp_path / "repository" / "ranker"
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    config = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
    assert config.name == folder.name and config.backend == "python" and config.max_batch_size == 0
    tensors = {}
    for tensor in config.input:
        name, _, half = tensor.name.partition(".")
        side = half or ("request" if name in request else "candidate")
        array = request[name][None] if side == "request" else candidates[name]
        assert all(dim in (-1, size) for dim, size in zip(tensor.dims, array.shape)) and len(tensor.dims) == array.ndim
        assert schema.DataType.Name(tensor.data_type) == {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}[array.dtype.name]
        tensors[tensor.name] = array
    model = triton_model(folder / "1" / "model.py")
    model.initialize({})
    good, bad = model.execute([tensors, tensors | {"cat.candidate": tensors["cat.candidate"] + 10**6}])
    assert np.array_equal(good.output_tensors[0].as_numpy(), scores) and good.output_tensors[0].name == config.output[0].name
    assert "has id" in bad.error and good.error is None
    model.finalize()


def triton_model(path: Path):
    """The exported model with what Triton gives it: a module that Triton alone has, of which four names are used."""

    class Tensor:
        def __init__(self, name: str, array: np.ndarray) -> None:
            self.name, self.array = name, array

        def as_numpy(self) -> np.ndarray:
            return self.array

    class Response:
        def __init__(self, output_tensors: list | None = None, error: str | None = None) -> None:
            self.output_tensors, self.error = output_tensors, error

    utils = types.ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, str
    utils.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    sys.modules[utils.__name__] = utils
    try:
        spec = importlib.util.spec_from_file_location("exported_triton_model", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        del sys.modules[utils.__name__]
    return module.TritonPythonModel()


def test_mlflow_loads_the_model_and_predicts_the_same_scores(artifact: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pyfunc = pytest.importorskip("mlflow.pyfunc")
    export(artifact.path, "mlflow", None, tmp_path / "model")
    table, outputs = artifact.golden()
    found = pyfunc.load_model(str(tmp_path / "model")).predict(table)
    assert {name: array.tobytes() for name, array in found.items()} == {name: array.tobytes() for name, array in outputs.items()}


def test_onnx_is_exported_from_an_artifact_that_has_it_and_runs_in_onnx_runtime(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    graph = dcn_v2(5, 7, 8, 2, (33, 17), 50)
    made = burnish.compile(graph, "int8", rows(graph, 300, seed=9), backend="onnxruntime").save(tmp_path / "artifact")
    export(made.path, "onnx", None, tmp_path / "onnx")
    table, outputs = made.golden()
    session = ort.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {i.name: table[i.name] for i in session.get_inputs()})
    off = np.abs(found[0].ravel() - next(iter(outputs.values())).ravel())
    assert off.max() < 1e-3 and np.median(off) < 1e-6  # with its default settings ONNX Runtime rounds a few activations otherwise


@pytest.mark.parametrize(
    ("to", "target", "sentence"),
    [
        ("onnx", None, "native's and holds no ONNX graph. Compile the model with --backend onnxruntime, by the same recipe"),
        ("k8s", "avx2", "k8s carries the artifact as it is and takes no target. Compile the artifact with --target avx2 instead"),
        ("triton", "avx2", "triton carries the artifact as it is and takes no target. Compile the artifact with --target avx2 instead"),
        ("tensorrt", None, "no format 'tensorrt' to export to. Use one of c, "),
    ],
)
def test_what_cannot_be_exported_says_what_to_do(artifact: Artifact, tmp_path: Path, to: str, target: str | None, sentence: str) -> None:
    with pytest.raises(BuildError) as met:
        export(artifact.path, to, target, tmp_path / "out")
    assert sentence in str(met.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["k8s", "kserve", "triton", "ray-serve", "c"])
def test_nothing_is_written_over(artifact: Artifact, tmp_path: Path, to: str) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BuildError, match=r"^cannot export to .*: it holds something\. Choose a new or empty directory$"):
        export(artifact.path, to, None, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
