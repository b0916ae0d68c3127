"""From an ONNX file to a Graph: its nodes walked at a prime batch with the table in `onnx_ops`, shapes folded on the way.

Weights in external data are mapped where they lie; a table of 100 GB is never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from burnish.capture import value as V
from burnish.capture.aten.call import Ramp
from burnish.capture.bounds import bounded
from burnish.capture.calling import inferred, listed
from burnish.capture.onnx_ops import ONNX
from burnish.capture.onnx_ops.call import Call
from burnish.capture.onnx_ops.tensors import bag_loop, padded_bag_loop
from burnish.capture.parity import check_parity, example_rows, random_rows
from burnish.capture.value import AS_IT_CAME, Ambiguous, AtThisBatch, Mixes, NumberOfRows, Unsupported, Value
from burnish.errors import CaptureError, GraphError
from burnish.graph.node import Graph, input_node, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input

KEPT = ("float32", "float64", "int64", "int32", "bool")


def capture_onnx(path: Path, inputs: Any, *, check: bool = True) -> Graph:
    """See burnish.capture.capture."""
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise many types on a damaged file
        raise CaptureError(
            f"{path} is not an ONNX model: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if model.functions:
        model = InlinePass()(model).model
    specs, examples = _specs(model, inputs, path)

    def at(prime: int) -> Graph:
        graph = verify(bounded(_walked(model, specs, prime, path.name)))
        if check:
            _check(graph, path, examples)
        return graph

    return V.first_that_works(_primes(model, specs), at)


def _specs(model: ir.Model, inputs: Any, path: Path) -> tuple[tuple[Input, ...], dict[str, np.ndarray] | None]:
    """The Inputs in the model's order, checked against it; and the example arrays where those were given."""
    held = model.graph.initializers
    declared = {str(v.name): v for v in model.graph.inputs if v.name not in held}
    examples: dict[str, np.ndarray] | None = None
    if isinstance(inputs, Mapping):
        given, examples = inferred(inputs)
    else:
        given = tuple(inputs)
        if not all(isinstance(v, Input) for v in given):
            given, examples = inferred(dict(zip(declared, given)))
    names = [spec.name for spec in given]
    if sorted(names) != sorted(declared):
        raise CaptureError(
            f"{path.name} takes {listed(list(declared))}, and the inputs are {listed(names)}. Name each input after the one that it feeds"
        )
    for spec in given:
        _fits(spec, declared[spec.name], path)
    by_name = {spec.name: spec for spec in given}
    return tuple(by_name[name] for name in declared), examples


def _fits(spec: Input, value: ir.Value, path: Path) -> None:
    if value.dtype is not None and str(value.dtype.numpy()) != spec.dtype:
        raise CaptureError(
            f"input {spec.name!r} is {value.dtype.numpy()} in {path.name}, and declared {spec.dtype}. Declare it as it is there"
        )
    if value.shape is None:
        return
    dims = list(value.shape)
    fits = len(dims) == 1 + len(spec.shape) and all(not isinstance(have, int) or have == want for have, want in zip(dims[1:], spec.shape))
    if not fits:
        there = ", ".join(str(d if isinstance(d, int) else d.value) for d in dims)
        declared = ", ".join(["rows", *map(str, spec.shape)])
        raise CaptureError(
            f"input {spec.name!r} has shape ({there}) in {path.name}, and is declared ({declared}). Declare it as it is there"
        )
    if isinstance(dims[0], int):
        raise CaptureError(
            f"{path.name} was exported for batches of exactly {dims[0]} rows (input {spec.name!r}). "
            "Export it again with a free first dimension"
        )


def _primes(model: ir.Model, specs: Sequence[Input]) -> list[int]:
    taken = {int(n) for v in model.graph.initializers.values() if v.const_value is not None for n in v.const_value.shape}  # type: ignore[arg-type]
    taken |= {n for spec in specs for n in spec.shape}
    return [p for p in V.PRIMES if not any(n % p == 0 for n in taken if n)]


