"""Scoring with an artifact: check the arrays, call the engine, shape the scores. Needs numpy, no torch and no compiler.

A scorer may be called from several threads: calls take turns where the engine cannot run them side by side. For a core each, load one
scorer a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from burnish.backends.table import Engine, backend
from burnish.errors import InputError
from burnish.inputs import Half, Input, check_array, check_names
from burnish.runtime.artifact import Artifact, Output

Given = Mapping[str, np.ndarray]
Scores = np.ndarray | dict[str, np.ndarray]


def load(path: str | Path, threads: int = 1, verify: bool = False) -> Scorer:
    """Open the artifact at `path`. ArtifactError when it is damaged (all of it is checked with `verify`) or not for this machine."""
    artifact = Artifact.read(path)
    if verify:
        artifact.verify()
    return Scorer(artifact, threads)


class Scorer:
    """An open artifact.

    scorer(request={name: (*half shape)}, candidates={name: (N, *half shape)})    one request and its candidates
    scorer.rows({name: (N, *shape)})                                              a plain table

    An input whose columns lie on both sides is given in both mappings, each with its own columns in order. Both calls return (N,) float32,
    (N, *shape) where the output has more than one value a row, or a dict of such where the model has several outputs. No candidates, no
    scores: N = 0 returns empty arrays. InputError, one sentence, when an array does not fit.
    """

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        if threads < 1:
            raise InputError(f"a scorer cannot have {threads} threads. Give at least 1")
        self.artifact = artifact  # keeps a temporary directory alive
        self.program = artifact.program
        self.inputs: tuple[Input, ...] = artifact.manifest.inputs
        self.outputs: tuple[Output, ...] = artifact.manifest.outputs
        self.threads = threads
        self._engine: Engine = backend(self.program.backend).open(artifact.path, self.program, self.inputs, threads)
        check_ids = not getattr(self._engine, "checks_ids", False)
        concurrent = getattr(self._engine, "concurrent", False)
        self._turn: AbstractContextManager[Any] = nullcontext() if concurrent else threading.Lock()
        halves = [_Expected(spec, half, check_ids) for spec in self.inputs for half in spec.halves]
        self._request = [e for e in halves if e.half.side == "request"]
        self._candidates = [e for e in halves if e.half.side == "candidate"]
        self._whole = [_Expected(spec, Half(spec.name, "candidate", spec.dtype, spec.shape, None), check_ids) for spec in self.inputs]

    def __call__(self, request: Given | None = None, candidates: Given | None = None) -> Scores:
        once, _ = _taken(self._request, request or {}, 0, "the request values")
        each, n = _taken(self._candidates, candidates or {}, 1, "the candidates")
        if n == 0:
            return self._scores(self._empty())
        with self._turn:
            found = self._engine.request(once, each, n)
        return self._scores(found)

    def bind(self, request: Given, candidates: Given) -> Callable[[], Scores]:
        """A call without arguments that scores what is in these arrays then: for callers that fill the same arrays again and again.

        Names, dtypes and shapes are checked once, here. Where the engine can be bound its scores are the same array every time.
        """
        once, _ = _taken(self._request, request, 0, "the request values")
        each, n = _taken(self._candidates, candidates, 1, "the candidates")
        bind = getattr(self._engine, "bind", None)
        as_they_are = all(request[name] is a for name, a in once.items()) and all(candidates[name] is a for name, a in each.items())
        if bind is None or n == 0 or not as_they_are:
            return lambda: self(request, candidates)
        score, found = bind(once, each, n)
        scores = self._scores(found)  # views, or copies where a score is narrowed to float32
        if any(output.dtype == "float64" for output in self.outputs):
            return lambda: self._scores(score())

        def call() -> Scores:
            score()
            return scores

        return call

    def rows(self, table: Given) -> Scores:
        """Scores of a plain table: every input has N rows."""
        return self._scores(self.outputs_of(table))

    def outputs_of(self, table: Given) -> dict[str, np.ndarray]:
        """Every output of a plain table by its name, (N, *shape) as the engine computes it."""
        taken, n = _taken(self._whole, table, 1, "the rows")
        if n == 0:
            return self._empty()
        with self._turn:
            return self._engine.rows(taken, n)

    def close(self) -> None:
        """Release the engine; the scorer cannot be called afterwards."""
        self._engine.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _empty(self) -> dict[str, np.ndarray]:
        return {output.name: np.empty((0, *output.shape), output.dtype) for output in self.outputs}

    def _scores(self, found: dict[str, np.ndarray]) -> Scores:
        if len(self.outputs) == 1:
            return _score(found[self.outputs[0].name])
        return {output.name: _score(found[output.name]) for output in self.outputs}


def _score(array: np.ndarray) -> np.ndarray:
    """(N, 1) -> (N,); float64 -> float32."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array.reshape(-1)
    return array.astype(np.float32) if array.dtype == np.float64 else array


