"""Calls as serving sees them, of real rows: a request beside many candidates, other rows each time, ids as popular as in the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from burnish.errors import InputError, MeasureError
from burnish.inputs import Half, Input, rows_of

Call = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Traffic:
    """A fixed sequence of calls. `traffic[i]` is (request, candidates): request name -> (*half shape), candidates name -> (N_i, *half
    shape). The arrays are contiguous, keep the dtypes of the rows, and were gathered ahead, so handing one out costs no copy."""

    inputs: tuple[Input, ...]
    request: dict[str, np.ndarray]  # name -> (calls, *half shape)
    candidates: dict[str, np.ndarray]  # name -> (all candidates of all calls, *half shape)
    ends: np.ndarray  # (calls + 1,) int64: call i has the candidates ends[i] to ends[i + 1]
    request_rows: np.ndarray  # (calls,) the row of the table each request came from
    candidate_rows: np.ndarray  # (all candidates,) and each candidate

    @classmethod
    def from_rows(
        cls,
        inputs: Sequence[Input],
        table: Mapping[str, np.ndarray],
        request_key: np.ndarray | None = None,
        candidates: int | np.ndarray = 128,
        calls: int = 256,
        seed: int = 0,
    ) -> Traffic:
        """Calls made of the rows of a plain table (name -> (rows, *shape)).

        A call takes the request half of one row and the candidate halves of others. With `request_key` (rows,), an id of the request each
        row belongs to, the candidates of that request come first and rows of others fill up. Rows are taken in random order, each
        once before any is taken again, so an id is met as often as the data has it. `candidates` is a number, or an array of
        numbers to draw from (a trace's candidate counts).
        """
        rows = rows_of(inputs, table)
        if rows == 0:
            raise InputError("there are no rows to make traffic of")
        sizes = np.atleast_1d(np.asarray(candidates))
        if calls < 1 or sizes.size == 0 or sizes.dtype.kind not in "iu" or sizes.min() < 1:
            raise MeasureError(f"traffic needs at least 1 call and 1 candidate in each; met {calls} calls and candidates {candidates}")
        random = np.random.default_rng(seed)
        sizes = random.choice(sizes, calls) if sizes.size > 1 else np.full(calls, sizes[0])
        ends = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        candidate_rows = _in_turn(random, rows, int(ends[-1]))
        if request_key is None:
            request_rows = _in_turn(random, rows, calls)
        else:
            key = np.asarray(request_key)
            if key.shape != (rows,):
                raise InputError(f"request_key has shape {key.shape}, expected ({rows},): one request id a row")
            _, codes = np.unique(key, return_inverse=True)
            by_request = np.argsort(codes, kind="stable")
            bounds = np.append(0, np.cumsum(np.bincount(codes)))
            chosen = _in_turn(random, len(bounds) - 1, calls)
            request_rows = by_request[bounds[chosen]]
            for begin, size, r in zip(ends, sizes, chosen):
                own = by_request[bounds[r] : bounds[r + 1]][:size]
                candidate_rows[begin : begin + len(own)] = own
        request_part, candidate_part = {}, {}
        for spec in inputs:
            for half in spec.halves:
                array = np.asarray(table[spec.name])
                if half.side == "request":
                    request_part[spec.name] = _take(array, request_rows, half)
                else:
                    candidate_part[spec.name] = _take(array, candidate_rows, half)
        return cls(tuple(inputs), request_part, candidate_part, ends, request_rows, candidate_rows)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> Call:
        if not -len(self) <= i < len(self):
            raise IndexError(f"call {i} of {len(self)}")
        i %= len(self)
        begin, end = self.ends[i], self.ends[i + 1]
        return {name: array[i] for name, array in self.request.items()}, {name: array[begin:end] for name, array in self.candidates.items()}

    def __iter__(self) -> Iterator[Call]:
        return (self[i] for i in range(len(self)))

    def count(self, i: int) -> int:
        """The number of candidates of call i."""
        return int(self.ends[i + 1] - self.ends[i])

    def rows_table(self, i: int) -> dict[str, np.ndarray]:
        """Call i as a plain table, name -> (N_i, *shape): the request's values repeated for each candidate."""
        request, candidates = self[i]
        n = self.count(i)
        table = {}
        for spec in self.inputs:
            array = np.empty((n, *spec.shape), spec.dtype)
            for half in spec.halves:
                part = request[spec.name] if half.side == "request" else candidates[spec.name]
                array[_columns(half)] = part
            table[spec.name] = array
        return table


def _in_turn(random: np.random.Generator, n: int, count: int) -> np.ndarray:
    """(count,) int64: permutations of 0..n-1, one after another."""
    return np.concatenate([random.permutation(n) for _ in range(-(-count // n))])[:count]


def _take(array: np.ndarray, rows: np.ndarray, half: Half) -> np.ndarray:
    return np.ascontiguousarray(array[rows][_columns(half)])


def _columns(half: Half) -> tuple[slice | list[int], ...]:
    """The index of a half's columns in an array (rows, *shape)."""
    return (slice(None),) if half.columns is None else (slice(None), list(half.columns))
