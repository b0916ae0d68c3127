"""What an artifact takes in memory: measured in a fresh process, beside what it claims."""

import msgspec
import pytest

import burnish
from burnish.errors import MeasureError
from burnish.host import Host
from burnish.measure import memory
from burnish.measure.memory import Memory, Resident
from burnish.testing import dcn_v2

pytestmark = pytest.mark.skipif(not memory.ROLLUP.exists(), reason="memory is read from /proc, which this system does not have")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="the artifact that is measured runs on onnxruntime")
    made = burnish.compile(dcn_v2(), "fp32", backend="onnxruntime")
    return made.save(tmp_path_factory.mktemp("memory") / "ranker")


def test_an_artifact_takes_at_least_its_weights_and_says_of_what(artifact):
    found = memory.resident(artifact.path)
    assert found.weight_bytes == artifact.weight_bytes > 0
    assert found.scored.pss >= found.weight_bytes  # this small model is read whole
    assert found.scored.rss >= found.opened.rss * 0.9 and found.scored.anonymous > 0
    assert found.beyond_claim_bytes == found.scored.pss - found.weight_bytes - found.arena_bytes
    assert found.host == Host.here() and found.doubt() is None
    assert msgspec.json.decode(msgspec.json.encode(found), type=Memory) == found


def test_an_artifact_that_claims_more_weights_than_its_files_hold_is_doubted():
    nothing = Resident(0, 0, 0, 0)
    claim = Memory(nothing, nothing, 10_000_000, 0, 1_000_000, 1, Host.here(), {})
    assert claim.doubt() == "the artifact claims 10,000,000 bytes of weights, and its files have 1,000,000: they cannot hold them"


def test_an_artifact_that_does_not_open_ends_in_its_own_sentence(tmp_path):
    with pytest.raises(MeasureError, match=rf"^cannot measure the memory of {tmp_path}: .*ArtifactError: "):
        memory.resident(tmp_path)


def test_memory_of_a_process_grows_by_what_it_allocates():
    before = Resident.here()
    block = bytearray(64 << 20)
    grown = Resident.here() - before
    assert 60 << 20 < grown.anonymous < 80 << 20 and grown.rss >= grown.anonymous
    del block


def test_a_system_without_smaps_gets_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "ROLLUP", tmp_path / "smaps_rollup")
    with pytest.raises(MeasureError, match=r"which this system does not have\. Measure it on Linux"):
        Resident.here()
