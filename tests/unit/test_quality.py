"""Metrics against independent implementations, intervals against simulation, verdicts and sentences as written."""

import itertools
import math
import re
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.errors import MeasureError
from burnish.measure import quality, ranking


def rows(n=2000, seed=0, noise=0.3, requests=None, request_effect=0.0):
    """(labels, original, scores, request ids): probabilities, the scores noisier than the original."""
    random = np.random.default_rng(seed)
    request = np.arange(n) if requests is None else random.integers(0, requests, n)
    z = random.normal(-1, 1, n) + request_effect * random.normal(0, 1, (requests or n))[request]
    labels = (random.random(n) < 1 / (1 + np.exp(-z))).astype(np.int64)
    original = z + random.normal(0, 1, n)
    scores = original + noise * random.normal(0, 1, n)
    return labels, *((1 / (1 + np.exp(-s))).astype(np.float32) for s in (original, scores)), request


def brute_force_delong(labels, first, second):
    """AUCs and the standard error of their difference by the definition of DeLong et al. (1988): all pairs, covariance matrices."""
    wins = [np.sign(s[labels == 1][:, None].astype(float) - s[labels == 0][None, :]) * 0.5 + 0.5 for s in (first, second)]
    by_positive, by_negative = (np.cov(np.stack([w.mean(axis) for w in wins])) for axis in (1, 0))
    covariance = by_positive / (labels == 1).sum() + by_negative / (labels == 0).sum()
    contrast = np.array([-1.0, 1.0])
    return [w.mean() for w in wins], math.sqrt(contrast @ covariance @ contrast)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_equals_its_definition_over_all_pairs(ties):
    labels, original, scores, _ = rows(700)
    if ties:
        original, scores = np.round(original, 1), np.round(scores, 1)
    (first, second), error = brute_force_delong(labels, original, scores)
    auc = quality.compare(labels, original, scores)["auc"]
    assert auc.original == pytest.approx(first, abs=1e-12)
    assert auc.value == pytest.approx(second, abs=1e-12)
    assert auc.standard_error == pytest.approx(error, rel=1e-9)
    assert auc.interval == "DeLong over rows"


def test_placements_of_groups_are_those_of_each_group_alone():
    labels, scores, _, request = rows(500, requests=40)
    scores = np.round(scores, 2)
    together = ranking.placements(labels, scores, request)
    for r in range(40):
        mine = request == r
        alone = ranking.placements(labels[mine], scores[mine], np.zeros(mine.sum(), int))
        np.testing.assert_array_equal(together[mine], alone)


def test_requests_of_one_row_give_the_interval_of_rows():
    labels, original, scores, _ = rows(3000)
    alone = quality.compare(labels, original, scores)["auc"]
    clustered = quality.compare(labels, original, scores, requests=np.arange(3000))["auc"]
    assert clustered.standard_error == pytest.approx(alone.standard_error, rel=0.002)


def test_the_gate_uses_the_interval_clustered_by_request_and_shows_the_other():
    labels, original, _, request = rows(4000, requests=100)
    shift = np.random.default_rng(1).normal(0, 3, 100)[request]  # the change moves whole requests
    scores = 1 / (1 + np.exp(-(np.log(original / (1 - original)) + shift)))
    found = quality.compare(labels, original, scores, requests=request)
    assert found["auc"].interval == "DeLong clustered by request" and found["auc"].units == 100
    assert found["auc_by_rows"].interval == "DeLong over rows" and found["auc_by_rows"].units == 4000
    assert found["auc"].standard_error > 1.1 * found["auc_by_rows"].standard_error


