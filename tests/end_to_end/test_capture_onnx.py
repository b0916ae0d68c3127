"""Capture from ONNX: what torch's exporter writes of our rankers, small graphs by hand, and what is refused."""

from __future__ import annotations

import logging
import mmap

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from capture_models import DENSE, MODELS, build  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from burnish.capture import capture  # noqa: E402
from burnish.errors import CaptureError  # noqa: E402
from burnish.graph.interpret import interpret  # noqa: E402
from burnish.inputs import Input  # noqa: E402

torch.set_num_threads(1)
EXPORTED = ("DLRM", "DCN-v2", "DIN with Dice and PReLU", "GRU of two layers both ways", "AutoInt", "MMoE", "two-tower", "single matrix",
            "bag mean, last offset", "bag of fields", "bag mean, padding", "bag max, padding",
            "bag sum, weights, offsets", "transformer", "last state", "pointwise zoo")  # fmt: skip
dense = Input("dense", "float32", (DENSE,))
x = Input("x", "float32", (4,))


def exported(name, path):
    pytest.importorskip("onnxscript")
    model, inputs = build(name)
    example = tuple(torch.randn(3, *s.shape) if s.dtype == "float32" else torch.randint(1, 4, (3, *s.shape)) for s in inputs)
    logging.disable(logging.WARNING)
    try:
        batch = tuple({0: torch.export.Dim("batch")} for _ in inputs)
        names = [spec.name for spec in inputs]
        torch.onnx.export(model.eval(), example, path, dynamo=True, input_names=names, dynamic_shapes=batch, verbose=False)
    finally:
        logging.disable(logging.NOTSET)
    return inputs


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_exports_agrees_with_onnxruntime_at_batches_1_2_37_and_128(name, tmp_path):
    inputs = exported(name, tmp_path / "ranker.onnx")
    graph = capture(tmp_path / "ranker.onnx", inputs)  # raises when any batch differs
    assert [spec.name for spec in graph.inputs] == [spec.name for spec in MODELS[name][1]]


