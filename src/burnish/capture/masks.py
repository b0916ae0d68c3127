"""While a model is traced: rows chosen by a mask, and packed sequences, as what they mean for a row by itself.

Models of histories leave rows out (`x[lengths > 0]`, `pack_padded_sequence`) to save time, and put zeros in their place afterwards. Which
rows are left out depends on the data, so no tracer can follow; a row's own score does not, so here every row goes on and a mask decides
at the end:

    x[mask]                 every row of x          (mask: one bool a row)
    x[places]               the entry of each row   (places: bools of which one a row is true)
    y[mask] = z             where(mask, z, y)
    if mask.any()           taken
    pack_padded_sequence    all steps of all rows, lengths beside them
    pad_packed_sequence     where(step < length, x, padding)

That the rewriting is right for a model is not assumed: the graph is held against the model, which runs as it is, at several batches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode

from burnish.capture.value import AS_IT_CAME
from burnish.errors import CaptureError


class Steps(tuple[int, ...]):
    """The batch sizes of a packed sequence in which every row has all steps, and the rows' `lengths`."""

    lengths: torch.Tensor
    device = torch.device("cpu")  # what PackedSequence asks its batch sizes for


class RowMasks(TorchFunctionMode):
    """Inside, what is indexed by a mask over `batch` rows is rewritten as the module says."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.taken: list[torch.Tensor] = []  # what any() of a mask gave: a branch on it is taken

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__getitem__:
            mask, rest = self._split(args[1])
            if mask is not None:
                return self._chosen(args[0], mask, rest)
        elif func is torch.Tensor.__setitem__:
            x, index, value = args
            mask, rest = self._split(index)
            if mask is not None and mask.dim() == 1 and isinstance(value, torch.Tensor) and value.dim():
                into = x[:, *rest] if rest else x
                into.copy_(torch.where(_beside(mask, into), value.to(x.dtype), into))
                return None
        elif func in (torch.masked_select, torch.Tensor.masked_select):
            x, mask = args
            if self._is_mask(mask) and mask.numel() == self.batch and mask.dim() == x.dim():
                return x.reshape(-1)
        elif func in (torch.any, torch.Tensor.any) and len(args) == 1 and not kwargs and self._is_mask(args[0]):
            out = func(*args)
            self.taken.append(out)
            return out
        elif func in (torch.Tensor.__bool__, torch.Tensor.item) and any(args[0] is t for t in self.taken):
            return True
        return func(*args, **kwargs)

    def _is_mask(self, x: Any) -> bool:
        return isinstance(x, torch.Tensor) and x.dtype == torch.bool and x.dim() > 0 and x.shape[0] == self.batch

    def _split(self, index: Any) -> tuple[torch.Tensor | None, tuple[Any, ...]]:
        """(mask over the rows, what stands behind it) of an index, or (None, ())."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        if self._is_mask(first) and not any(isinstance(i, torch.Tensor) for i in rest):
            return first, tuple(rest)
        return None, ()

    def _chosen(self, x: torch.Tensor, mask: torch.Tensor, rest: tuple[Any, ...]) -> torch.Tensor:
        if mask.dim() == 1:
            return x[:, *rest] if rest else x
        kept = torch.where(_beside(mask, x), x, torch.zeros((), dtype=x.dtype, device=x.device))
        entry = kept.sum(dim=tuple(range(1, mask.dim())), dtype=x.dtype)
        return entry[:, *rest] if rest else entry


