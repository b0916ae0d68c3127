"""The torch twin agrees with the interpreter on every op, quantized ones to the bit, and can be trained."""

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from burnish.errors import GraphError
from burnish.graph.interpret import interpret
from burnish.graph.node import Graph, Node, input_node, weight
from burnish.graph.ops import Op
from burnish.inputs import Input
from burnish.passes.factor import factor_request
from burnish.passes.tidy import tidy
from burnish.testing import dcn_v2, graphs, linear, lookup, model_cases, op_cases, rows

torch = pytest.importorskip("torch", reason="torch is not installed")
from burnish.graph.to_torch import TWIN, to_torch  # noqa: E402

CASES = op_cases() | model_cases()
EXACT = ("quantize", "qlinear", "qdot", "lookup", "concat", "slice", "take", "gather", "reshape", "transpose", "cast", "argsort")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(graph, table):
    got = to_torch(graph)(**{name: torch.from_numpy(array) for name, array in table.items()})
    got = got if isinstance(got, dict) else {graph.outputs[0][0]: got}
    return {name: value.detach().numpy() for name, value in got.items()}


def test_the_twin_knows_every_op():
    assert set(TWIN) == set(Op) - {Op.INPUT, Op.WEIGHT}


@pytest.mark.parametrize("name", CASES)
def test_the_twin_agrees_with_the_interpreter(name):
    graph = CASES[name]
    for n in (1, 5):
        table = rows(graph, n, seed=7)
        got = run(graph, table)
        for key, value in interpret(graph, table).items():
            assert (got[key].shape, got[key].dtype) == (value.shape, value.dtype)
            if name.startswith(EXACT):
                assert np.array_equal(got[key], value)
            np.testing.assert_allclose(got[key], value, rtol=2e-5, atol=1e-5)


@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_the_twin_agrees_on_random_graphs_and_on_what_passes_make_of_them(graph):
    table = rows(graph, 3, seed=1)
    want = interpret(graph, table)
    for same in (graph, factor_request(tidy(graph))):
        for key, value in run(same, table).items():
            np.testing.assert_allclose(value, want[key], rtol=1e-4, atol=1e-4)


def test_inputs_go_by_position_or_by_name_and_several_outputs_come_as_a_dict():
    graph = CASES["mmoe"]
    table = {name: torch.from_numpy(array) for name, array in rows(graph, 4).items()}
    twin = to_torch(graph)
    by_name, by_position = twin(**table), twin(*(table[spec.name] for spec in graph.inputs))
    assert list(by_name) == ["click", "buy"]
    assert all(torch.equal(by_name[key], by_position[key]) for key in by_name)


def test_weights_are_parameters_by_their_names_and_only_those_that_a_model_learns_ask_for_a_gradient():
    spec = Input("cat.id", "int64", (2,), cardinality=9)
    t, scale = weight("emb.table", np.ones((9, 4), np.float32)), weight("temperature", np.float32(2.34375))
    node = Node(Op.MUL, (linear(lookup(t, input_node(spec)), 3, 1), scale))
    indices = Node(Op.TAKE, (node,), axis=1, indices=(2, 0))
    twin = to_torch(Graph([spec], {"y": indices}))
    assert {name: p.requires_grad for name, p in twin.named_parameters()} == {
        "emb_table": True,
        "w2": True,
        "b1": True,
        "temperature": False,
    }
    assert [name for name, _ in twin.named_buffers()] == ["constant_0"]


def test_every_learned_weight_of_a_factored_ranker_gets_a_gradient():
    graph = factor_request(tidy(dcn_v2(5, 6, 8, 2, (16,), 50)))
    twin = to_torch(graph)
    twin(**{name: torch.from_numpy(array) for name, array in rows(graph, 8).items()}).sum().backward()
    learned = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    assert len(learned) > 10 and all(p.grad is not None and torch.isfinite(p.grad).all() for p in learned.values())


def test_training_the_twin_leaves_the_graphs_arrays_alone():
    graph = CASES["dcn_v2"]
    before = {name: w.array.copy() for name, w in graph.weights.items()}
    twin = to_torch(graph)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert all(np.array_equal(before[name], w.array) for name, w in graph.weights.items())


def test_a_mapped_table_stays_mapped_and_is_not_trained(tmp_path):
    mapped = np.memmap(tmp_path / "t", np.float32, "w+", shape=(9, 4))
    mapped[:] = np.arange(36).reshape(9, 4)
    mapped.flush()
    mapped = np.memmap(tmp_path / "t", np.float32, "r", shape=(9, 4))
    spec = Input("id", "int64", cardinality=9)
    twin = to_torch(Graph([spec], {"y": lookup(weight("t", mapped), input_node(spec))}))
    assert twin.t.data_ptr() == mapped.ctypes.data and not twin.t.requires_grad
    assert twin(torch.tensor([3])).tolist() == [[12, 13, 14, 15]]


def test_the_code_is_flat_and_a_copy_of_the_twin_works():
    twin = to_torch(CASES["din"])
    assert {node.op for node in twin.graph.nodes} <= {"placeholder", "get_attr", "call_function", "call_method", "output"}
    table = {name: torch.from_numpy(array) for name, array in rows(CASES["din"], 4).items()}
    assert torch.equal(twin(**table), copy.deepcopy(twin)(**table))


def test_a_packed_table_is_never_widened_whole():
    code = to_torch(CASES["lookup of bfloat16 rows"]).code
    assert code.index("embedding") < code.index(".to(")


def test_an_op_without_a_row_is_an_error_that_says_where_to_add_it(monkeypatch):
    monkeypatch.delitem(TWIN, Op.ABS)
    with pytest.raises(GraphError, match=r"the torch twin has no ABS. Add it to graph/to_torch.py \(docs/adding_an_op.md\)"):
        to_torch(CASES["abs"])
