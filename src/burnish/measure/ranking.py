"""What is computed by sorting: AUC and its placement values, per-request AUC, NDCG, reciprocal rank, agreement of two orders. All are pure
functions on arrays.

Every function takes `groups`, the group (request, slice) of each row as ints 0..G-1, and works on all groups at once. Ties are handled as
ties: half a win in AUC, expected gain in NDCG, expected reciprocal rank, tau-b.
"""

from __future__ import annotations

import numpy as np


def placements(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(N,) float64: for a positive row the share of its group's negatives that it outranks, for a negative row the share of its group's
    positives that outrank it, ties counted half; NaN in groups of one class.

    These are the structural components of DeLong, DeLong & Clarke-Pearson (1988). The mean over a group's positives, or over its
    negatives, is the group's AUC. O(N log N), after Sun & Xu (2014), with one sort instead of three: within sorted scores the
    midranks among the other class are cumulative counts.
    """
    order, starts, bounds = _sorted(scores, groups)
    positive = labels[order].astype(bool)
    ones = np.concatenate(([0], np.cumsum(positive)))  # positives before each sorted position
    tie_begin = np.repeat(starts[:-1], np.diff(starts))
    tie_end = np.repeat(starts[1:], np.diff(starts))
    group_begin = np.repeat(bounds[:-1], np.diff(bounds))
    group_end = np.repeat(bounds[1:], np.diff(bounds))
    below = ones[tie_begin] - ones[group_begin]
    tied = ones[tie_end] - ones[tie_begin]
    total = ones[group_end] - ones[group_begin]
    negatives_below = (tie_begin - group_begin) - below + 0.5 * (tie_end - tie_begin - tied)
    positives_above = total - below - 0.5 * tied
    negatives = group_end - group_begin - total
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(positive, negatives_below / negatives, positives_above / total)
    value[(total == 0) | (negatives == 0)] = np.nan
    out = np.empty(len(scores))
    out[order] = value
    return out


def group_auc(labels: np.ndarray, placed: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """(G,) AUC of each group from its rows' placements; NaN for groups of one class."""
    positives = np.bincount(groups, weights=labels, minlength=count)
    wins = np.bincount(groups, weights=np.where(labels > 0, placed, 0.0), minlength=count)
    with np.errstate(divide="ignore", invalid="ignore"):
        return wins / positives


def ndcg(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, count: int, k: int) -> np.ndarray:
    """(G,) NDCG@k with gain = label and discount 1/log2(rank + 1) (Järvelin & Kekäläinen 2002); tied scores share the mean discount of
    their ranks, which is the expectation over random tie breaking (McSherry & Najork 2008). NaN for groups without a positive."""
    order, starts, bounds = _sorted(-scores, groups)
    rank = np.arange(len(scores)) - np.repeat(bounds[:-1], np.diff(bounds))
    discount = np.where(rank < k, 1 / np.log2(rank + 2), 0.0)
    shared = np.add.reduceat(discount, starts[:-1]) / np.diff(starts)
    gains = np.bincount(groups[order], weights=labels[order] * np.repeat(shared, np.diff(starts)), minlength=count)
    positives = np.bincount(groups, weights=labels, minlength=count)
    ideal = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))))[np.minimum(positives, k).astype(int)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return gains / ideal


def reciprocal_rank(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """(G,) 1 / rank of the best-scored positive, whose mean is MRR (Voorhees 1999); for tied scores its expectation over random tie
    breaking. NaN for groups without a positive."""
    order, starts, bounds = _sorted(-scores, groups)
    positive = labels[order] > 0
    run = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    found, at = np.unique(groups[order][positive], return_index=True)  # the first positive of each group, by descending score
    first = run[np.flatnonzero(positive)[at]]
    above = starts[first] - np.repeat(bounds[:-1], np.diff(bounds))[starts[first]]  # rows of the group in front of its run
    size = np.diff(starts)[first]
    ones = np.bincount(run, weights=positive, minlength=len(starts) - 1)[first]
    expected = np.zeros(len(found))
    chance = ones / size  # that the first positive stands at place j of the run
    for j in range(int(size.max(initial=0))):
        expected += chance / (above + j + 1)
        chance = chance * np.maximum(size - j - ones, 0) / np.maximum(size - j - 1, 1)
        if not chance.any():
            break
    out = np.full(count, np.nan)
    out[found] = expected
    return out


def topk_overlap(first: np.ndarray, second: np.ndarray, groups: np.ndarray, count: int, k: int) -> np.ndarray:
    """(G,) share of the k best by `first` that are among the k best by `second`; equal scores keep the order of the rows. NaN for groups of
    at most k rows, whose overlap is 1 whatever the scores are."""
    best = []
    for scores in (first, second):
        order, _, bounds = _sorted(-scores, groups)
        top = np.empty(len(scores), bool)
        top[order] = np.arange(len(scores)) - np.repeat(bounds[:-1], np.diff(bounds)) < k
        best.append(top)
    shared = np.bincount(groups, weights=best[0] & best[1], minlength=count)
    return np.where(np.bincount(groups, minlength=count) > k, shared / k, np.nan)


def kendall_tau(first: np.ndarray, second: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """(G,) Kendall's tau-b of the two orders within each group; NaN where either has no two different scores.

    Knight (1966): order by `first`, ties by `second`; the discordant pairs are then the inversions of `second`. They are counted bit by
    bit from the top for all groups at once: among rows equal so far, each 1 in front of a 0 is an inversion, and each bit is
    followed by a stable partition. O(N log(largest group)).
    """
    order = np.lexsort((second, first, groups))
    group, a, b = groups[order], first[order], second[order]
    bounds = np.append(np.flatnonzero(np.diff(group, prepend=-1)), len(group))
    pairs = np.bincount(groups, minlength=count).astype(float)
    pairs = pairs * (pairs - 1) / 2

    tied_first = _tied_pairs(group, count, a)
    tied_both = _tied_pairs(group, count, a, b)
    by_second, starts, _ = _sorted(b, group)
    tied_second = _tied_pairs(group[by_second], count, b[by_second])
    dense = np.empty(len(b), np.int64)  # rank of each distinct `second` within its group
    tie = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    dense[by_second] = tie - np.repeat(tie[bounds[:-1]], np.diff(bounds))

    discordant = np.zeros(count)
    prefix = group.astype(np.int64)  # rows with the same prefix are contiguous and in the order of `first`
    for bit in range(int(dense.max(initial=0)).bit_length() - 1, -1, -1):
        one = (dense >> bit) & 1
        edges = np.append(np.flatnonzero(np.diff(prefix, prepend=-1)), len(prefix))
        width = np.diff(edges)
        begin = np.repeat(edges[:-1], width)
        ones = np.cumsum(one) - one  # ones before each row
        ones_here = ones - np.repeat(ones[edges[:-1]], width)
        discordant += np.bincount(group, weights=np.where(one == 0, ones_here, 0), minlength=count)
        zeros_here = np.arange(len(one)) - begin - ones_here
        zeros = np.repeat(width - np.add.reduceat(one, edges[:-1]), width)
        to = begin + np.where(one == 0, zeros_here, zeros + ones_here)
        moved = np.empty_like(dense)
        moved[to] = dense
        dense = moved
        lead = np.empty_like(prefix)
        lead[to] = prefix * 2 + one
        prefix = np.cumsum(np.diff(lead, prepend=lead[0]) != 0)
    concordant = pairs - tied_first - tied_second + tied_both - discordant
    with np.errstate(divide="ignore", invalid="ignore"):
        return (concordant - discordant) / np.sqrt((pairs - tied_first) * (pairs - tied_second))


def _sorted(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(order, starts, bounds): rows by group, then ascending score, then row; where runs of equal scores begin, where groups begin, each
    with the number of rows at its end."""
    order = np.argsort(scores, kind="stable")
    last = groups.max(initial=0)
    if last:  # numpy sorts integers of 16 bits by radix, in a fraction of the time of a lexsort
        order = order[np.argsort(groups[order].astype(np.uint16 if last < 2**16 else np.int64), kind="stable")]
    value = scores[order]
    group = groups[order]
    new_group = np.diff(group, prepend=-1) != 0
    new_run = new_group.copy()
    new_run[1:] |= value[1:] != value[:-1]
    n = len(scores)
    return order, np.append(np.flatnonzero(new_run), n), np.append(np.flatnonzero(new_group), n)


def _tied_pairs(group: np.ndarray, count: int, *keys: np.ndarray) -> np.ndarray:
    """(G,) number of pairs of rows equal in every key; equal rows of a group stand next to each other."""
    new = np.diff(group, prepend=-1) != 0
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    starts = np.flatnonzero(new)
    size = np.diff(np.append(starts, len(group))).astype(float)
    return np.bincount(group[starts], weights=size * (size - 1) / 2, minlength=count)
