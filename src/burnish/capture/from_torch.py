"""From an nn.Module or an ExportedProgram to a Graph: trace at a prime batch, then walk the program with the table in `aten`."""

from __future__ import annotations

import dataclasses
import logging
import math
import operator
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import PythonKeyTracer

from burnish.capture import value as V
from burnish.capture.aten import ATEN
from burnish.capture.aten.call import Call, Ramp
from burnish.capture.bounds import bounded
from burnish.capture.calling import Form, forms, specs_of
from burnish.capture.masks import rows_stay
from burnish.capture.parity import BATCHES, check_parity, example_rows, random_rows
from burnish.capture.value import AS_IT_CAME, Ambiguous, AtThisBatch, Mixes, NumberOfRows, Unsupported, Value
from burnish.errors import CaptureError, GraphError
from burnish.graph.node import Graph, input_node, weight
from burnish.graph.ops import Op
from burnish.graph.verify import verify
from burnish.inputs import Input

# tables beyond this many bytes are shared with the module; every other weight is copied, so that training on changes nothing
SHARED = 1 << 20
FREE = range(1, 1 << 62)  # the batches of a model that takes any
WHOLE = ("linear.default", "scaled_dot_product_attention.default", "gru.input", "layer_norm.default", "rms_norm.default")
DTYPES = {
    torch.float32: "float32", torch.float64: "float64", torch.int64: "int64", torch.int32: "int32", torch.bool: "bool",
    torch.int16: "int32", torch.int8: "int32", torch.uint8: "int32",
}  # fmt: skip


def capture_torch(model: Any, inputs: Any, *, check: bool = True) -> Graph:
    """See burnish.capture.capture."""
    program = isinstance(model, torch.export.ExportedProgram)
    batches, lead = FREE, 0
    if program:
        batches = batches_of(model)
        lead = model.call_spec.in_spec.child(0).num_children
        model = model.module()
    if not isinstance(model, torch.nn.Module):
        raise CaptureError(f"capture takes an nn.Module, an ExportedProgram or a path, met {type(model).__name__}")
    specs, examples = specs_of(model, inputs)
    failed: Untraceable | None = None
    with _evaluating(model, program):
        for form in forms(model, specs):
            caller = Caller(model, dataclasses.replace(form, lead=lead))

            def at(prime: int, caller: Caller = caller) -> Graph:
                graph = verify(bounded(_translated(caller, prime)))
                if check:
                    _check(graph, caller, examples, batches)
                return graph

            try:
                return V.first_that_works(_primes(model, specs, batches), at)
            except Untraceable as error:  # perhaps forward takes its inputs in another form
                failed = failed or error
    assert failed is not None
    raise failed


def _primes(model: torch.nn.Module, specs: Sequence[Input], batches: range) -> list[int]:
    """Primes that divide no dimension of a weight or an input: of V.PRIMES, or the largest batches of a model that takes no such."""
    taken = {n for t in (*model.parameters(), *model.buffers()) for n in t.shape} | {n for spec in specs for n in spec.shape}
    known = [p for p in V.PRIMES if p in batches] or [
        n for n in reversed(batches) if n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))
    ]
    fitting = [p for p in known if not any(n % p == 0 for n in taken if n)]
    if not fitting:
        raise CaptureError(
            f"the program takes at most {batches[-1]} rows, too few to tell rows from its other dimensions. Export it again with a larger "
            'batch: torch.export.Dim("batch") without max'
        )
    return fitting


@contextmanager
def _evaluating(model: torch.nn.Module, program: bool) -> Iterator[None]:
    """Evaluation mode and no fused attention shortcut while inside; the module is left as it was."""
    training = [m for m in model.modules() if m.training] if not program else []
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if not program:
        model.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.export's own, about attributes that a trace sets and unsets
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True


class _Told:
    """What a call says beside its tensors; an object of its own, because torch.export undoes changes of a module's attributes."""

    names: Sequence[str] = ()
    batch: int | None = None  # while traced: the number of rows


class Caller(torch.nn.Module):
    """The model called with one tensor for each input, in order, giving a flat tuple of tensors; `told.names` are their names."""

    def __init__(self, model: torch.nn.Module, form: Form) -> None:
        super().__init__()
        self.model = model
        self.form = form
        self.told = _Told()
        self.training = model.training

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self.form.arguments(tensors)
        with nullcontext() if self.told.batch is None else rows_stay(self.model, self.told.batch):
            out = self.model(*args, **kwargs)
        flat = list(_named(out, ""))
        self.told.names = [name for name, _ in flat]
        return tuple(tensor for _, tensor in flat)