def _walked(model: ir.Model, specs: Sequence[Input], batch: int, file: str) -> Graph:
    env: dict[ir.Value, Any] = {}
    by_name = {spec.name: spec for spec in specs}
    for value in model.graph.inputs:
        if value.name in by_name:
            spec = by_name[value.name]
            env[value] = Value(input_node(spec), (batch, *spec.shape), 0)
    opset = model.opset_imports.get("", 0)
    if opset < 13:
        raise CaptureError(f"{file} has opset {opset}; burnish reads opset 13 and later. Convert it with onnx.version_converter")
    for node in model.graph:
        operands = [_operand(env, value) for value in node.inputs]
        while operands and operands[-1] is None:
            operands.pop()
        out = _translated(node, operands, Call(batch, opset, len(node.outputs)), file, env)
        outs = out if isinstance(out, tuple) else (out,)
        env.update(zip(node.outputs, outs))
    outputs = {}
    for value in model.graph.outputs:
        result = _operand(env, value)
        if result is None or result.rows is None:
            raise CaptureError(
                f"output {value.name!r} has no rows: it is the same whatever the inputs are. Return only what belongs to a row"
            )
        if result.rows != 0 or result.row_axes:
            raise CaptureError(f"output {value.name!r} has shape {V.told(result)}: its first dimension must be the rows")
        outputs["score" if len(model.graph.outputs) == 1 else str(value.name)] = result.node
    return Graph(specs, outputs)


def _operand(env: dict[ir.Value, Any], value: ir.Value | None) -> Any:
    """The traced value of an operand; constants are read, or mapped, when first needed."""
    if value is None:
        return None
    if value not in env:
        if value.const_value is None:
            raise CaptureError(f"value {value.name!r} is neither computed, nor a weight, nor an input")
        env[value] = _constant(str(value.name), value.const_value)
    return env[value]


def _constant(name: str, tensor: Any) -> Value:
    array = tensor.numpy()
    if str(array.dtype) not in KEPT:
        if array.dtype.kind not in "iu":
            raise CaptureError(f"weight {name!r} is {tensor.dtype}. Export the float32 model; precision is a step of a recipe")
        array = array.astype(np.int64 if array.dtype.itemsize > 2 else np.int32)
    return Value(weight(name, array), tuple(array.shape))


def _translated(node: ir.Node, operands: Sequence[Any], call: Call, file: str, env: Mapping[ir.Value, Any]) -> Any:
    at = f"node {node.name or node.outputs[0].name!r} of {file}"
    name = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else f"onnx::{node.op_type}"
    attrs = {key: _attribute(a) for key, a in node.attributes.items()}
    if node.op_type == "Loop" and (found := _as_bag(node, env)) is not None:
        return found
    if node.op_type == "Constant":
        ((key, found),) = attrs.items()
        return found if isinstance(found, Value) else V.of(np.asarray(found, np.float32 if key.startswith("value_float") else None))
    row = ONNX.get(node.op_type) if name.startswith("onnx::") else None
    if row is None:
        raise CaptureError(f"no burnish op for {name} at {at}. Add a row to graph/ops.py (docs/adding_an_op.md), {AS_IT_CAME}")
    attrs = {key: V.array_of(v) if isinstance(v, Value) else v for key, v in attrs.items()}
    try:
        return row(call, operands, attrs)
    except Mixes as error:
        raise AtThisBatch(
            f"{error} at {at} mixes the rows of a batch, so a row has no score of its own. Take it out of the model, {AS_IT_CAME}"
        ) from None
    except Ambiguous:
        raise NumberOfRows(
            f"the number of rows in a batch is used as a number at {at} ({name}), so a row's score depends on its company. "
            f"Take it out of the model, {AS_IT_CAME}"
        ) from None
    except Unsupported as error:
        if str(error) == "random":
            raise CaptureError(
                f"{name} at {at} draws random numbers, so a row has no fixed score. Export in evaluation mode, {AS_IT_CAME}"
            ) from None
        raise CaptureError(f"{name} at {at} is {error}, which burnish has no op for. Write it another way, {AS_IT_CAME}") from None
    except (GraphError, TypeError, AttributeError, LookupError, ValueError, ArithmeticError, AssertionError) as error:
        raise AtThisBatch(f"burnish does not know this form of {name} at {at} ({error}). Write it another way, {AS_IT_CAME}") from error