def by_hand(nodes, weights, path, rows="batch", width=4, opset=18, elem=TensorProto.FLOAT):
    """x (rows, width) -> y, through `nodes`."""
    graph = helper.make_graph(
        nodes,
        "ranker",
        [helper.make_tensor_value_info("x", elem, [rows, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def N(op, *inputs, to="y", **attrs):
    return helper.make_node(op, list(inputs), to if isinstance(to, list) else [to], name=f"the_{op}", **attrs)


def whole(*values):
    return np.array(values, np.int64)


SMALL = {
    "Gemm with alpha, beta and transposes": (
        [N("Gemm", "x", "w", "b", alpha=0.5, beta=2.0)],
        {"w": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), "b": np.ones((1, 3), np.float32)},
    ),
    "a shape chain": (
        [
            N("Shape", "x", to="s"),
            N("Gather", "s", "zero", to="n"),
            N("Unsqueeze", "n", "zero1", to="n1"),
            N("Concat", "n1", "two", "minus", to="t", axis=0),
            N("Reshape", "x", "t", to="r"),
            N("ReduceMax", "r", "minus", to="y", keepdims=0),
        ],
        {"zero": np.array(0, np.int64), "zero1": whole(0), "two": whole(2), "minus": whole(-1)},
    ),
    "zeros of the batch, and a slice backwards": (
        [
            N("Shape", "x", to="s"),
            N("ConstantOfShape", "s", to="z"),
            N("Slice", "x", "from", "to", "one", "minus", to="back"),
            N("Add", "z", "back"),
        ],
        {"from": whole(-1), "to": whole(-100), "one": whole(1), "minus": whole(-1)},
    ),
    "split, pad, tile, trilu": (
        [
            N("Split", "x", to=["a", "b"], axis=1, num_outputs=2),
            N("Concat", "b", "a", to="c", axis=1),
            N("Pad", "c", "widths", "half", to="p"),
            N("Tile", "p", "times", to="t"),
            N("Reshape", "t", "square", to="q"),
            N("Trilu", "q", upper=0),
        ],
        {"widths": whole(0, 1, 0, 1), "half": np.array(0.5, np.float32), "times": whole(1, 2), "square": whole(0, 3, 4)},
    ),
    "einsum with an ellipsis and two operands": (
        [N("Einsum", "x", "w", equation="...i,oi->...o")],
        {"w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)},
    ),
    "topk, gathered": (
        [
            N("TopK", "x", "two", to=["v", "i"]),
            N("GatherElements", "x", "i", to="g", axis=1),
            N("Sub", "g", "v", to="d"),
            N("Add", "d", "v"),
        ],
        {"two": whole(2)},
    ),
    "activations": (
        [
            N("Selu", "x", to="a"),
            N("HardSigmoid", "x", to="b"),
            N("Celu", "x", to="c", alpha=0.7),
            N("Softplus", "x", to="d"),
            N("Softsign", "x", to="e"),
            N("Sum", "a", "b", "c", "d", "e"),
        ],
        {},
    ),
    "convolution and pools": (
        [
            N("Unsqueeze", "x", "one", to="u"),
            N("Conv", "u", "w", to="c", pads=[1, 1]),
            N("MaxPool", "c", to="m", kernel_shape=[2], strides=[2]),
            N("GlobalAveragePool", "m"),
        ],
        {"one": whole(1), "w": np.random.default_rng(0).normal(size=(3, 1, 3)).astype(np.float32)},
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_graphs_by_hand_agree_with_onnxruntime(name, tmp_path):
    nodes, weights = SMALL[name]
    graph = capture(by_hand(nodes, weights, tmp_path / "m.onnx"), [x])
    assert [name for name, _ in graph.outputs] == ["score"]


def test_a_table_in_external_data_is_mapped_and_not_read(tmp_path):
    table = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    path = by_hand([N("Gather", "table", "x", to="e"), N("ReduceSum", "e", "axes", keepdims=0)], {"table": table, "axes": whole(1, 2)},
                   tmp_path / "m.onnx", elem=TensorProto.INT64)  # fmt: skip
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=1000)
    graph = capture(path, [Input("x", "int64", (4,))])
    assert graph.inputs[0].cardinality == 5000
    held = graph.weights["table"].array
    while isinstance(held, np.ndarray):
        held = held.base
    assert isinstance(held, memoryview | mmap.mmap), "the table was copied"
    ids = np.arange(8).reshape(2, 4)
    np.testing.assert_allclose(interpret(graph, {"x": ids})["score"], table[ids].sum((1, 2)), rtol=1e-5)


BACKEND = 'or serve the model as it came: backend="eager".'
REFUSED = {
    "unknown op": (
        [N("Det", "q", to="y")],
        "no burnish op for onnx::Det at node 'the_Det' of m.onnx. Add a row to graph/ops.py (docs/adding_an_op.md), " + BACKEND,
    ),
    "mixing": (
        [N("Softmax", "x", axis=0)],
        "softmax over the rows at node 'the_Softmax' of m.onnx mixes the rows of a batch, so a row has no score of its own. "
        "Take it out of the model, " + BACKEND,
    ),
    "random": (
        [N("RandomNormalLike", "x")],
        "onnx::RandomNormalLike at node 'the_RandomNormalLike' of m.onnx draws random numbers, so a row has no fixed score. "
        "Export in evaluation mode, " + BACKEND,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_by_name(name, tmp_path):
    nodes, sentence = REFUSED[name]
    if name == "unknown op":
        nodes = [N("Reshape", "x", "square", to="q"), *nodes]
    path = by_hand(nodes, {"square": whole(-1, 2, 2)}, tmp_path / "m.onnx")
    with pytest.raises(CaptureError) as caught:
        capture(path, [x])
    assert str(caught.value) == sentence


def test_inputs_that_do_not_fit_the_file_are_refused(tmp_path):
    path = by_hand([N("Relu", "x")], {}, tmp_path / "m.onnx")
    for given, sentence in (
        (dense, "m.onnx takes 'x', and the inputs are 'dense'. Name each input after the one that it feeds"),
        (Input("x", "int64", (4,)), "input 'x' is float32 in m.onnx, and declared int64. Declare it as it is there"),
        (Input("x", "float32", (5,)), "input 'x' has shape (batch, 4) in m.onnx, and is declared (rows, 5). Declare it as it is there"),
        (Input("x"), "input 'x' has shape (batch, 4) in m.onnx, and is declared (rows). Declare it as it is there"),
    ):
        with pytest.raises(CaptureError) as caught:
            capture(path, [given])
        assert str(caught.value) == sentence


def test_a_fixed_batch_and_an_old_opset_are_refused(tmp_path):
    with pytest.raises(CaptureError) as caught:
        capture(by_hand([N("Relu", "x")], {}, tmp_path / "m.onnx", rows=8), [x])
    assert str(caught.value) == "m.onnx was exported for batches of exactly 8 rows (input 'x'). Export it again with a free first dimension"
    with pytest.raises(
        CaptureError, match=r"^m\.onnx has opset 11; burnish reads opset 13 and later\. Convert it with onnx\.version_converter$"
    ):
        capture(by_hand([N("Relu", "x")], {}, tmp_path / "m.onnx", opset=11), [x])


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(CaptureError, match=r"m\.onnx is not an ONNX model: "):
        capture(tmp_path / "m.onnx", [x])