def test_analytic_intervals_equal_a_bootstrap_over_requests():
    labels, original, scores, request = rows(4000, requests=300, request_effect=1.0, noise=0.6)
    found = quality.compare(labels, original, scores, requests=request)
    random = np.random.default_rng(2)
    of_request = [np.flatnonzero(request == r) for r in range(300)]
    names = ("auc", "log_loss", "normalized_entropy", "calibration", "gauc", "ndcg", "mrr", "topk_overlap", "kendall_tau")
    draws = {name: [] for name in names}
    for _ in range(250):
        drawn = random.integers(0, 300, 300)
        pick = np.concatenate([of_request[r] for r in drawn])
        again = np.repeat(np.arange(300), [len(of_request[r]) for r in drawn])
        sample = quality.compare(labels[pick], original[pick], scores[pick], requests=again)
        for name in names:
            draws[name].append(sample[name].delta)
    for name in names:  # a standard deviation of 250 draws is itself known to 4.5 %
        assert np.std(draws[name], ddof=1) == pytest.approx(found[name].standard_error, rel=0.15), name


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_of_95_percent_cover_the_truth_in_93_to_97_percent_of_samples(clustered):
    # the truth is the difference over a population so large that its own error does not matter
    sizes, runs = (400_000, 60_000) if clustered else (400_000, None)
    labels, original, scores, request = rows(sizes, seed=3, requests=runs, request_effect=1.0, noise=1.0)
    whole = quality.compare(labels, original, scores)
    random, covered, times = np.random.default_rng(4), {}, 1200
    order = np.argsort(request, kind="stable")
    ends = np.append(0, np.cumsum(np.bincount(request)))
    for _ in range(times):
        if clustered:
            pick = np.concatenate([order[ends[r] : ends[r + 1]] for r in random.integers(0, runs, 100)])
        else:
            pick = random.integers(0, sizes, 500)
        sample = quality.compare(labels[pick], original[pick], scores[pick], requests=request[pick] if clustered else None)
        for name in ("auc", "log_loss", "normalized_entropy", "calibration", "ece"):
            inside = sample[name].low <= whole[name].delta <= sample[name].high
            covered[name] = covered.get(name, 0) + inside
            if name == "ece":  # has none
                continue
            relative = sample[name].relative_low <= whole[name].relative <= sample[name].relative_high
            covered[name + " relative"] = covered.get(name + " relative", 0) + relative
    for name, count in covered.items():
        assert 0.93 <= count / times <= 0.97, (name, count / times)


def test_the_gate_errs_in_2_and_a_half_percent_of_samples_at_each_end():
    labels, original, scores, _ = rows(400_000, seed=8, noise=1.0)
    limit = -quality.compare(labels, original, scores)["auc"].relative  # the change loses exactly what is allowed
    random, outcomes, times = np.random.default_rng(9), [], 1200
    for _ in range(times):
        pick = random.integers(0, 400_000, 500)
        outcomes.append(quality.gate(quality.compare(labels[pick], original[pick], scores[pick]), max_drop=limit).outcome)
    assert 0.01 <= outcomes.count("accepted") / times <= 0.04
    assert 0.01 <= outcomes.count("rejected") / times <= 0.04


@given(
    st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(1, 5),
)
def test_per_request_metrics_agree_with_each_request_alone_for_any_ties(given_rows, k):
    labels, first, second, group = (np.array(column) for column in zip(*given_rows))
    _, group = np.unique(group, return_inverse=True)
    labels, first, second, count = labels.astype(float), first.astype(float), second.astype(float), group.max() + 1
    auc = ranking.group_auc(labels, ranking.placements(labels, second, group), group, count)
    tau = ranking.kendall_tau(first, second, group, count)
    overlap = ranking.topk_overlap(first, second, group, count, k)
    for g in range(count):
        y, a, b = labels[group == g], first[group == g], second[group == g]
        wins = [(x > z) + 0.5 * (x == z) for x in b[y == 1] for z in b[y == 0]]
        assert auc[g] == pytest.approx(np.mean(wins) if wins else math.nan, nan_ok=True)
        assert tau[g] == pytest.approx(brute_force_tau_b(a, b), abs=1e-12, nan_ok=True)
        best = [set(sorted(range(len(y)), key=(-s).__getitem__)[:k]) for s in (a, b)]
        assert overlap[g] == pytest.approx(len(best[0] & best[1]) / k if len(y) > k else math.nan, nan_ok=True)


def test_probability_metrics_are_what_their_formulas_say():
    labels = np.array([1, 0, 0, 1, 0])
    original = np.array([0.9, 0.2, 0.4, 0.6, 0.1])
    scores = np.array([0.8, 0.3, 0.4, 0.5, 0.2])
    found = quality.compare(labels, original, scores)
    assert found.scale == "probability"
    loss = -np.log([0.8, 0.7, 0.6, 0.5, 0.8]).mean()
    entropy = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert found["log_loss"].value == pytest.approx(loss)
    assert found["normalized_entropy"].value == pytest.approx(loss / entropy)
    assert found["calibration"].value == pytest.approx(2.2 / 2)
    assert found["calibration"].original == pytest.approx(2.2 / 2)


