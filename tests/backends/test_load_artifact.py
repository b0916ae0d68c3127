"""A built artifact under load: what a scorer answers among other threads is what it answers alone, bit for bit."""

import numpy as np
import pytest

import burnish
from burnish.measure import latency, load
from burnish.measure.traffic import Traffic
from burnish.testing import dcn_v2, rows

pytest.importorskip("onnxruntime", reason="the artifact that is measured runs on onnxruntime")
pytest.importorskip("mlperf_loadgen", reason="load is measured with mlcommons-loadgen")

GRAPH = dcn_v2(width=4, cross=1, deep=(32,))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    made = burnish.compile(GRAPH, "fp32", calibration=rows(GRAPH, 200), backend="onnxruntime")
    return made.save(tmp_path_factory.mktemp("load") / "ranker")


def test_scorers_answer_under_load_what_they_answer_alone(artifact):
    traffic = Traffic.from_rows(artifact.manifest.inputs, rows(GRAPH, 500), candidates=np.array([1, 16, 40]), calls=32)
    with burnish.load(artifact.path) as first, burnish.load(artifact.path) as second:
        alone = latency.measure({"alone": first}, traffic, seconds_each=0.05, rounds=1)["alone"]
        assert alone.candidates == tuple(traffic.count(i % 32) for i in range(len(alone.us)))
        found = load.server([first, second], traffic, qps=600, seconds=1.0, p99_us=1e6, tolerance=0)
    assert found.servers == 2 and found.checked > 0 and found.wrong == 0
    assert found.candidates == pytest.approx(traffic.ends[-1] / 32)