class _Expected:
    """What an input, or the half of one, must look like, prepared for checking it in well under a microsecond."""

    __slots__ = ("dtype", "half", "limit", "name", "shape", "slow_ids", "spec", "unsigned")

    def __init__(self, spec: Input, half: Half, check_ids: bool) -> None:
        self.spec, self.half, self.name, self.shape = spec, half, spec.name, half.shape
        self.dtype = np.dtype(half.dtype)
        bounded = check_ids and spec.cardinality is not None and self.dtype.kind != "b"
        self.slow_ids = bounded and self.dtype.kind == "f"  # ids in a float matrix
        self.limit: np.ndarray | None = None
        if bounded and self.dtype.kind == "i":
            # a negative id is a huge unsigned one, so one comparison finds both ends; a column without a bound passes all but -1,
            # which then passes the slow check
            self.unsigned = np.dtype(f"u{self.dtype.itemsize}")
            columns = half.columns if half.columns is not None else range(spec.columns)
            bounds = [spec.cardinality_of(c) for c in columns]
            top = np.iinfo(self.unsigned).max
            limit = np.array([top if b is None else min(b, top) for b in bounds], self.unsigned)
            self.limit = limit.reshape(-1, *[1] * (len(half.shape) - 1)) if half.shape else limit[0]

    def take(self, array: Any, rows: int) -> np.ndarray | None:
        """The array, C-contiguous and aligned, or None when it may not fit: `insist` finds the sentence. `rows`: 1 with rows, 0 without."""
        if (
            array.__class__ is not np.ndarray
            or array.dtype != self.dtype
            or array.ndim != len(self.shape) + rows
            or array.shape[rows:] != self.shape
        ):
            return None
        flags = array.flags
        if not (flags.c_contiguous and flags.aligned):
            array = array.copy()
        if self.slow_ids or (self.limit is not None and (array.view(self.unsigned) >= self.limit).any()):
            return None
        return array

    def insist(self, array: Any, rows: int, where: str) -> np.ndarray:
        """The array as numpy's, C-contiguous and aligned; InputError when it does not fit."""
        array = np.require(array, requirements=("C", "A"))
        if not rows and array.shape != self.shape:
            raise InputError(
                f"input {self.name!r} has shape {array.shape} in {where}, expected {self.shape}: a request has one row for all"
            )
        check_array(self.spec, self.half, array if rows else array[None])
        return array


def _taken(expected: Sequence[_Expected], given: Given, rows: int, where: str) -> tuple[dict[str, np.ndarray], int]:
    """The arrays that `expected` asks for, checked, and their number of rows (1 where there are none)."""
    if len(given) != len(expected):
        check_names([e.spec for e in expected], given, where)
    taken, n = {}, -1
    for e in expected:
        if e.name not in given:
            check_names([e.spec for e in expected], given, where)
        array = e.take(given[e.name], rows)
        if array is None:
            array = e.insist(given[e.name], rows, where)
        taken[e.name] = array
        if rows and n != len(array):
            if n >= 0:
                told = ", ".join(f"{name} {len(array)}" for name, array in taken.items())
                raise InputError(f"{where} have different numbers of rows: {told}. Give every input the same number of rows")
            n = len(array)
    return taken, max(n, 1) if n < 0 else n
