"""The two layers of verification, the choice among candidates, and what they are made of."""

import collections
import json
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from upshift.core.stats import Interval
from upshift.core.timing import TimingResult, speedup
from upshift.data.config import AugmentConfig
from upshift.data.dataset import DataInfo, Split
from upshift.data.loaders import make_loader
from upshift.errors import ArtifactError, BadInputError
from upshift.inference.accuracy import confidences, decide
from upshift.inference.backend import BackendInfo, backend_info, backends
from upshift.inference.parity import ROUND_OFF, Parity, compare
from upshift.inference.preprocess import Preprocessing
from upshift.inference.result import CandidateResult
from upshift.inference.selection import ranked
from upshift.inference.structure import FlatOutputs, builder, flatten, leaf_paths

# --- preprocessing ----------------------------------------------------------------------------------------


@given(arrays.arrays(np.uint8, (2, 3, 4, 5)))
def test_images_are_normalised_as_the_formula_says(stored):
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    received = Preprocessing(kind="image", input_shape=(3, 4, 5), mean=mean, std=std).apply(stored)
    exact = (stored / 255.0 - np.array(mean).reshape(3, 1, 1)) / np.array(std).reshape(3, 1, 1)
    assert received.dtype == torch.float32
    np.testing.assert_allclose(received.numpy(), exact, rtol=1e-6, atol=1e-6)


def test_features_are_normalised_by_column_and_text_becomes_integers():
    features = Preprocessing(kind="tabular", input_shape=(2,), mean=(1.0, 2.0), std=(2.0, 4.0))
    assert features.apply(np.array([[3.0, 6.0]], np.float32)).tolist() == [[1.0, 1.0]]
    text = Preprocessing(kind="text", input_shape=(3,)).apply(np.array([[104, 105, 0]], np.uint8))
    assert text.dtype == torch.int64 and text.tolist() == [[104, 105, 0]]


def test_text_of_a_torch_dataset_may_be_int64_and_other_types_are_refused():
    text = Preprocessing(kind="text", input_shape=(3,))
    stored = np.array([[104, 105, 0]], np.int64)
    assert text.apply(stored).tolist() == [[104, 105, 0]] and stored.tolist() == [[104, 105, 0]]
    with pytest.raises(BadInputError, match="must be uint8 or int64; received float32"):
        text.apply(stored.astype(np.float32))


def test_features_far_from_zero_keep_their_digits():
    stored = np.random.default_rng(0).normal((1e5, -3e6), size=(500, 2)).astype(np.float32)
    mean, std = (1e5 + 0.0012, -3e6 + 0.1), (1.0, 0.9)
    received = Preprocessing(kind="tabular", input_shape=(2,), mean=mean, std=std).apply(stored)
    np.testing.assert_allclose(received.numpy(), (stored.astype(np.float64) - mean) / std, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("kind", "shape"), [("image", (3, 5, 7)), ("image", (1, 4, 4)), ("tabular", (6,))])
def test_a_batch_in_training_is_bitwise_what_preprocessing_makes(kind, shape, channels_last, normalize):
    generator = np.random.default_rng(1)
    stored = generator.integers(0, 256, (40, *shape)).astype(np.uint8 if kind == "image" else np.float32)
    mean, std = (tuple(generator.uniform(0.1, 0.9, shape[0]).tolist()) for _ in range(2))
    info = DataInfo(
        kind=kind, input_shape=shape, num_classes=2, label_names=("a", "b"), mean=mean, std=std, num_bad_rows=0,
        source="made", fingerprint="0",
    )  # fmt: skip
    loader = make_loader(
        Split(stored, np.zeros(40, np.int64)), info, batch_size=16, device="cpu", training=False,
        augment=AugmentConfig(normalize=normalize), channels_last=channels_last,
    )  # fmt: skip
    batches = torch.cat([inputs for inputs, _ in loader.epoch(0)])
    given = {"mean": mean, "std": std} if normalize else {}
    assert torch.equal(batches, Preprocessing(kind=kind, input_shape=shape, **given).apply(stored))


def test_without_statistics_images_are_only_scaled():
    assert Preprocessing(kind="image", input_shape=(1, 1, 1)).apply(np.full((1, 1, 1, 1), 255, np.uint8)).item() == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "video"},
        {"mean": (0.5,)},
        {"mean": (0.5,), "std": (0.0,)},
        {"mean": (0.5,), "std": (-1.0,)},
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused(wrong):
    with pytest.raises(BadInputError):
        Preprocessing(**{"kind": "image", "input_shape": (1, 2, 2), **wrong})


def test_preprocessing_survives_json():
    before = Preprocessing(kind="image", input_shape=(1, 2, 2), mean=(0.1,), std=(0.3,))
    assert Preprocessing.from_json(json.loads(json.dumps(before.to_json()))) == before