def test_scores_outside_0_to_1_are_logits_and_give_the_same_metrics():
    labels, original, scores, _ = rows(1000)
    p = [np.clip(s.astype(np.float64), 0.001, 0.999) for s in (original, scores)]
    as_probabilities = quality.compare(labels, *p)
    as_logits = quality.compare(labels, *(np.log(s / (1 - s)) for s in p))
    assert (as_probabilities.scale, as_logits.scale) == ("probability", "logit")
    for name in ("auc", "log_loss", "normalized_entropy", "calibration"):
        assert as_logits[name].delta == pytest.approx(as_probabilities[name].delta, abs=1e-12)
        assert as_logits[name].low == pytest.approx(as_probabilities[name].low, abs=1e-12)


def test_the_calibration_error_is_the_mean_gap_of_bins_of_equal_mass():
    random = np.random.default_rng(0)
    p, q = random.random(3000), random.random(3000)
    labels = (random.random(3000) < p).astype(int)
    for scores in (p, q):
        order = np.argsort(scores)
        gaps = [abs(scores[part].mean() - labels[part].mean()) for part in np.split(order, 15)]
        assert quality.compare(labels, p, scores)["ece"].value == pytest.approx(np.mean(gaps), rel=1e-9)
    found = quality.compare(labels, p, q, requests=np.arange(3000) // 3)["ece"]
    assert found.interval == "bootstrap over requests" and found.units == 1000 and found.low > 0.1
    verdict = quality.gate(quality.compare(labels, p, q), "ece", 0.01, "absolute")
    assert verdict.outcome == "rejected" and "a rise of 0.01 is allowed" in verdict.sentence
    with pytest.raises(MeasureError, match=r"^ece is 0 for a calibrated model but for noise, so there is no relative drop of it; use drop"):
        quality.gate(quality.compare(labels, p, q), "ece")


def test_the_reciprocal_rank_is_that_of_the_first_positive_over_all_orders_of_tied_rows():
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 60), random.integers(0, 4, 60).astype(float)
    groups = np.repeat(np.arange(12), 5)
    found = ranking.reciprocal_rank(labels, scores, groups, 12)
    for g in range(12):
        y, s = labels[groups == g], scores[groups == g]
        orders = [o for o in itertools.permutations(range(5)) if all(s[a] >= s[b] for a, b in itertools.pairwise(o))]
        each = [next((1 / (rank + 1) for rank, i in enumerate(o) if y[i]), math.nan) for o in orders]
        assert found[g] == pytest.approx(np.mean(each), nan_ok=True)


def brute_force_tau_b(a, b):
    pairs = list(itertools.combinations(range(len(a)), 2))
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in pairs]
    up = sum(x * y for x, y in signs)
    below = math.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs))
    return float(up) / below if below else math.nan


@pytest.mark.parametrize("digits", [1, 6])
def test_kendall_tau_equals_its_definition_over_all_pairs_of_each_request(digits):
    _, first, second, request = rows(900, requests=60, noise=3)
    first, second = np.round(first, digits), np.round(second, digits)
    tau = ranking.kendall_tau(first, second, request, 60)
    for r in range(60):
        assert tau[r] == pytest.approx(brute_force_tau_b(first[request == r], second[request == r]), abs=1e-12, nan_ok=True)


def test_ndcg_is_the_mean_over_all_orders_of_tied_rows():
    labels = np.array([0, 1, 1, 0, 0])
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    ideal = 1 + 1 / math.log2(3)
    each = []
    for middle in itertools.permutations([1, 2, 3]):
        order = [0, *middle, 4][:3]
        each.append(sum(labels[i] / math.log2(rank + 2) for rank, i in enumerate(order)) / ideal)
    found = ranking.ndcg(labels, scores, np.zeros(5, int), 1, k=3)
    assert found[0] == pytest.approx(np.mean(each))