def _named(out: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of what forward returned: one is "score", those of a dict, dataclass or namedtuple have its names, others output_0..."""
    if isinstance(out, torch.Tensor):
        yield name or "score", out
    elif out is None:
        return
    else:
        if isinstance(out, Mapping):
            items = [(str(key), v) for key, v in out.items()]
        elif dataclasses.is_dataclass(out):
            items = [(field.name, getattr(out, field.name)) for field in dataclasses.fields(out)]
        elif hasattr(out, "_asdict"):
            items = list(out._asdict().items())
        elif isinstance(out, (tuple, list)):
            items = [(str(i) if name else f"output_{i}", v) for i, v in enumerate(out) if v is not None]
            if len(items) == 1 and not name:
                items = [("", items[0][1])]
        else:
            raise CaptureError(f"forward returns a {type(out).__name__}. Return a tensor, or a tuple, list, dict or dataclass of tensors")
        for key, v in items:
            yield from _named(v, f"{name}.{key}" if name and key else name or key)


class Untraceable(CaptureError):
    """torch.export gave up."""


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints the whole program, and logs its own stack, when it gives up; our sentence says what matters."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch._subclasses.fake_tensor", "torch.export._trace", "torch.export", "torch.fx.experimental.symbolic_shapes")
    ]
    kept = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        for logger, disabled in zip(loggers, kept):
            logger.disabled = disabled


@contextmanager
def _lines_of_functions() -> Iterator[None]:
    """Traced nodes remember the innermost line of the user's code; torch.export by itself keeps only those in methods named forward."""
    tracer: Any = PythonKeyTracer
    kept = tracer._filter_traceback_frames

    def frames(self: Any, summary: traceback.StackSummary) -> traceback.StackSummary:
        self._record_forward_stack_traces_only = False
        return kept(self, summary)

    tracer._filter_traceback_frames = frames
    try:
        yield
    finally:
        tracer._filter_traceback_frames = kept


def _traced(caller: Caller, batch: int) -> torch.export.ExportedProgram:
    """The exported program with functional core ATen ops. The example tensors are never read, so they cost address space only."""
    device = next((t.device for t in (*caller.parameters(), *caller.buffers())), torch.device("cpu"))
    tensors = tuple(torch.empty((batch, *spec.shape), dtype=getattr(torch, spec.dtype), device=device) for spec in caller.form.inputs)
    table = torch.export.default_decompositions()
    for name in WHOLE:
        packet, overload = name.split(".")
        table.pop(getattr(getattr(torch.ops.aten, packet), overload), None)
    caller.told.batch = batch
    try:
        with _quiet(), _lines_of_functions():
            return torch.export.export(caller, tensors, strict=False).run_decompositions(table)
    except CaptureError:
        raise
    except Exception as error:  # the model's own code runs here and may raise anything
        raise _untraceable(error) from error
    finally:
        caller.told.batch = None


def _untraceable(error: Exception) -> Untraceable:
    at = _user_frame(traceback.extract_tb(error.__traceback__))
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "DataDependent" in type(error).__name__ or "data-dependent" in str(error):
        return Untraceable(
            f"the model branches on the values of its inputs, or takes a shape from them, at {at}. "
            f"Compute both and choose with torch.where, or mask over the full length, {AS_IT_CAME}"
        )
    return Untraceable(f"the model cannot be traced: {type(error).__name__} at {at}: {text}")


def _user_frame(frames: Sequence[traceback.FrameSummary]) -> str:
    inside = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))
    own = [f for f in frames if not f.filename.startswith((*inside, "<"))]
    last = (own or list(frames))[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def _location(node: torch.fx.Node) -> str:
    """ "ranker.py:41": the line of the user's code that a traced node came from."""
    found = [traceback.FrameSummary(file, int(line), "") for file, line in _FRAME.findall(node.meta.get("stack_trace") or "")]
    return _user_frame(found) if found else "an unknown line"


def _translated(caller: Caller, batch: int) -> Graph:
    program = _traced(caller, batch)
    names = list(caller.told.names)
    values = _Walk(program, caller.form, batch).outputs()
    outputs = {}
    for name, value in zip(names, values):
        if not isinstance(value, Value) or value.rows is None:
            raise CaptureError(f"output {name!r} has no rows: it is the same whatever the inputs are. Return only what belongs to a row")
        if value.rows != 0 or value.row_axes:
            shape = V.told(value)
            raise CaptureError(f"output {name!r} has shape {shape}: its first dimension must be the rows. Reshape it before returning it")
        if name in outputs:
            raise CaptureError(f"forward returns two outputs named {name!r}. Give them different names")
        outputs[name] = value.node
    return Graph(caller.form.inputs, outputs)


class _Walk:
    """One pass over a traced program, its values in order."""

    def __init__(self, program: torch.export.ExportedProgram, form: Form, batch: int) -> None:
        self.program = program
        self.batch = batch
        signature = program.graph_signature
        self.held = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **getattr(signature, "inputs_to_lifted_tensor_constants", {}),
        }
        self.inputs = dict(zip(signature.user_inputs, form.inputs))
        self.wanted = list(signature.user_outputs)

    def outputs(self) -> list[Any]:
        """The values that forward returns. What only feeds checks or buffers is not looked at."""
        graph = self.program.graph
        by_name = {node.name: node for node in graph.nodes}
        wanted = [by_name.get(name) for name in self.wanted]
        needed: set[torch.fx.Node] = set()
        stack = [node for node in wanted if node is not None]
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack.extend(node.all_input_nodes)
        arguments = [self._placeholder(n) if n in needed else None for n in graph.nodes if n.op == "placeholder"]
        env = self._run(self.program.graph_module, arguments, needed)
        return [None if node is None else env[node] for node in wanted]

    def _placeholder(self, node: torch.fx.Node) -> Any:
        if node.name in self.inputs:
            spec = self.inputs[node.name]
            return Value(input_node(spec), (self.batch, *spec.shape), 0)
        name = self.held.get(node.name)
        if name is None:
            raise CaptureError(f"the traced program has an input {node.name!r} that is neither a weight nor an input")
        tensor = self.program.state_dict[name] if name in self.program.state_dict else self.program.constants[name]
        table = all(str(user.target).startswith(("aten.embedding", "aten._embedding")) for user in node.users)
        return _weight(name.removeprefix("model."), tensor, shared=table and tensor.nbytes > SHARED)

    def _run(
        self, module: torch.fx.GraphModule, arguments: Sequence[Any], needed: set[torch.fx.Node] | None = None
    ) -> dict[torch.fx.Node, Any]:
        env: dict[torch.fx.Node, Any] = {}
        given = iter(arguments)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(given)
            elif needed is not None and node not in needed:
                continue
            elif node.op == "get_attr":
                held = module
                for part in node.target.split("."):
                    held = getattr(held, part)
                env[node] = _weight(node.target, held) if isinstance(held, torch.Tensor) else held
            elif node.op == "call_function":
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
                env[node] = self._call(node, args, kwargs)
            elif node.op == "output":
                env[node] = torch.fx.node.map_arg(node.args[0], env.__getitem__)
        return env

    def _call(self, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        target = node.target
        if target is operator.getitem:
            return args[0][args[1]]
        name = str(target)
        if "wrap_with" in name:  # a with-block: its body is a graph of its own
            body = next(i for i, a in enumerate(args) if isinstance(a, torch.fx.GraphModule))
            env = self._run(args[body], args[body + 1 :])
            return next(v for n, v in env.items() if n.op == "output")
        packet = name.split(".")[1] if name.startswith("aten.") else ""
        if packet.startswith(("_assert", "sym_constrain")):
            return None
        if packet in ("sym_size", "sym_numel"):
            return args[0].shape[args[1]] if packet == "sym_size" else int(np.prod(args[0].shape))
        if not packet and callable(target) and getattr(target, "__module__", "") in ("_operator", "math"):  # arithmetic on sizes
            return target(*args, **kwargs)
        row = ATEN.get(packet)
        if row is None:
            raise CaptureError(
                f"no burnish op for {name} at {_location(node)}. Add a row to graph/ops.py (docs/adding_an_op.md), {AS_IT_CAME}"
            )
        return self._translate(node, name, row, args, kwargs)

    def _translate(self, node: torch.fx.Node, name: str, row: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        kwargs = {k: v for k, v in kwargs.items() if k not in ("dtype", "device", "layout", "pin_memory", "memory_format", "non_blocking")}
        result = node.meta.get("val")
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        made = first if isinstance(first, torch.Tensor) else None
        dtype = "float32" if made is None else DTYPES.get(made.dtype, "float32")
        shape = () if made is None else tuple(made.shape)
        at = _location(node)
        try:
            if made is not None and made.dtype not in DTYPES:
                raise Unsupported(f"a {str(made.dtype).removeprefix('torch.')} tensor")
            out = row(Call(dtype, shape, self.batch), *args, **kwargs)
        except Mixes as error:
            raise AtThisBatch(
                f"{error} at {at} mixes the rows of a batch, so a row has no score of its own. Take it out of forward, {AS_IT_CAME}"
            ) from None
        except Ambiguous:
            raise NumberOfRows(
                f"the number of rows in a batch is used as a number at {at} ({name}), so a row's score depends on its company. "
                f"Take it out of forward, {AS_IT_CAME}"
            ) from None
        except Unsupported as error:
            raise CaptureError(_refused(str(error), name, at)) from None
        except (GraphError, TypeError, AttributeError, LookupError, ValueError, ArithmeticError, AssertionError) as error:
            raise CaptureError(
                f"burnish does not know this form of {name} at {at} ({error}). Write it another way, {AS_IT_CAME}"
            ) from error
        _agree(out, result, name, at)
        _place(out, at)
        return out


def _refused(what: str, name: str, at: str) -> str:
    if what == "random":
        return f"{name} at {at} draws random numbers, so a row has no fixed score. Leave it out in evaluation, {AS_IT_CAME}"
    if what == "data-dependent":
        return (
            f"{name} at {at} gives a shape that depends on the values of the inputs. "
            f"Mask over the full length instead (torch.where), {AS_IT_CAME}"
        )
    return f"{name} at {at} is {what}, which burnish has no op for. Write it another way, {AS_IT_CAME}"


def _agree(out: Any, result: Any, name: str, at: str) -> None:
    """The layout must say what the tracer says; anything else is our mistake and must not go on."""
    pairs = zip(out, result) if isinstance(out, (tuple, list)) and isinstance(result, (tuple, list)) else [(out, result)]
    for value, tensor in pairs:
        if isinstance(value, (Value, Ramp)) and isinstance(tensor, torch.Tensor):
            shape = tuple(tensor.shape)
            if all(isinstance(n, int) for n in shape) and value.shape != shape:
                raise AtThisBatch(
                    f"burnish took {name} at {at} for a tensor of shape {value.shape}; it has {shape}. Please report it, {AS_IT_CAME}"
                )
            if isinstance(value, Value) and value.rows is not None:
                assert value.node.shape == V.behind(value.shape, value.rows, value.outer, value.inner), (name, value)


def _place(out: Any, at: str) -> None:
    """Let the nodes that an op became say from which line they came, so that a backend that has no such op can."""
    stack = [value.node for value in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(value, Value)]
    while stack:
        node = stack.pop()
        if not node.where and node.op not in (Op.INPUT, Op.WEIGHT):
            node.at(at)
            stack.extend(node.inputs)


def _weight(name: str, tensor: torch.Tensor, shared: bool = False) -> Value:
    if tensor.dtype not in DTYPES:
        told = str(tensor.dtype).removeprefix("torch.")
        raise CaptureError(f"weight {name!r} is {told}. Capture the float32 model (model.float()); precision is a step of a recipe")
    array = tensor.detach().cpu().numpy()
    if tensor.dtype in (torch.int16, torch.int8, torch.uint8):
        array = array.astype(np.int32)
    return Value(weight(name, array if shared else array.copy()), tuple(array.shape))


def batches_of(program: torch.export.ExportedProgram) -> range:
    """The batches a program takes; CaptureError when it takes only one."""
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs]
    tensors = [v for v in values if isinstance(v, torch.Tensor) and v.dim()]
    for v in tensors:
        if isinstance(v.shape[0], int):
            raise CaptureError(
                f"the program was exported for batches of exactly {v.shape[0]} rows. Export it again with a free batch: "
                'dynamic_shapes={"input": {0: torch.export.Dim("batch")}} for each input'
            )
    sizes: list[Any] = [v.shape[0] for v in tensors]
    symbols = {size.node.expr for size in sizes}
    ranges = [r for s, r in program.range_constraints.items() if s in symbols]
    highest = [int(r.upper) for r in ranges if r.upper.is_Integer]
    return range(max([1, *(int(r.lower) for r in ranges)]), min([FREE[-1], *highest]) + 1)


def _check(graph: Graph, caller: Caller, examples: Mapping[str, np.ndarray] | None, taken: range) -> None:
    def run(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        device = next((t.device for t in (*caller.parameters(), *caller.buffers())), torch.device("cpu"))
        try:
            out = caller(*(torch.from_numpy(np.ascontiguousarray(table[spec.name])).to(device) for spec in caller.form.inputs))
        except Exception as error:  # the model's own code may raise anything
            text = next((line for line in str(error).splitlines() if line.strip()), "no message")
            at = _user_frame(traceback.extract_tb(error.__traceback__))
            n = len(next(iter(table.values())))
            raise CaptureError(
                f"the model itself fails on {n} row{'s' * (n > 1)} of {'the examples' if examples else 'random values'}: "
                f"{type(error).__name__} at {at}: {text}. Declare the cardinality of integer inputs, or give example arrays"
            ) from error
        return {name: tensor.cpu().numpy() for name, tensor in zip(caller.told.names, out)}

    batches = [n for n in BATCHES if n in taken]
    rows = example_rows(examples, batches[-1]) if examples else random_rows(graph.inputs, batches[-1])
    check_parity(graph, run, rows, batches)