def _as_bag(node: ir.Node, env: Mapping[ir.Value, Any]) -> tuple[Any, ...] | None:
    """The results of a Loop that is an EmbeddingBag as torch exports it; None for any other Loop."""
    inside = list(_nodes_of(node.attributes["body"].as_graph()))
    ops = [n.op_type for n in inside]
    if ops.count("Loop") == 1:
        return _as_padded_bag(node, inside, env)
    read = [env.get(v) for v in (n.inputs[0] for n in inside if n.op_type == "Slice") if v is not None]
    offsets = {id(v): v for v in read if isinstance(v, Ramp)}
    data = {id(v): v for v in read if isinstance(v, Value) and v.rows == 0}
    reduce = next((op for name, op in REDUCE.items() if name in ops), None)
    if "Loop" in ops or ops.count("SequenceInsert") != 1 or len(offsets) != 1 or len(data) != 1 or reduce is None:
        return None
    bag = bag_loop(next(iter(data.values())), next(iter(offsets.values())), reduce)
    return tuple([bag] if v is not None and isinstance(env.get(v), list) else None for v in node.inputs[2:])


def _as_padded_bag(node: ir.Node, inside: Sequence[ir.Node], env: Mapping[ir.Value, Any]) -> tuple[Any, ...] | None:
    """Likewise of one with a padding_idx: an inner Loop gathers the places of a bag whose id is not that, and those rows are reduced."""
    gathered = [env.get(v) for v in (n.inputs[0] for n in inside if n.op_type == "Gather") if v is not None]
    constants = [v.const_value for n in inside if n.op_type == "Equal" for v in n.inputs if v is not None and v.const_value is not None]
    offsets = {id(v): v for v in gathered if isinstance(v, Ramp)}
    rows = [v for v in gathered if isinstance(v, Value) and v.rows == 0]
    ids = {id(v): v for v in rows if v.dtype == "int64" and len(v.shape) == 1}
    data = {id(v): v for v in rows if v.dtype == "float32" and len(v.shape) == 2}
    padding = [int(v.numpy().item()) for v in constants if v.size == 1]
    reduce = next((op for name, op in REDUCE.items() if name in {n.op_type for n in inside}), None)
    if [len(offsets), len(ids), len(data), len(padding)] != [1, 1, 1, 1] or reduce is None:
        return None
    bag = padded_bag_loop(next(iter(data.values())), next(iter(ids.values())), next(iter(offsets.values())), padding[0], reduce)
    return tuple([bag] if v is not None and isinstance(env.get(v), list) else None for v in node.inputs[2:])


REDUCE = {"ReduceMean": Op.MEAN, "ReduceMax": Op.MAX, "ReduceSum": Op.SUM}  # a mean divides a sum in one branch, so it is looked for first


def _nodes_of(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _nodes_of(attribute.as_graph())


def _attribute(attribute: Any) -> Any:
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return _constant(attribute.name, value)
    return list(value) if isinstance(value, tuple) else value


def _check(graph: Graph, path: Path, examples: Mapping[str, np.ndarray] | None) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [name for name, _ in graph.outputs]

    def run(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(names, session.run(None, table)))
        except Exception as error:  # onnxruntime raises types of its own
            n = len(next(iter(table.values())))
            raise CaptureError(
                f"{path.name} itself fails on {n} row{'s' * (n > 1)}: {str(error).strip().splitlines()[0]}. "
                "Declare the cardinality of integer inputs, or give example arrays"
            ) from error

    check_parity(graph, run, example_rows(examples, 128) if examples else random_rows(graph.inputs, 128))
