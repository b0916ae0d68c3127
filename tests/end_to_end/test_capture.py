"""Capture from torch: every family of ranker gives a graph that computes what the module computes; what cannot be is refused by name."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from capture_models import DENSE, FIELDS, MODELS, VOCAB, SingleMatrix, build, dense, ids  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from burnish.capture import capture  # noqa: E402
from burnish.errors import CaptureError  # noqa: E402
from burnish.graph.interpret import interpret, interpret_request  # noqa: E402
from burnish.graph.ops import Op  # noqa: E402
from burnish.inputs import Input  # noqa: E402

torch.set_num_threads(1)


@pytest.mark.parametrize("name", MODELS)
def test_a_captured_ranker_agrees_with_its_module_at_batches_1_2_37_and_128(name):
    model, inputs = build(name)
    graph = capture(model, inputs)  # raises when any batch differs
    assert {spec.name for spec in graph.inputs} == {spec.name for spec in inputs}
    assert graph.outputs and all(node.side == "candidate" for _, node in graph.outputs)


class Once(nn.Module):
    """A forward that is one function of x (rows, 4)."""

    def __init__(self, fn, **parts):
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.fn(self, x)


x = Input("x", "float32", (4,))


def of(fn, **parts):
    return capture(Once(fn, **parts), [x])


def test_inputs_come_in_the_order_of_forward_and_outputs_have_their_names():
    model, _ = build("DCN-v2")
    assert [spec.name for spec in capture(model, [ids, dense], check=False).inputs] == ["dense", "ids"]
    assert [name for name, _ in capture(model, [ids, dense], check=False).outputs] == ["score"]
    assert [name for name, _ in capture(build("MMoE")[0], [ids], check=False).outputs] == ["click", "buy"]
    assert [name for name, _ in capture(build("MMoE, a tuple")[0], [ids], check=False).outputs] == ["output_0", "output_1"]
    assert [name for name, _ in capture(build("MMoE, a dataclass")[0], [ids], check=False).outputs] == ["click", "buy"]


def test_the_module_is_left_as_it_was():
    model, inputs = build("DIN with Dice and PReLU")
    model.train()
    model.deep.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = capture(model, inputs)
    assert model.training and not model.deep.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.deep[0].weight.zero_()
    held = next(w for name, w in graph.weights.items() if name == "deep.0.weight")
    assert np.any(held.array != 0)


def test_large_tables_are_shared_with_the_module_and_not_copied():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(100_000, 8)

        def forward(self, item):
            return self.table(item).sum(1)

    model = One()
    held = capture(model, [Input("item", "int64")]).weights["table.weight"].array
    assert np.shares_memory(held, model.table.weight.detach().numpy())


def test_example_arrays_stand_for_inputs():
    model, _ = build("DCN-v2")
    rng = np.random.default_rng(0)
    arrays = {"ids": rng.integers(0, VOCAB, (7, FIELDS)), "dense": rng.standard_normal((7, DENSE)).astype(np.float32)}
    graph = capture(model, arrays)
    assert graph.inputs == (Input("dense", "float32", (DENSE,)), Input("ids", "int64", (FIELDS,), cardinality=(50, 51, 52, 53, 54)))
    assert capture(model, (arrays["dense"], arrays["ids"])).inputs == graph.inputs
    assert capture(model, (torch.from_numpy(arrays["dense"]), torch.from_numpy(arrays["ids"]))).inputs == graph.inputs


def test_ids_get_the_cardinality_of_the_tables_that_they_index():
    assert capture(build("single matrix")[0], [Input("X", "float32", (5,))]).inputs[0].cardinality == (10, 20, 30, None, None)
    merged = capture(build("DeepFM, view(-1, d)")[0], [ids]).inputs[0]
    assert merged.cardinality == tuple(VOCAB * (FIELDS - i) for i in range(FIELDS))  # what the merged table has room for
    assert capture(build("two-tower")[0], MODELS["two-tower"][1]).inputs[0].cardinality == VOCAB


def test_a_declared_cardinality_is_kept_and_one_beyond_the_table_refused():
    model = build("DCN-v2")[0]
    kept = capture(model, [dense, Input("ids", "int64", (FIELDS,), cardinality=[9, 51, 9, 9, 9])])
    assert kept.inputs[1].cardinality == (9, 51, 9, 9, 9)
    with pytest.raises(CaptureError) as caught:
        capture(model, [dense, Input("ids", "int64", (FIELDS,), cardinality=[9, 52, 9, 9, 9])])
    assert str(caught.value) == (
        "column 1 of input 'ids' declares cardinality 52, and indexes 'fields.tables.1.weight', which has room for 51. "
        "Lower the cardinality, or make the table larger"
    )


def test_columns_on_both_sides_give_the_scores_of_the_plain_table():
    model = build("DCN-v2")[0].eval()
    side = ["request", "candidate", "request", "candidate", "candidate"]
    graph = capture(model, [Input("dense", "float32", (DENSE,), "request"), Input("ids", "int64", (FIELDS,), side)])
    rng = np.random.default_rng(1)
    one, many = rng.integers(0, VOCAB, 2), rng.integers(0, VOCAB, (9, 3))
    row = rng.standard_normal(DENSE).astype(np.float32)
    whole = np.stack([np.full(9, one[0]), many[:, 0], np.full(9, one[1]), many[:, 1], many[:, 2]], axis=1)
    with torch.no_grad():
        want = model(torch.from_numpy(row).expand(9, -1), torch.from_numpy(whole)).numpy()
    got = interpret_request(graph, {"dense": row, "ids": one}, {"ids": many})["score"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_large_example_batches_and_long_histories_cost_neither_time_nor_memory():
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(VOCAB, 64)

        def forward(self, history):
            e = self.table(history)  # 10,007 rows would be 51 GB
            return torch.softmax(e @ e.transpose(1, 2), -1).sum((1, 2))

    began = time.perf_counter()
    graph = capture(Long(), [Input("history", "int64", (20_000,))], check=False)
    assert graph.inputs[0].cardinality == VOCAB
    assert time.perf_counter() - began < 60


def test_float64_stays_where_the_user_has_it_and_numbers_do_not_promote():
    graph = capture(build("float64")[0], MODELS["float64"][1])
    assert graph.outputs[0][1].dtype == "float64"
    single = of(lambda m, x: (x * 0.1 + 1) / 3 - 2**0.5)
    assert {node.dtype for node in single.order} == {"float32"}


def test_a_number_that_happens_to_be_a_multiple_of_the_batch_is_kept():
    graph = of(lambda m, x: (x * 10007 + 20014).sum(1) / 10009)
    table = {"x": np.ones((2, 4), np.float32)}
    np.testing.assert_allclose(interpret(graph, table)["score"], 4 * (10007 + 20014) / 10009, rtol=1e-6)


def test_only_what_the_scores_need_is_captured():
    """A module that keeps a count, and checks its ids, is captured without either."""

    def forward(m, x):
        m.seen += x.shape[0]
        torch._assert_async((x > -100).all())
        return x.sum(1)

    graph = of(forward, seen=nn.Buffer(torch.zeros((), dtype=torch.int64)))
    assert [node.op for node in graph.order] == [Op.INPUT, Op.SUM]


BACKEND = 'or serve the model as it came: backend="eager".'
MIXED = r" at test_capture\.py:\d+ mixes the rows of a batch, so a row has no score of its own\. Take it out of forward, " + re.escape(
    BACKEND
)


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (lambda m, x: torch.softmax(x, 0), "softmax over the rows"),
        (lambda m, x: x - x.mean(0), "a mean over the rows"),
        (lambda m, x: x / x.sum(), "a sum over the rows"),
        (lambda m, x: x.cumsum(0), "cumsum over the rows"),
        (lambda m, x: x.sort(0)[0], "sorting the rows"),
        (lambda m, x: x - x[0], "taking one row of the batch"),
        (lambda m, x: x.flip(0), "indexing the rows"),
        (lambda m, x: x @ x.t(), "a matrix product of rows with rows"),
        (lambda m, x: x.t() @ x, "a matrix product that sums over the rows"),
        (lambda m, x: x.unsqueeze(0) - x.unsqueeze(1), "sub of rows with rows"),
        (lambda m, x: x + torch.arange(x.shape[0]).unsqueeze(1),
         r"the position of a row in its batch \(arange over the rows\), used as a number,"),
        (lambda m, x: x.view(4, -1).t(), r"a view of shape \(rows, 4\) as \(4, rows\)"),
        (lambda m, x: x[torch.arange(x.shape[0] - 1, -1, -1)], "an index that lets rows read other rows"),
        (lambda m, x: F.batch_norm(x, None, None, training=True), "BatchNorm in training mode"),
        (lambda m, x: x[1:].sum(1), "a slice of the rows"),
    ],
)  # fmt: skip
def test_a_model_that_mixes_rows_is_refused_by_name_and_line(fn, what):
    with pytest.raises(CaptureError, match="^" + what + MIXED + "$"):
        of(fn)


def test_batch_norm_without_running_statistics_is_refused():
    with pytest.raises(CaptureError, match=r"^BatchNorm in training mode at test_capture\.py:\d+ mixes the rows of a batch"):
        of(lambda m, x: m.norm(x), norm=nn.BatchNorm1d(4, track_running_stats=False))


def test_attention_over_the_rows_is_refused():
    with pytest.raises(CaptureError, match="mixes the rows of a batch"):
        of(lambda m, x: m.attend(x[None], x[None], x[None])[0][0], attend=nn.MultiheadAttention(4, 2, batch_first=True))


def test_a_score_that_depends_on_the_number_of_rows_is_refused():
    with pytest.raises(
        CaptureError, match=r"^the number of rows in a batch is used as a number at test_capture\.py:\d+ \(aten\.div\.Tensor\), so"
    ):
        of(lambda m, x: x.sum(1) / x.shape[0])
    with pytest.raises(
        CaptureError, match=r"^output 'score' of the same rows differs between a batch of 2 and one of 3: the model mixes the rows"
    ):
        of(lambda m, x: x.sum(1) * (1.0 / x.shape[0]))


def test_an_op_that_is_not_known_is_named_with_the_users_line():
    with pytest.raises(CaptureError) as caught:
        of(lambda m, x: torch.special.i0(x))
    line = test_an_op_that_is_not_known_is_named_with_the_users_line.__code__.co_firstlineno + 2
    assert str(caught.value) == (
        f"no burnish op for aten.i0.default at test_capture.py:{line}. Add a row to graph/ops.py (docs/adding_an_op.md), {BACKEND}"
    )


@pytest.mark.parametrize("fn", [lambda m, x: F.dropout(x, 0.5), lambda m, x: x + torch.randn_like(x), lambda m, x: torch.rand(x.shape) * x])
def test_random_numbers_are_refused(fn):
    with pytest.raises(
        CaptureError, match=r"^aten\.\w+\.\w+ at test_capture\.py:\d+ draws random numbers, so a row has no fixed score\. Leave"
    ):
        of(fn)


def test_branches_and_shapes_that_depend_on_the_data_are_refused_with_the_line():
    for fn in (lambda m, x: x if x.sum() > 0 else -x, lambda m, x: x[: int(x[0, 0])]):
        with pytest.raises(
            CaptureError,
            match=r"^the model branches on the values of its inputs, or takes a shape from them, at test_capture\.py:\d+\. Com",
        ):
            of(fn)
    with pytest.raises(
        CaptureError,
        match=r"^output 'score' has \d+ rows at a batch of \d+: how many depends on the values of the inputs\. Give every row a score",
    ):
        of(lambda m, x: x[x[:, 0] > 0])
    with pytest.raises(
        CaptureError, match=r"^aten\.\w+\.\w+ at test_capture\.py:\d+ gives a shape that depends on the values of the inputs\. Mask over"
    ):
        of(lambda m, x: torch.nonzero(x[:, 0] > 0))


def test_embedding_with_max_norm_is_refused():
    with pytest.raises(CaptureError, match=r"^no burnish op for aten\.embedding_renorm\S* at \S+:\d+\."):
        of(lambda m, x: m.table(x.long().clamp(0, 4)), table=nn.Embedding(5, 4, max_norm=1.0))


def test_outputs_without_rows_or_with_rows_elsewhere_are_refused():
    with pytest.raises(
        CaptureError, match=r"^output 'loss' has no rows: it is the same whatever the inputs are\. Return only what belongs to a row$"
    ):
        of(lambda m, x: {"score": x, "loss": m.w.sum()}, w=nn.Parameter(torch.ones(3)))
    with pytest.raises(
        CaptureError, match=r"^output 'score' has shape \(4, rows\): its first dimension must be the rows\. Reshape it before returning it$"
    ):
        of(lambda m, x: x.t())


def test_names_that_do_not_match_forward_are_told_with_both_lists():
    with pytest.raises(CaptureError) as caught:
        capture(build("DCN-v2")[0], [dense, Input("cat", "int64", (FIELDS,))])
    assert str(caught.value) == (
        "forward takes 'dense', 'ids', and the inputs are 'dense', 'cat'. Name each input after the argument that it feeds"
    )


def test_two_inputs_of_one_name_are_refused():
    with pytest.raises(CaptureError, match=r"^2 inputs are named 'x'\. Give each its own name$"):
        capture(Once(lambda m, x: x), [x, x])


def test_a_model_whose_output_changes_its_width_with_the_batch_is_refused():
    with pytest.raises(CaptureError, match="mixes the rows of a batch"):
        of(lambda m, x: x[:, : 1 + min(x.shape[0], 3)])


def test_half_precision_weights_are_refused():
    with pytest.raises(
        CaptureError, match=r"^weight 'lin\.weight' is bfloat16\. Capture the float32 model \(model\.float\(\)\); precision is a step"
    ):
        of(lambda m, x: m.lin(x.bfloat16()).float(), lin=nn.Linear(4, 4).bfloat16())


def test_a_model_that_fails_on_its_own_is_told_with_its_line():
    with pytest.raises(CaptureError, match=r"^the model cannot be traced: \w+ at test_capture\.py:\d+: .*size"):
        of(lambda m, x: x.view(-1, 3) + torch.ones(2))
    with pytest.raises(
        CaptureError, match=r"^the model itself fails on 2 rows of random values: IndexError at test_capture\.py:\d+: .* Declare the card"
    ):
        of(lambda m, x: x[torch.arange(x.shape[0]), x[:, 0].long() + 100])


def test_a_model_that_squeezes_a_batch_of_one_away_is_captured():
    assert of(lambda m, x: x.sum(1, keepdim=True).squeeze()).outputs[0][1].shape == ()
    assert of(lambda m, x: torch.cat([x[:, :1].squeeze().unsqueeze(1), x], dim=1)).outputs[0][1].shape == (5,)


def test_a_program_with_a_free_batch_is_captured_and_one_with_a_fixed_batch_refused(tmp_path):
    model, inputs = build("DCN-v2")
    example = (torch.randn(4, DENSE), torch.randint(0, VOCAB, (4, FIELDS)))
    batch = torch.export.Dim("batch")
    program = torch.export.export(model.eval(), example, dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "ranker.pt2")
    graph = capture(tmp_path / "ranker.pt2", inputs)
    assert graph.inputs[1].cardinality == (50, 51, 52, 53, 54)
    assert "cross.0.weight" in graph.weights
    fixed = torch.export.export(model.eval(), example)
    with pytest.raises(CaptureError) as caught:
        capture(fixed, inputs)
    assert str(caught.value) == (
        "the program was exported for batches of exactly 4 rows. Export it again with a free batch: "
        'dynamic_shapes={"input": {0: torch.export.Dim("batch")}} for each input'
    )


@pytest.mark.parametrize("most", [5000, 150])
def test_a_program_that_takes_few_rows_is_traced_at_a_batch_it_takes(most):
    model, inputs = build("DCN-v2")
    example = (torch.randn(4, DENSE), torch.randint(0, VOCAB, (4, FIELDS)))
    batch = torch.export.Dim("batch", max=most)
    program = torch.export.export(model.eval(), example, dynamic_shapes=({0: batch}, {0: batch}))
    assert capture(program, inputs).outputs[0][1].shape == capture(model, inputs).outputs[0][1].shape


def test_the_cardinality_of_a_single_matrix_is_that_of_its_float_columns():
    graph = capture(SingleMatrix(), [Input("X", "float32", (5,), ["request", "candidate"] + ["request"] * 3)])
    assert graph.inputs[0].cardinality == (10, 20, 30, None, None)


def test_a_mixed_up_op_is_caught_by_the_comparison(monkeypatch):
    """The check is shown to fail: an op translated wrongly is met by the parity sentence, with batch and size."""
    from burnish.capture.aten import ATEN

    monkeypatch.setitem(ATEN, "tanh", ATEN["sigmoid"])
    with pytest.raises(
        CaptureError, match=r"^output 'score' of the captured graph differs from the model's by \S+ of its largest magnitude at batch 1 "
    ):
        of(lambda m, x: torch.tanh(x))


def test_capture_does_not_import_torch_before_it_is_called():
    import subprocess
    import sys

    code = "import sys, burnish.capture; assert 'torch' not in sys.modules and 'onnx_ir' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