# --- structure --------------------------------------------------------------------------------------------

Point = collections.namedtuple("Point", ["x", "y"])
tensors = st.integers(0, 5).map(lambda value: torch.full((2,), float(value)))
outputs = st.recursive(
    st.one_of(tensors, st.none(), st.integers(-3, 3), st.booleans(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.tuples(inner, inner).map(lambda pair: Point(*pair)),
    ),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        plain = type(a) is type(b) or a._fields == b._fields
        return plain and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(outputs)
def test_any_output_is_taken_apart_and_put_together_again(output):
    try:
        leaves, tree = flatten(output)
    except BadInputError as error:
        assert "at least one tensor" in str(error)
        return
    assert len(leaf_paths(tree)) == len(leaves)
    assert same(output, builder(json.loads(json.dumps(tree)))(leaves))


def test_paths_name_the_leaves_as_one_would_reach_them():
    tree = flatten({"logits": torch.zeros(1), "more": (torch.zeros(1), [torch.zeros(1)])})[1]
    assert leaf_paths(tree) == ["output.logits", "output.more[0]", "output.more[1][0]"]


@pytest.mark.parametrize("output", [object(), {1: torch.zeros(1)}, {"a": {"b": object()}}])
def test_an_output_of_something_else_is_refused(output):
    with pytest.raises(BadInputError):
        flatten(output)


@pytest.mark.parametrize(
    "tree",
    [{}, {"kind": "list"}, {"kind": "namedtuple", "name": "a b", "fields": ["x"], "items": []}, {"kind": "tensor"}],
)
def test_a_tree_that_makes_no_sense_is_refused(tree):
    with pytest.raises(ArtifactError):
        builder(tree)


def test_exporters_see_a_flat_tuple():
    class Model(torch.nn.Module):
        def forward(self, x):
            return {"a": x, "b": [x + 1]}

    first, second = FlatOutputs(Model())(torch.zeros(2))
    assert first.tolist() == [0, 0] and second.tolist() == [1, 1]


# --- layer one: outputs ------------------------------------------------------------------------------------


def parity(expected, received, logits=None):
    expected, received = np.asarray(expected), np.asarray(received)
    return compare([expected], [received], paths=["output"], logits=logits)


def test_errors_are_the_largest_absolute_and_relative_to_the_range():
    result = parity(np.array([[0.0, -100.0], [50.0, 1.0]]), np.array([[0.5, -100.0], [50.0, 2.0]]), logits=0)
    assert (result.max_abs_error, result.max_rel_error, result.top1_agreement) == (1.0, 0.01, 1.0)
    assert not result.is_round_off


def test_each_leaf_is_judged_by_its_own_range():
    large, small = np.full((2, 1), 1e6), np.full((2, 1), 1e-6)
    result = compare([large, small], [large, small * 1.1], paths=["a", "b"], logits=None)
    assert result.max_rel_error == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_a_problem_wherever_it_is(bad):
    received = np.ones((5, 3), np.float32)
    received[3, 1] = bad
    assert "1 of 5 samples" in parity(np.ones((5, 3), np.float32), received).problem


def test_other_shapes_dtypes_and_counts_are_problems():
    ones = np.ones((2, 3), np.float32)
    assert "shape" in parity(ones, ones[:, :2]).problem
    assert "float64" in parity(ones, ones.astype(np.float64)).problem
    assert "2 outputs" in compare([ones], [ones, ones], paths=["output"], logits=None).problem


def test_a_leaf_of_zeros_must_be_zeros():
    zeros = np.zeros((2, 2), np.float32)
    assert parity(zeros, zeros).is_round_off
    assert not parity(zeros, zeros + 1e-30).is_round_off


@given(st.integers(0, 2**32 - 1))
def test_reordered_float32_sums_are_round_off_and_half_precision_is_not(seed):
    generator = np.random.default_rng(seed)
    inputs, weights = generator.normal(size=(4, 512)).astype(np.float32), generator.normal(size=(512, 8))
    weights = weights.astype(np.float32)
    order = generator.permutation(512)
    expected = inputs @ weights
    assert parity(expected, inputs[:, order] @ weights[order]).is_round_off
    rounded = torch.from_numpy(inputs).bfloat16() @ torch.from_numpy(weights).bfloat16()
    assert parity(expected, rounded.float().numpy()).max_rel_error > ROUND_OFF


# --- layer two: accuracy ------------------------------------------------------------------------------------


def scores(predictions, num_classes=4):
    return np.eye(num_classes, dtype=np.float32)[np.asarray(predictions)]


def judge(before, after, labels, tier="B", max_drop=0.005, parity=None, among=None):
    return decide(
        parity or Parity(0.1, 1e-6 if tier == "A" else 0.1, 1.0),
        tier=tier,
        reference=scores(before),
        outputs=scores(after),
        labels=None if labels is None else np.asarray(labels),
        max_drop=max_drop,
        confidence=confidences(among or {tier: 1})[tier],
    )


def test_the_more_candidates_are_judged_the_more_each_must_prove():
    labels = np.arange(600) % 4
    assert judge(labels, labels, labels).accepted
    decision = judge(labels, labels, labels, among={"B": 3})
    assert not decision.accepted and "at least 902 test samples" in decision.reason
    enough = np.arange(902) % 4
    decision = judge(enough, enough, enough, among={"B": 3})
    assert decision.accepted and "98.3 % confidence" in decision.reason


def test_candidates_that_lose_the_whole_budget_are_seldom_accepted_however_many_are_tried():
    generator, budget, num_candidates = np.random.default_rng(0), 0.01, 5
    tiers = {"A": 3, "B": 2}
    labels, wrong = np.zeros(2000, int), 0
    before = (np.arange(2000) % 10 == 0).astype(int)
    # Of the 90 % that eager gets right a candidate loses 4 % of all samples, of the others it gains 3 %.
    chance_of_wrong = np.where(before == 1, 0.7, (0.03 + budget) / 0.9)
    for _ in range(300):
        candidates = (generator.random((num_candidates, 2000)) < chance_of_wrong).astype(int)
        wrong += any(
            judge(before, after, labels, tier, max_drop=budget, among=tiers).accepted
            for tier, after in zip("AAABB", candidates, strict=True)
        )
    assert wrong <= 300 * 0.05 + 3 * np.sqrt(300 * 0.05 * 0.95)


def test_candidates_of_the_same_mathematics_count_too_and_leave_most_of_the_error_to_the_others():
    found = confidences({"A": 3, "B": 1})
    assert 3 * (1 - found["A"]) + 1 - found["B"] == pytest.approx(0.05)
    assert found["A"] > found["B"] == pytest.approx(0.96)
    assert confidences({"B": 1}) == pytest.approx({"B": 0.95})
    assert confidences({"A": 2, "B": 0}) == pytest.approx({"A": 0.975})
    # One flip that is proven within the budget of a single candidate is not among four.
    labels, flipped = np.zeros(1000, int), np.arange(1000) == 0
    assert judge(labels, flipped.astype(int), labels, "A").accepted
    assert not judge(labels, flipped.astype(int), labels, "A", among={"A": 3, "B": 1}).accepted


@pytest.mark.parametrize(
    ("num_lost", "num_gained", "num_samples"), [(1, 0, 360), (3, 2, 360), (0, 0, 360), (20, 1, 900)]
)
def test_the_way_out_of_a_refusal_is_one(num_lost, num_gained, num_samples):
    """What the reason tells is tried: the same predictions with that budget, and more of them with the first one."""
    before = np.zeros(num_samples, int)
    before[-50:] = 1
    after = before.copy()
    after[:num_lost] = 1
    after[num_samples - num_gained :] = 0
    labels = np.zeros(num_samples, int)
    refused = judge(before, after, labels)
    assert not refused.accepted
    budget = float(re.search(r"it would pass with --max-drop ([0-9.]+)", refused.reason)[1])
    assert judge(before, after, labels, max_drop=budget).accepted
    assert not judge(before, after, labels, max_drop=budget - 0.0002).accepted
    enough = re.search(r"(?:at least|about) ([0-9,]+) test samples", refused.reason)
    assert (enough is None) == ((num_lost - num_gained) / num_samples >= 0.005)
    if enough is not None:
        times = -(-int(enough[1].replace(",", "")) // num_samples)
        more = [np.tile(part, times) for part in (before, after, labels)]
        assert judge(*more).accepted
        if times > 2:
            assert not judge(*(part[: num_samples * (times // 2)] for part in more)).accepted


def test_identical_predictions_on_enough_samples_prove_changed_numerics():
    labels = np.arange(2000) % 4
    decision = judge(labels, labels, labels)
    assert decision.accepted and decision.accuracy_drop == 0.0 and decision.accuracy_drop_upper < 0.005


def test_a_gain_in_accuracy_is_a_negative_drop():
    labels = np.zeros(1000, int)
    before = np.where(np.arange(1000) < 100, 1, 0)
    assert judge(before, labels, labels).accuracy_drop == pytest.approx(-0.1)


def test_a_drop_over_the_budget_is_refused_with_the_bound():
    labels = np.zeros(1000, int)
    decision = judge(labels, np.where(np.arange(1000) < 20, 1, 0), labels)
    assert not decision.accepted and "2.00 points" in decision.reason and "0.5 points" in decision.reason


def test_a_drop_within_the_budget_but_not_proven_is_refused():
    labels = np.zeros(1000, int)
    decision = judge(labels, np.where(np.arange(1000) < 4, 1, 0), labels)
    assert decision.accuracy_drop < 0.005 < decision.accuracy_drop_upper and not decision.accepted


def test_round_off_with_the_same_predictions_needs_no_number_of_samples():
    assert judge([0, 1, 2], [0, 1, 2], [0, 0, 0], tier="A").accepted


def test_round_off_that_flips_a_prediction_needs_the_bound():
    labels = [0] * 360
    assert not judge(labels, [1] + [0] * 359, labels, tier="A").accepted


def test_more_than_round_off_is_refused_for_the_same_mathematics_however_accurate():
    labels = np.arange(5000) % 4
    decision = judge(labels, labels, labels, tier="A", parity=Parity(0.1, 0.01, 1.0))
    assert not decision.accepted and "round-off" in decision.reason


def test_missing_labels_or_scores_refuse_changed_numerics():
    assert not judge([0, 1], [0, 1], None).accepted
    without = decide(Parity(0.0, 0.0), tier="B", reference=None, outputs=None, labels=None, max_drop=0.5)
    assert not without.accepted and "unproven" in without.reason


def test_a_budget_of_zero_accepts_only_what_round_off_proves():
    labels = np.arange(100_000) % 4
    assert not judge(labels, labels, labels, max_drop=0.0).accepted
    assert judge(labels, labels, labels, tier="A", max_drop=0.0).accepted


# --- the choice -----------------------------------------------------------------------------------------------


def timings(seed=0, **milliseconds):
    generator = random.Random(seed)
    return {
        name: TimingResult([[value * 1e-3 * generator.uniform(0.97, 1.03) for _ in range(5)] for _ in range(20)])
        for name, value in milliseconds.items()
    }


def test_the_fastest_comes_first_and_what_is_not_faster_not_at_all():
    found = ranked(timings(eager=10, a=5, b=2, c=11), ["a", "b", "c"], reference="eager")
    assert found == ["b", "a"]


def test_those_that_were_eliminated_come_last_however_fast_the_machine_was_until_then():
    found = timings(eager=10, a=5, b=2, c=4)
    for calls in (timing.rounds[index] for timing in found.values() for index in range(10)):
        calls[:] = [seconds / 4 for seconds in calls]
    for name in ("a", "c"):
        found[name].rounds[10:], found[name].eliminated = [], "slower than b"
    assert ranked(found, ["a", "b", "c"], reference="eager") == ["b", "c", "a"]


def test_among_equals_the_simplest_comes_first():
    wins = collections.Counter(
        ranked(timings(seed, eager=10, simple=5, intricate=5), ["simple", "intricate"], reference="eager")[0]
        for seed in range(40)
    )
    assert wins["simple"] >= 36


def test_nothing_is_chosen_among_equals_of_eager():
    winners = sum(
        bool(ranked(timings(seed, eager=10, a=10, b=10, c=10, d=10), ["a", "b", "c", "d"], reference="eager"))
        for seed in range(200)
    )
    assert winners <= 10 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_a_candidate_whose_rounds_disagree_tells_their_range_in_place_of_a_factor():
    steady, unsteady = CandidateResult("openvino"), CandidateResult("openvino")
    steady.add_timing(TimingResult([[0.1]] * 30), Interval(4.0, 3.9, 4.1), TimingResult([[0.4]] * 30))
    assert steady.speed() == "4.00× the speed of eager" and "unsteady_range" not in steady.to_json()
    eager = TimingResult([[0.25]] * 10 + [[400.0]] * 20)
    quick = TimingResult([[0.031]] * 30)
    unsteady.add_timing(quick, speedup(eager, quick), eager)
    assert unsteady.speed() == "timing is unsteady: 8.1–13,000× the speed of eager in single rounds"
    assert unsteady.to_json()["unsteady_range"] == pytest.approx([0.25 / 0.031, 400 / 0.031])


# --- the registry -----------------------------------------------------------------------------------------------


def test_each_backend_tells_its_facts():
    assert list(backends()) == ["eager", "compile", "onnxruntime", "openvino", "openvino-int8"]
    for info in backends().values():
        assert info.tier in "AB" and info.description and hasattr(info.create(), "build")
    assert backend_info("openvino-int8").tier == "B"


def test_a_backend_without_its_package_says_which():
    info = BackendInfo(name="x", tier="A", description="x", implementation="x:X", packages=("no_such_package",))
    assert "no_such_package" in info.usable()