def test_ndcg_is_nan_without_a_positive_and_1_for_a_perfect_order():
    request = np.array([0, 0, 1, 1])
    found = ranking.ndcg(np.array([0, 0, 1, 0]), np.array([1.0, 2.0, 2.0, 1.0]), request, 2, k=10)
    assert math.isnan(found[0]) and found[1] == pytest.approx(1)


def test_topk_overlap_counts_shared_rows_of_requests_with_more_than_k():
    first = np.array([4.0, 3, 2, 1, 9, 8])
    second = np.array([4.0, 1, 2, 3, 9, 8])
    found = ranking.topk_overlap(first, second, np.array([0, 0, 0, 0, 1, 1]), 2, k=2)
    assert found[0] == 0.5 and math.isnan(found[1])


def test_gauc_weights_the_auc_of_each_request_by_its_rows():
    labels = np.array([1, 0, 1, 0, 0, 0, 1, 1])
    scores = np.array([0.9, 0.1, 0.2, 0.3, 0.1, 0.1, 0.5, 0.6])
    request = np.array(["a", "a", "b", "b", "b", "b", "only positives", "only positives"])
    found = quality.compare(labels, scores, scores, requests=request)
    assert found["gauc"].value == pytest.approx((2 * 1 + 4 * 2 / 3) / 6)
    assert "gauc is over the 2 of 3 requests that have rows of both labels" in found.notes


def test_equal_scores_have_no_difference_and_pass():
    labels, original, _, request = rows(1000, requests=50)
    found = quality.compare(labels, original, original, requests=request)
    assert (found["auc"].delta, found["auc"].low, found["auc"].high) == (0, 0, 0)
    assert found["kendall_tau"].value == found["topk_overlap"].value == 1
    assert quality.gate(found, max_drop=0).outcome == "accepted"


def test_int_and_bool_labels_and_string_requests_are_taken():
    labels, original, scores, request = rows(500, requests=50)
    plain = quality.compare(labels, original, scores, requests=request)
    other = quality.compare(labels.astype(bool), original, scores, requests=request.astype(str))
    assert plain["auc"].low == pytest.approx(other["auc"].low, rel=1e-9)


# the gate


def test_the_gate_accepts_when_the_bad_end_is_inside():
    labels, original, scores, request = rows(200_000, noise=0.02, requests=5000)
    verdict = quality.gate(quality.compare(labels, original, scores, requests=request), max_drop=0.001)
    assert verdict.outcome == "accepted" and verdict.worst < 0.001 and verdict.rows_needed is None
    assert re.fullmatch(
        r"auc changed by -?[\d.e-]+ % \[-[\d.e-]+ %, [\d.e-]+ %\] on 200,000 rows in 5,000 requests; a drop of 0\.1 % is allowed",
        verdict.sentence,
    )


@pytest.mark.parametrize(
    ("allowed", "text"), [(1.0, "100 %"), (0.001, "0.1 %"), (0.0001234, "0.012 %"), (1e-8, "0.000001 %"), (0, "0 %"), (0.25, "25 %")]
)
def test_shares_are_written_with_two_digits_and_no_exponent(allowed, text):
    found = quality.compare(*rows(200)[:3])
    assert f"a drop of {text} is allowed" in quality.gate(found, max_drop=allowed).sentence


def test_the_gate_rejects_when_even_the_good_end_is_outside():
    labels, original, scores, _ = rows(50_000, noise=2)
    verdict = quality.gate(quality.compare(labels, original, scores), max_drop=0.001)
    assert verdict.outcome == "rejected" and verdict.drop > 0.001 and not verdict.suspicious


def test_the_gate_says_how_many_rows_would_settle_what_it_cannot_tell():
    labels, original, scores, _ = rows(4_000, seed=5, noise=0.1)
    verdict = quality.gate(quality.compare(labels, original, scores), max_drop=0.001)
    assert verdict.outcome == "cannot tell"
    assert verdict.sentence.startswith("cannot tell with these rows: auc changed by ")
    assert f"about {verdict.rows_needed:,} rows would settle it if the change stays as it is" in verdict.sentence
    factor = verdict.rows_needed / 4_000
    assert verdict.resolves / math.sqrt(factor) <= abs(verdict.max_drop - verdict.drop) * 1.001


