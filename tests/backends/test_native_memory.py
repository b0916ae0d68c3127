"""What a native artifact takes: weights mapped and shared by processes, an arena a handle, and the manifest's numbers true."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest

import burnish
from burnish.backends.native import Native
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.host import Host
from burnish.inputs import Input
from burnish.measure import memory
from burnish.recipe import Recipe
from burnish.testing.builders import Weights, linear, lookup, reshape

pytestmark = pytest.mark.skipif(not memory.ROLLUP.exists(), reason="memory is read from /proc, which this system does not have")
ROWS, WIDTH = 200_000, 64
PAGE_NOISE = 512 << 10  # what Python and malloc take or give back meanwhile


@pytest.fixture(autouse=True, scope="module")
def compiler() -> None:
    absent = Native().missing()
    if absent:
        pytest.skip(absent)


def table_model(seed: int) -> Graph:
    """Nearly all of it a table of 51 MB in float32."""
    spec = Input("id", "int64", (), "candidate", ROWS)
    values = np.random.default_rng(seed).standard_normal((ROWS, WIDTH), np.float32)
    return Graph((spec,), {"score": linear(lookup(weight(f"table{seed}", values), input_node(spec)), 1, Weights(seed))})


def wide_model() -> Graph:
    """Nearly all of it arena: rows of 120,000 values."""
    spec = Input("x", "float32", (120_000,), "candidate")
    x = input_node(spec)
    soft = Node(Op.SOFTMAX, (Node(Op.TANH, (x,)),), axis=0)
    return Graph((spec,), {"score": reshape(Node(Op.SUM, (Node(Op.MUL, (soft, Node(Op.SOFTMAX, (x,), axis=0))),), axes=(0,)))})


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("tables")
    return [burnish.compile(table_model(seed), Recipe()).save(out / str(seed)).path for seed in (1, 2)]


# a process that opens artifacts, scores every id, tells what it grew by at each line of its input, and ends with its input
CHILD = """
import json, sys
import numpy as np
import burnish
from burnish.measure.memory import Resident
ids = np.arange(%d)
burnish.load(sys.argv[1]).rows({"id": ids[:100]})  # what is loaded once
import gc; gc.collect()
before = Resident.here()
scorers = [burnish.load(path) for path in sys.argv[2:]]
sums = [float(scorer.rows({"id": ids}).astype(np.float64).sum()) for scorer in scorers]
for line in sys.stdin:
    grown = Resident.here() - before
    print(json.dumps({"rss": grown.rss, "file": grown.file, "anonymous": grown.anonymous, "sums": sums}), flush=True)
"""


def child(*paths: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CHILD % ROWS, *map(str, paths)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("now\n")
    process.stdin.flush()
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


def test_weight_bytes_are_what_a_process_grows_by(tables: list[Path]) -> None:
    claimed = burnish.runtime.artifact.Artifact.read(tables[0]).program.weight_bytes
    assert claimed > ROWS * WIDTH * 4
    with child(tables[1], tables[0]) as process:
        grown = told(process)
        assert process.stdin is not None
        process.stdin.close()
    assert abs(grown["file"] - claimed) < 0.05 * claimed
    assert grown["anonymous"] < 0.05 * claimed, "weights were copied"


def test_processes_share_weights(tables: list[Path]) -> None:
    """Each has all pages in its memory, and counts half of them as its own."""
    claimed = burnish.runtime.artifact.Artifact.read(tables[0]).program.weight_bytes
    with child(tables[1], tables[0]) as first, child(tables[1], tables[0]) as second:
        alone = told(first)  # both are open when the second has answered
        grown = [told(second), told(first)]
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.close()
    for found in grown:
        assert abs(found["rss"] - claimed) < 0.05 * claimed + PAGE_NOISE
        assert abs(found["file"] - claimed / 2) < 0.05 * claimed
    assert alone["sums"] == grown[0]["sums"]


def test_several_models_in_a_process_do_not_mix(tables: list[Path]) -> None:
    ids = np.arange(0, ROWS, 7)
    alone = []
    for path in tables:
        with burnish.load(path) as scorer:
            alone.append(scorer.rows({"id": ids}))
    assert not np.array_equal(*alone)
    with ExitStack() as stack:
        scorers = [stack.enter_context(burnish.load(path)) for path in (*tables, tables[0])]
        for _ in range(2):
            for scorer, want in zip(scorers, (*alone, alone[0])):
                np.testing.assert_array_equal(scorer.rows({"id": ids}), want)
    with child(tables[1], *tables) as process:
        grown = told(process)
        assert process.stdin is not None
        process.stdin.close()
    claimed = sum(burnish.runtime.artifact.Artifact.read(path).program.weight_bytes for path in tables)
    assert grown["rss"] < 1.05 * claimed + PAGE_NOISE


ARENA = """
import json, sys
import numpy as np
import burnish
from burnish.measure.memory import Resident
burnish.load(sys.argv[1]).rows({"id": np.arange(100)})  # what is loaded once
given = {"x": np.ones((48, 120_000), np.float32)}
before = Resident.here()
scorer = burnish.load(sys.argv[2])
opened = Resident.here() - before
scorer.rows(given)
scored = Resident.here() - before
print(json.dumps([opened.anonymous, scored.anonymous]))
"""


def test_arena_bytes_are_what_a_handle_grows_by(tables: list[Path], tmp_path: Path) -> None:
    roomy = msgspec.structs.replace(Host.here(), cache_bytes=(32 << 10, 1 << 30))  # whole blocks of 48 rows, whatever they take
    artifact = burnish.compile(wide_model(), Recipe(), host=roomy).save(tmp_path / "wide")
    claimed = artifact.program.arena_bytes
    assert claimed > 8 << 20
    words = [sys.executable, "-c", ARENA, str(tables[0]), str(artifact.path)]
    opened, scored = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert opened < PAGE_NOISE, "the arena is touched as it is used"
    assert abs(scored - claimed) < 0.05 * claimed + PAGE_NOISE
