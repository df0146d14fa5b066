"""The bound of an accuracy drop, against published values, an independent maximisation and complete enumeration."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upshift.core.paired import paired_drop_upper_bound, samples_to_prove

Z95 = 1.6448536269514722


def test_the_bound_is_the_published_one_for_a_known_table():
    # Fagerland, Lydersen and Laake (2014, Stat. Med. 33:2850-2875), airway hyper-responsiveness: 1 and 7 discordant
    # of 21, Tango's 95 % interval -0.517 to -0.026.
    assert paired_drop_upper_bound(7, 1, 21, confidence=0.975) == pytest.approx(0.517, abs=5e-4)
    assert paired_drop_upper_bound(1, 7, 21, confidence=0.975) == pytest.approx(-0.026, abs=5e-4)


@pytest.mark.parametrize(("lost", "gained", "n"), [(5, 1, 100), (40, 20, 160), (3, 9, 50), (23, 4, 10_000)])
def test_the_bound_is_where_the_score_statistic_reaches_its_quantile(lost, gained, n):
    bound = paired_drop_upper_bound(lost, gained, n)
    shares = np.linspace(0.0, (1.0 - bound) / 2, 2_000_002)[1:-1]  # of samples gained, if the drop were the bound
    same = np.maximum(1.0 - 2.0 * shares - bound, 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = lost * np.log(shares + bound) + gained * np.log(shares) + (n - lost - gained) * np.log(same)
    likeliest = shares[np.nanargmax(likelihood)]
    deviation = math.sqrt(n * (2.0 * likeliest + bound - bound**2))
    assert (lost - gained - n * bound) / deviation == pytest.approx(-Z95, abs=1e-3)


def test_where_nothing_changes_the_bound_is_the_exact_one():
    assert paired_drop_upper_bound(0, 0, 360) == pytest.approx(1.0 - 0.05 ** (1 / 360))


def test_a_few_losses_and_no_gain_have_the_exact_bound_of_a_share():
    bound = paired_drop_upper_bound(3, 0, 500)
    below = sum(math.comb(500, k) * bound**k * (1 - bound) ** (500 - k) for k in range(4))
    assert below == pytest.approx(0.05)


@given(st.integers(1, 5000), st.data())
def test_losing_more_never_lowers_the_bound(num_samples, data):
    lost = data.draw(st.integers(0, num_samples))
    gained = data.draw(st.integers(0, num_samples - lost))
    bound = paired_drop_upper_bound(lost, gained, num_samples)
    assert bound > (lost - gained) / num_samples or lost == num_samples
    assert bound <= 1.0
    if lost + gained < num_samples:
        assert paired_drop_upper_bound(lost + 1, gained, num_samples) > bound


@given(st.integers(1, 5000), st.data())
def test_gaining_more_never_raises_the_bound(num_samples, data):
    lost = data.draw(st.integers(0, num_samples - 1))
    gained = data.draw(st.integers(0, num_samples - lost - 1))
    bound = paired_drop_upper_bound(lost, gained, num_samples)
    assert paired_drop_upper_bound(lost, gained + 1, num_samples) <= bound + 1e-12


@given(st.integers(1, 3000), st.integers(0, 30), st.integers(0, 30))
def test_more_confidence_is_a_wider_bound(num_samples, lost, gained):
    lost, gained = min(lost, num_samples), min(gained, max(0, num_samples - lost))
    usual, surer = (paired_drop_upper_bound(lost, gained, num_samples, confidence=share) for share in (0.95, 0.99))
    assert surer >= usual


@pytest.mark.parametrize("lost", [0, 20_000, 50_000])
def test_large_counts_give_finite_bounds(lost):
    bound = paired_drop_upper_bound(lost, 0, 50_000)
    assert lost / 50_000 <= bound <= 1.0


class Enumeration:
    """All outcomes of `n` samples with up to `MOST` lost and gained, and the bound of each."""

    MOST = 60

    def __init__(self, n, confidence):
        self.n = n
        lost, gained = np.meshgrid(np.arange(self.MOST + 1), np.arange(self.MOST + 1), indexing="ij")
        possible = lost + gained <= n
        self.lost, self.gained = lost[possible], gained[possible]
        self.same = n - self.lost - self.gained
        pairs = zip(self.lost, self.gained, strict=True)
        self.bounds = np.array([paired_drop_upper_bound(int(b), int(c), n, confidence=confidence) for b, c in pairs])
        factorials = np.array([math.lgamma(k + 1) for k in range(n + 1)])
        self.log_ways = factorials[n] - factorials[self.lost] - factorials[self.gained] - factorials[self.same]

    def largest_error(self, gained_share):
        """The largest P(bound < true drop), which is for a true drop just above one of the bounds."""
        worst = 0.0
        for drop in np.unique(self.bounds[(self.bounds > 0) & (self.bounds < 0.5)])[::3] + 1e-9:
            lost_share = gained_share + drop
            if lost_share + gained_share < 1.0 and self.n * lost_share < self.MOST / 2:
                shares = np.array([lost_share, gained_share, 1.0 - lost_share - gained_share])
                chances = np.exp(self.log_ways + self.lost * np.log(shares[0]) + self.same * np.log(shares[2]))
                chances *= shares[1] ** self.gained
                worst = max(worst, float(chances[self.bounds < drop].sum()))
        return worst


@pytest.mark.parametrize(("confidence", "most"), [(0.95, 0.064), (0.975, 0.030)])
@pytest.mark.parametrize("n", [50, 100, 359, 1000])
def test_the_true_drop_is_above_the_bound_as_seldom_as_the_docstring_says(n, confidence, most):
    outcomes = Enumeration(n, confidence)
    for gained_share in (0.0005, 0.003, 0.0075, 0.015, 0.03, 0.05):
        assert outcomes.largest_error(gained_share) <= most
    assert outcomes.largest_error(0.0) <= 1.0 - confidence + 1e-9


@given(st.floats(0.0005, 0.5), st.sampled_from([0.9, 0.95, 0.975, 0.99]))
def test_the_number_of_samples_that_prove_a_drop_is_the_least(max_drop, confidence):
    enough = samples_to_prove(max_drop, confidence=confidence)
    assert paired_drop_upper_bound(0, 0, enough, confidence=confidence) <= max_drop * (1 + 1e-9)
    if enough > 1:
        assert paired_drop_upper_bound(0, 0, enough - 1, confidence=confidence) > max_drop * (1 - 1e-9)


def test_half_a_point_takes_598_samples_without_a_change():
    assert samples_to_prove(0.005) == 598


def test_a_budget_of_everything_is_proven_by_one_sample():
    assert samples_to_prove(1.0) == 1


@pytest.mark.parametrize(("lost", "gained", "n"), [(3, 3, 5), (-1, 0, 5), (0, -1, 5), (0, 0, 0)])
def test_impossible_counts_are_refused(lost, gained, n):
    with pytest.raises(ValueError, match="impossible"):
        paired_drop_upper_bound(lost, gained, n)