def _beside(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return mask.reshape(*mask.shape, *(1,) * (x.dim() - mask.dim()))


def _pack(input: torch.Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> rnn.PackedSequence:
    x = input.transpose(0, 1) if batch_first else input  # (steps, rows, ...)
    steps: Any = Steps([x.shape[1]] * x.shape[0])
    steps.lengths = torch.as_tensor(lengths)
    return rnn.PackedSequence(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), steps)


def _all_steps(sequence: rnn.PackedSequence) -> torch.Tensor:
    """(steps, rows, ...)"""
    steps: Any = sequence.batch_sizes
    return sequence.data.reshape(len(steps), steps[0], *sequence.data.shape[1:])


def _at(lengths: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(step numbers (steps, 1), lengths (1, rows))"""
    return torch.arange(steps, dtype=lengths.dtype).unsqueeze(1), lengths.unsqueeze(0)


def _pad(
    sequence: rnn.PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    steps: Any = sequence.batch_sizes
    x = _all_steps(sequence)
    number, lengths = _at(steps.lengths, len(steps))
    x = torch.where(_beside(number < lengths, x), x, torch.full((), padding_value, dtype=x.dtype))
    if total_length is not None and total_length > len(steps):
        more = torch.full((total_length - len(steps), *x.shape[1:]), padding_value, dtype=x.dtype)
        x = torch.cat([x, more])
    return (x.transpose(0, 1) if batch_first else x), steps.lengths


def _gru(module: torch.nn.GRU, sequence: rnn.PackedSequence, hx: torch.Tensor | None = None) -> tuple[rnn.PackedSequence, torch.Tensor]:
    """nn.GRU of a packed sequence, layer by layer, and the state behind the last step of each row."""
    if module.bidirectional:
        raise CaptureError(f"a GRU over packed sequences in both directions: burnish has no op for it. Write it another way, {AS_IT_CAME}")
    steps: Any = sequence.batch_sizes
    x = _all_steps(sequence)
    number, lengths = _at(steps.lengths, len(steps))
    last = (number == lengths - 1).unsqueeze(-1)
    weights: Any = module._flat_weights
    each, states = len(weights) // module.num_layers, []
    for layer in range(module.num_layers):
        first = torch.zeros(1, steps[0], module.hidden_size, dtype=x.dtype) if hx is None else hx[layer : layer + 1]
        own = weights[layer * each : (layer + 1) * each]
        x, _ = torch.gru(x, first, own, module.bias, 1, 0.0, False, False, False)
        states.append(torch.where(last, x, torch.zeros((), dtype=x.dtype)).sum(dim=0))
    return rnn.PackedSequence(x.reshape(x.shape[0] * x.shape[1], -1), steps), torch.stack(states)


def _others(module: torch.nn.RNNBase, *_: Any) -> Any:
    raise CaptureError(
        f"{type(module).__name__} over packed sequences: burnish follows a GRU's only. Run it over the padded sequence, {AS_IT_CAME}"
    )


def _ours(x: Any) -> bool:
    return isinstance(x, rnn.PackedSequence) and isinstance(x.batch_sizes, Steps)


@contextmanager
def rows_stay(model: torch.nn.Module, batch: int) -> Iterator[None]:
    """Trace inside: masks over `batch` rows and packed sequences of `model` are rewritten; everything is put back afterwards."""
    kept: list[tuple[Any, str, Any]] = []

    def put(where: Any, name: str, value: Any) -> None:
        kept.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    pad, own_pack = rnn.pad_packed_sequence, rnn.pack_padded_sequence

    def padded(sequence: Any, *args: Any, **kwargs: Any) -> Any:
        return _pad(sequence, *args, **kwargs) if _ours(sequence) else pad(sequence, *args, **kwargs)

    homes = {id(m): m for m in (rnn, *(sys.modules.get(type(part).__module__) for part in model.modules())) if m is not None}
    for home in homes.values():
        for name, value in list(vars(home).items()):
            if value is own_pack:
                put(home, name, _pack)
            elif value is pad:
                put(home, name, padded)
    for kind, run in ((torch.nn.GRU, _gru), (torch.nn.LSTM, _others), (torch.nn.RNN, _others)):
        original = kind.forward

        def forward(self: Any, input: Any, hx: Any = None, *, run: Any = run, original: Any = original) -> Any:
            return run(self, input, hx) if _ours(input) else original(self, input, hx)

        put(kind, "forward", forward)
    try:
        with RowMasks(batch):
            yield
    finally:
        for where, name, value in reversed(kept):
            setattr(where, name, value)