def test_a_drop_on_the_limit_is_settled_by_no_number_of_rows():
    found = quality.compare(*rows(4_000, seed=5, noise=0.1)[:3])
    verdict = quality.gate(found, max_drop=-found["auc"].delta, drop_type="absolute") if found["auc"].delta < 0 else None
    assert verdict is not None and verdict.rows_needed is None
    assert verdict.sentence.endswith("and no number of rows settles a change that sits on the limit")


def test_absolute_drops_are_differences_and_relative_ones_ratios():
    found = quality.compare(*rows(4_000)[:3])
    absolute = quality.gate(found, max_drop=0.5, drop_type="absolute")
    relative = quality.gate(found, max_drop=0.5)
    assert absolute.drop == -found["auc"].delta
    assert relative.drop == -found["auc"].relative


def test_log_loss_may_not_rise_and_calibration_may_not_move():
    labels, original, _, _ = rows(20_000)
    squeezed = (0.8 * original).astype(np.float32)  # the same order, so AUC does not see it
    found = quality.compare(labels, original, squeezed)
    assert quality.gate(found, "auc").outcome == "accepted"
    assert quality.gate(found, "calibration", max_drop=0.01).outcome == "rejected"
    assert "a move of 1 % is allowed" in quality.gate(found, "calibration", max_drop=0.01).sentence
    raised = quality.compare(labels, original, np.clip(1.5 * original, 0, 1))
    assert quality.gate(raised, "calibration", max_drop=0.01).outcome == "rejected"
    worse = quality.gate(raised, "log_loss", max_drop=0.01)
    assert worse.outcome == "rejected" and worse.drop == raised["log_loss"].relative > 0


def test_a_large_gain_is_flagged_as_suspicious():
    labels, original, _, _ = rows(20_000)
    leaked = np.clip(original + 0.2 * labels, 0, 1)
    verdict = quality.gate(quality.compare(labels, original, leaked))
    assert verdict.outcome == "accepted" and verdict.suspicious
    assert verdict.sentence.endswith("is suspicious: check that rows, labels and scores belong together")


@pytest.mark.parametrize(
    ("labels", "requests", "sentence"),
    [
        (
            [1] * 12 + [0] * 500,
            None,
            "cannot tell: there are 12 rows of label 1, and an interval needs at least 30; about 1,300 rows would do",
        ),
        (
            [0] * 9 + [1] * 500,
            None,
            "cannot tell: there are 9 rows of label 0, and an interval needs at least 30; about 1,700 rows would do",
        ),
        ([0, 1] * 256, [0, 1] * 256, "cannot tell: there are 2 requests, and an interval needs at least 30; about 7,700 rows would do"),
    ],
)
def test_too_few_rows_for_the_gate_is_said_with_what_would_do(labels, requests, sentence):
    scores = np.random.default_rng(0).random(len(labels))
    verdict = quality.gate(quality.compare(labels, scores, scores, requests=requests))
    assert (verdict.outcome, verdict.sentence) == ("cannot tell", sentence)


def test_the_slice_that_lost_is_named_with_a_p_corrected_after_holm():
    labels, original, _, request = rows(60_000, requests=3000)
    store = np.random.default_rng(6).integers(0, 20, 60_000)
    cold = store == 7
    scores = np.where(cold, np.random.default_rng(7).random(60_000), original).astype(np.float32)
    found = quality.compare(labels, original, scores, requests=request, slices={"store": store, "cold": cold})
    assert len(found.slices) == 22
    verdict = quality.gate(found, max_drop=0.5)
    assert verdict.worst_slice in ("store = 7", "cold = True")
    assert quality.gate(found, max_drop=0.01).sentence.count("after Holm's correction for 22 slices") == 1
    ordered = sorted(found.slices, key=lambda s: s.p)
    expected = np.maximum.accumulate([min(1, s.p * (22 - i)) for i, s in enumerate(ordered)])
    assert [s.p_holm for s in ordered] == pytest.approx(expected)
    mine = next(s for s in found.slices if (s.name, s.value) == ("store", "7"))
    alone = quality.compare(labels[cold], original[cold], scores[cold], requests=request[cold])["auc"]
    assert mine.auc == alone and mine.rows == cold.sum()


