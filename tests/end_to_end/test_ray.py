"""A search on several kinds of machines: each measures for itself, and a machine that dies costs nothing but time."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_job

from burnish.errors import JobError
from burnish.search import journal
from burnish.search.distributed import optimize
from burnish.search.steps import Effort

ray = pytest.importorskip("ray", reason="pip install ray")
pytest.importorskip("torch")

QUICK = Effort(latency=0.05, compare=0.1, load=0.6)
JOB = tiny_job.JOB.replace('backends = ["native", "openvino", "onnxruntime"]', 'backends = ["onnxruntime"]\nrecipes = ["fp32", "int8"]')
HOSTS = '\n[[hosts]]\nname = "small"\nprice_per_hour = 0.1\ncores = 2\n\n[[hosts]]\nname = "large"\nprice_per_hour = 0.9\ncores = 2\n'


@pytest.fixture(scope="module")
def cluster():
    """Nodes of this machine: one "large", two "small"."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1, resources={"large": 1})
    nodes = [started.add_node(num_cpus=1, resources={"small": 1}) for _ in range(2)]
    ray.init(address=started.address, log_to_driver=False)
    yield started, nodes
    ray.shutdown()
    started.shutdown()


def test_a_cluster_without_the_jobs_machines_is_told(cluster, tmp_path):
    job = tiny_job.write(tmp_path, JOB)
    with pytest.raises(JobError) as caught:
        optimize(job, tmp_path / "out")
    assert str(caught.value) == (
        "no node of the Ray cluster at auto has the name of a host of the job (this machine). "
        "Start nodes with --resources '{\"NAME\": 1}', NAME being that of [[hosts]]"
    )
    assert not (tmp_path / "out").exists()


def test_each_kind_of_machines_decides_for_itself_and_one_may_die(cluster, tmp_path):
    started, (first, second) = cluster
    job = tiny_job.write(tmp_path, JOB.split("[[hosts]]")[0].replace("budget_minutes = 2", "budget_minutes = 60") + HOSTS)
    out = tmp_path / "out"
    told = []
    with ThreadPoolExecutor(1) as thread:  # nodes come and go from the main thread only
        search = thread.submit(optimize, job, out, effort=QUICK, progress=lambda host, step: told.append((host, step.text)))
        while not search.done() and len(journal.read(out / "small" / "trials.jsonl")) < 4:  # until the baseline is there
            time.sleep(0.1)
        assert not search.done()
        for node in (first, second):  # one of them is at work
            started.remove_node(node, allow_graceful=False)
        started.add_node(num_cpus=1, resources={"small": 1})
        found = search.result(timeout=300)
    assert [each.host for each in found] == ["small", "large"]  # cheapest first
    for each in found:
        report = json.loads((out / each.host / "report.json").read_text())
        assert report == each.report
        assert report["decision"]["sentence"].startswith("Chosen: ")
        assert {row["id"] for row in report["trials"]} == {"eager-original", "onnxruntime-fp32", "onnxruntime-int8"}
        assert all(row["stage"] != "budget" for row in report["trials"])
        assert report["capacity"]["price_per_hour"] == {"small": 0.1, "large": 0.9}[each.host]
        assert (out / each.host / "artifact" / "manifest.json").exists() and (out / each.host / "report.html").exists()
        lines = journal.read(out / each.host / "trials.jsonl")
        done = [(line.trial, line.step) for line in lines]
        assert len(done) == len(set(done)), "a step was done twice"
    assert {host for host, _ in told} == {"small", "large"}
