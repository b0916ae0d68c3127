"""How a new version is tried, and when it is taken back: what DIR/rollout.json says, and the judgement by it.

    {"candidate": "4", "mode": "canary", "share": 0.05, "limits": {"errors": 0.01, "latency": 1.5, "drift": 0.25}}

Every field has a default; without the file a new version is the current one at once, and is taken back by the limits below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from burnish.errors import ServeError

FILE = "rollout.json"
QUANTILES = 8
BINS = QUANTILES + 1  # the last: scores that are no finite number
_FEWEST_ERRORS = 5  # that say anything of a version


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a new version may be worse by than the one before, both as they served, before it is taken back by itself."""

    errors: float = 0.01  # share of requests on which it fails, beyond the share of the one before
    latency: float = 2.0  # p99 of its scoring, times that of the one before
    drift: float = 0.25  # population stability index of its scores against those of the one before
    requests: int = 200  # that each must have scored before latency and drift are judged
    seconds: float = 600.0  # that a version which became the current one is on trial

    def __post_init__(self) -> None:
        for name, least in (("errors", 0), ("latency", 1), ("drift", 0), ("requests", 1), ("seconds", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(f"limits.{name} is {value:g}. Give a number of at least {least}")


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version on trial beside the current one, if there is one: `shadow` scores what the current one answers and is compared, `canary`
    answers a share of the requests."""

    candidate: str = ""
    mode: Literal["shadow", "canary"] = "shadow"
    share: float = 0.05
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share:g}. Give a number above 0, and at most 1")

    @classmethod
    def read(cls, directory: Path) -> Rollout:
        """What the file in `directory` says, the defaults where there is none; ServeError when it says nothing that can be followed."""
        path = directory / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ServeError(f"{path} cannot be followed: {error}") from None
        except OSError as error:
            raise ServeError(f"{path} cannot be read: {error.strerror}") from None

    def text(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


class Arm(msgspec.Struct, frozen=True):
    """What one version did: requests that it scored, those on which it failed, counts of its scoring's seconds in the buckets of
    metrics.SECONDS, and of its scores in BINS bins."""

    requests: int
    errors: int
    compute: tuple[float, ...]
    scores: tuple[float, ...]

    def since(self, before: Arm) -> Arm:
        """What was done after `before`."""
        compute = tuple(a - b for a, b in zip(self.compute, before.compute))
        scores = tuple(a - b for a, b in zip(self.scores, before.scores))
        return Arm(self.requests - before.requests, self.errors - before.errors, compute, scores)


def judge(new: Arm, old: Arm, limits: Limits, bounds: Sequence[float]) -> str | None:
    """Why a version that did `new` must be taken back, beside the one that did `old`; None while nothing is crossed. `bounds` are those
    of the buckets of seconds."""
    rate, before = (arm.errors / max(1, arm.requests + arm.errors) for arm in (new, old))
    if new.errors >= _FEWEST_ERRORS and rate > before + limits.errors:
        return f"it failed on {rate:.2%} of its requests, the version before on {before:.2%}; {limits.errors:.2%} more are allowed"
    if min(new.requests, old.requests) < limits.requests:
        return None
    p99, p99_before = quantile(new.compute, bounds, 0.99), quantile(old.compute, bounds, 0.99)
    if p99 > limits.latency * p99_before:
        told = f"p99 of its scoring is {1e3 * p99:.3g} ms, of the version before {1e3 * p99_before:.3g} ms"
        return f"{told}; {limits.latency:g} times that is allowed"
    apart = drift(new.scores, old.scores)
    if apart > limits.drift:
        told = f"its scores have drifted by {apart:.3g} from those of the version before (population stability index)"
        return f"{told}; {limits.drift:g} is allowed"
    return None


def quantile(counts: Sequence[float], bounds: Sequence[float], q: float) -> float:
    """The q-quantile of what was counted in buckets up to `bounds` and one beyond; linear within a bucket."""
    total = np.cumsum(counts)
    if not total[-1]:
        return 0.0
    at = int(np.searchsorted(total, q * total[-1]))
    low = bounds[at - 1] if at else 0.0
    high = bounds[min(at, len(bounds) - 1)]
    inside = counts[at]
    part = (q * total[-1] - (total[at] - inside)) / inside if inside else 1.0
    return float(low + part * (high - low))


def drift(counts: Sequence[float], reference: Sequence[float] | None = None) -> float:
    """Population stability index between two counts in BINS bins; 0 while one of them has none.

    Without a reference, against the golden rows, whose scores fill the finite bins alike. sum((p - q) * ln(p / q)), half a count added to
    each bin (as in Siddiqi, Credit Risk Scorecards, 2006, where 0.1 is a small change and 0.25 a large one).
    """
    want = np.array(reference if reference is not None else [*[1.0] * QUANTILES, 0.0])
    got = np.array(counts, np.float64)
    if not got.sum() or not want.sum():
        return 0.0
    if reference is None:
        want *= got.sum() / want.sum()
    p, q = ((a + 0.5) / (a.sum() + 0.5 * len(a)) for a in (got, want))
    return float(((p - q) * np.log(p / q)).sum())


def edges(golden: np.ndarray) -> tuple[float, ...]:
    """The inner bounds of QUANTILES bins that hold equally many of the golden rows' scores."""
    flat = np.asarray(golden, np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    return tuple(np.quantile(finite if finite.size else [0.0], np.arange(1, QUANTILES) / QUANTILES).tolist())


def binned(scores: np.ndarray, inner: np.ndarray) -> list[float]:
    """How many of the scores lie in each of the BINS bins."""
    flat = np.asarray(scores, np.float64).ravel()
    at = np.where(np.isfinite(flat), np.searchsorted(inner, flat), QUANTILES)
    return np.bincount(at, minlength=BINS).astype(float).tolist()