def test_slices_that_cannot_be_measured_are_noted():
    labels, original, scores, _ = rows(500)
    column = np.where(np.arange(500) == np.flatnonzero(labels)[0], "rare", "common")
    found = quality.compare(labels, original, scores, slices={"kind": column})
    assert [s.value for s in found.slices] == ["common"]
    assert "slice kind = rare is not measured: 1 of its 1 rows have label 1" in found.notes


def test_a_null_in_a_slice_column_is_a_value_of_its_own():
    labels, original, scores, _ = rows(500)
    column = np.array([None, "a"], object)[np.arange(500) % 2]
    assert [s.value for s in quality.compare(labels, original, scores, slices={"kind": column}).slices] == ["a", "null"]


# sentences


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": [0, 0, 0]}, "all 3 labels are 0; AUC needs rows of both classes. Give validation rows with both"),
        ({"labels": [0, 3, 1]}, "the label at row 1 is 3; labels are 0 or 1"),
        ({"labels": []}, "lengths differ: 0 labels, 3 original scores, 3 scores. Score the rows that the labels belong to, all of them"),
        ({"labels": [], "original": [], "scores": []}, "there are no rows to measure quality on"),
        (
            {"scores": [0.1, 0.2, float("nan")]},
            "the scores have nan at row 2 (1 such rows); every score must be a finite number",
        ),
        (
            {"original": [0.1, float("inf"), float("nan")]},
            "the original scores have inf at row 1 (2 such rows); every score must be a finite number",
        ),
        ({"scores": [0.5, 0.5, 0.5]}, "the scores are 0.5 for all 3 rows: that model does not rank. Check its inputs and weights"),
        ({"scores": [[0.5], [0.1], [0.2]]}, "the scores have shape (3, 1); quality is measured on one output, shape (rows,)"),
        ({"labels": ["no", "yes", "yes"]}, "the labels have dtype <U3; give numbers"),
        ({"requests": [1, None, 2]}, "the request at row 1 is None; every row needs the id of its request"),
        ({"requests": [1, 2, float("nan")]}, "the request at row 2 is nan; every row needs the id of its request"),
        ({"requests": [1, 2]}, "requests have shape (2,), expected (3,): one value a row"),
        ({"requests": [7, 7, 7]}, "all 3 rows belong to one request; an interval needs at least 2. Give rows of more requests, or none"),
        ({"confidence": 95}, "confidence is 95; give a number between 0.5 and 1, such as 0.95"),
    ],
)
def test_bad_rows_get_one_sentence(change, sentence):
    given = {"labels": [0, 1, 1], "original": [0.1, 0.2, 0.3], "scores": [0.1, 0.2, 0.3]} | change
    with pytest.raises(MeasureError, match=f"^{re.escape(sentence)}$"):
        quality.compare(**given)


def test_a_metric_that_needs_requests_says_so():
    found = quality.compare(*rows(200)[:3])
    with pytest.raises(MeasureError, match=r"quality has no metric 'gauc'; .*\. Give the request of each row to measure it"):
        quality.gate(found, "gauc")
    with pytest.raises(MeasureError, match=r"quality has no metric 'f1'; it has auc, log_loss, normalized_entropy, calibration, ece$"):
        quality.gate(found, "f1")
    with pytest.raises(MeasureError, match="drop_type is 'percent'; use 'relative' or 'absolute'"):
        quality.gate(found, drop_type="percent")
    with pytest.raises(MeasureError, match=r"max_drop is -1; give a number of at least 0, such as 0\.001"):
        quality.gate(found, max_drop=-1)


def test_without_scipy_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(MeasureError, match=r"which is not installed: pip install 'burnish\[optimize\]'"):
        quality.compare(*rows(100)[:3])


def test_quality_and_verdict_read_back_from_json():
    labels, original, scores, request = rows(500, requests=60)
    found = quality.compare(labels, original, scores, requests=request, slices={"s": request % 3})
    assert msgspec.json.decode(msgspec.json.encode(found), type=quality.Quality) == found
    verdict = quality.gate(found)
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=quality.Verdict) == verdict


def test_measuring_is_imported_without_torch_scipy_or_a_load_generator():
    code = (
        "import sys; from burnish.measure import gate, latency, load, memory, quality, queueing, traffic; "
        "print([m for m in ('torch', 'scipy', 'mlperf_loadgen', 'onnx', 'openvino') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
