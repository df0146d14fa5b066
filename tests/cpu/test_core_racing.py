"""A race against the best so far: order, budget, crashes, hangs, ties, late bloomers, luck."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_machine import TROUBLES, slowness

from upshift.core.duel import DuelConfig
from upshift.core.racing import Contender, Outcome, Race, RaceConfig
from upshift.errors import ConfigError, UpshiftError

LIMIT_SECONDS = 100.0

Seconds = Callable[[int], float]


@dataclass
class Machine:
    """Simulated time, in which everything that is run takes as long as it is slow."""

    slots: list[float]
    now: float = 0.0
    num_turns: int = 0

    def run(self, seconds: float) -> float:
        took = seconds * self.slots[self.num_turns % len(self.slots)]
        self.num_turns += 1
        self.now += took
        return took


def steady(seconds: float) -> Seconds:
    return lambda turn: seconds


def late_bloomer(turn: int) -> float:
    return 0.05 + 0.4 * max(0.0, 1.0 - turn / 9)


def crashes_in_the_fifth_turn(turn: int) -> float:
    if turn == 4:
        raise UpshiftError("out of memory")
    return 0.01


def hangs(turn: int) -> float:
    return math.inf


def held(race: Race, trials: Mapping[str, Seconds], machine: Machine) -> None:
    """Run a race to its end as a caller would."""
    turns = dict.fromkeys(trials, 0)
    while (contender := race.next()) is not None:
        try:
            while race.is_on:
                seconds = {}
                for name in race.order():
                    needed = trials[name](turns[name])
                    if needed > LIMIT_SECONDS:
                        machine.now += LIMIT_SECONDS
                        raise UpshiftError(f"no answer in {LIMIT_SECONDS:g} s")
                    seconds[name] = machine.run(needed)
                    turns[name] += 1
                race.add(seconds[race.best], seconds[contender.name])
        except UpshiftError as error:
            race.fail(str(error))


def entered(**gains: float) -> list[Contender]:
    return [Contender(name=name, expected_gain=gain, expected_cost_seconds=1.0) for name, gain in gains.items()]


def a_race(
    trials: Mapping[str, Seconds],
    *,
    trouble: str = "calm",
    seed: int = 0,
    slots: list[float] | None = None,
    **config: float,
) -> tuple[Race, Machine]:
    """A race of all trials but the first, which is the incumbent; the later ones are less promising."""
    if slots is None:
        slots = slowness(TROUBLES[trouble], num_runs=1, num_slots=2000, seed=seed)[0].tolist()
    machine = Machine(slots)
    incumbent, *others = trials
    contenders = entered(**{name: 1.0 / (index + 1) for index, name in enumerate(others)})
    race = Race(incumbent, contenders, config=RaceConfig(seed=seed, **config), clock=lambda: machine.now)
    held(race, trials, machine)
    return race, machine


def outcome(race: Race, name: str) -> Outcome:
    return next(each for each in race.outcomes if each.name == name)


def test_each_meets_the_best_so_far_and_the_fastest_wins() -> None:
    race, _ = a_race({"plain": steady(0.1), "good": steady(0.08), "bad": steady(0.2), "better": steady(0.05)})
    assert race.best == "better"
    assert [(each.name, each.verdict, each.against) for each in race.outcomes] == [
        ("good", "faster", "plain"),
        ("bad", "not faster", "good"),
        ("better", "faster", "good"),
    ]
    assert all(each.interval is not None and each.num_rounds >= 7 and each.seconds > 0 for each in race.outcomes)


def test_the_most_promising_for_its_cost_comes_first() -> None:
    contenders = [
        Contender(name="compile", expected_gain=0.5, expected_cost_seconds=40.0),
        Contender(name="layout", expected_gain=0.1, expected_cost_seconds=1.0),
        Contender(name="free", expected_gain=0.01, expected_cost_seconds=0.0),
        Contender(name="hopeless", expected_gain=0.0, expected_cost_seconds=0.0),
        Contender(name="equal of layout", expected_gain=0.2, expected_cost_seconds=2.0),
    ]
    race, names = Race("plain", contenders), []
    while (contender := race.next()) is not None:
        names.append(contender.name)
        race.fail("it was only called")
    assert names == ["free", "layout", "equal of layout", "compile", "hopeless"]


def test_contenders_may_enter_on_the_way() -> None:
    race, _ = a_race({"plain": steady(0.1), "good": steady(0.08)})
    race.enter(*entered(combined=0.3))
    assert race.next() is not None and race.duel is not None
    assert race.order() in {("good", "combined"), ("combined", "good")}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_in_1000_races_of_five_equals_at_most_five_percent_declare_a_winner(trouble: str) -> None:
    trials = dict.fromkeys(("plain", "a", "b", "c", "d"), steady(0.1))
    machines = slowness(TROUBLES[trouble], num_runs=1000, num_slots=480, seed=2).tolist()
    lucky = 0
    for seed, slots in enumerate(machines):
        race, _ = a_race(trials, seed=seed, slots=slots)
        lucky += race.best != "plain"
    assert lucky <= 50


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_true_gain_is_found_though_many_others_are_in_the_race(trouble: str) -> None:
    trials = {"plain": steady(0.1), **dict.fromkeys("abcd", steady(0.1)), "good": steady(0.09)}
    machines = slowness(TROUBLES[trouble], num_runs=100, num_slots=600, seed=3).tolist()
    races = [a_race(trials, seed=seed, slots=slots)[0] for seed, slots in enumerate(machines)]
    assert np.mean([outcome(race, "good").verdict == "faster" for race in races]) >= 0.95


def test_a_winner_within_noise_is_not_declared() -> None:
    for seed in range(20):
        race, _ = a_race({"plain": steady(0.1), "hair": steady(0.0999)}, trouble="noise that lasts", seed=seed)
        assert race.best == "plain"
        assert outcome(race, "hair").reason.startswith("no gain is proven in 60 rounds")


def test_ties_leave_the_incumbent() -> None:
    race, _ = a_race(dict.fromkeys(("plain", "a", "b"), steady(0.1)), slots=[1.0])
    assert race.best == "plain"
    assert {each.verdict for each in race.outcomes} == {"not faster"}


def test_a_late_bloomer_wins_in_the_end() -> None:
    for seed in range(20):
        race, _ = a_race({"plain": steady(0.1), "bloomer": late_bloomer}, seed=seed)
        assert race.best == "bloomer"


def test_a_crash_is_an_outcome_and_the_race_goes_on() -> None:
    race, _ = a_race({"plain": steady(0.1), "crash": crashes_in_the_fifth_turn, "good": steady(0.05)})
    assert race.best == "good"
    crash = outcome(race, "crash")
    assert (crash.verdict, crash.reason, crash.num_rounds) == ("failed", "out of memory", 4)


def test_a_hang_costs_no_more_than_its_limit() -> None:
    race, machine = a_race({"plain": steady(0.1), "hang": hangs, "good": steady(0.05)}, budget_seconds=200.0)
    assert race.best == "good"
    assert outcome(race, "hang").verdict == "failed"
    assert 100.0 < machine.now < 110.0


def test_when_all_crash_the_incumbent_stays() -> None:
    race, _ = a_race({"plain": steady(0.1), **dict.fromkeys("abc", crashes_in_the_fifth_turn), "d": hangs})
    assert race.best == "plain"
    assert [each.verdict for each in race.outcomes] == ["failed"] * 4


def test_the_incumbent_alone_is_a_race() -> None:
    race = Race("plain")
    assert race.next() is None and race.best == "plain" and race.outcomes == []


def test_a_budget_used_up_in_a_duel_keeps_what_was_proven_before() -> None:
    trials = {"plain": steady(1.0), "good": steady(0.5), "better": steady(0.49), "unseen": steady(0.1)}
    race, machine = a_race(trials, budget_seconds=20.0)
    assert race.best == "good"
    assert outcome(race, "better").reason == "the budget was used up before a gain was proven"
    assert outcome(race, "unseen").verdict == "skipped"
    assert machine.now < 22.0


def test_what_the_budget_cannot_pay_for_is_skipped_and_the_cheaper_tried() -> None:
    contenders = [
        Contender(name="dear", expected_gain=100.0, expected_cost_seconds=40.0),
        Contender(name="cheap", expected_gain=0.1, expected_cost_seconds=5.0),
    ]
    race = Race("plain", contenders, config=RaceConfig(budget_seconds=30.0), clock=lambda: 0.0)
    contender = race.next()
    assert contender is not None and contender.name == "cheap"
    assert outcome(race, "dear").reason == "it is expected to cost 40 s, more than the 30 s left"


def test_without_time_nothing_is_tried() -> None:
    race, _ = a_race({"plain": steady(0.1), "good": steady(0.01)}, budget_seconds=0.0)
    assert race.best == "plain" and outcome(race, "good").verdict == "skipped"


def test_the_best_so_far_is_there_at_any_moment() -> None:
    race = Race("plain", entered(a=0.2, b=0.1))
    assert race.best == "plain"
    for expected, speed in (("a", 2.0), ("a", 0.5)):
        assert race.next() is not None
        while race.is_on:
            race.add(speed, 1.0)
        assert race.best == expected


def test_a_race_repeats_itself_given_clock_and_seed() -> None:
    trials = {"plain": steady(0.1), "a": steady(0.097), "b": crashes_in_the_fifth_turn, "c": steady(0.09)}
    once, again = (a_race(trials, trouble="all at once", seed=4)[0] for _ in range(2))
    assert once.outcomes == again.outcomes
    assert once.outcomes != a_race(trials, trouble="all at once", seed=5)[0].outcomes


def test_impossible_times_are_counted_in_the_outcome() -> None:
    race = Race("plain", entered(a=0.2))
    race.next()
    race.add(math.nan, 1.0)
    race.add(-1.0, 1.0)
    while race.is_on:
        race.add(2.0, 1.0)
    assert (race.best, race.outcomes[0].num_ignored, race.outcomes[0].num_rounds) == ("a", 2, 8)


def test_who_is_skipped_by_the_caller_spends_no_error() -> None:
    race = Race("plain", entered(a=0.4, b=0.3, c=0.2))
    for reason in ("it does not pay", "it does not pay"):
        race.next()
        race.skip(reason)
    race.next()
    assert race.duel is not None and race.duel.config.confidence == pytest.approx(0.95)
    assert [each.verdict for each in race.outcomes] == ["skipped", "skipped"]


@given(st.lists(st.sampled_from(["win", "lose", "crash"]), max_size=30), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_errors_of_all_duels_lost_never_add_up_to_more_than_that_of_the_race(
    story: list[str], confidence: float
) -> None:
    contenders = entered(**{f"c{index}": 1.0 for index in range(len(story))})
    race, spent = Race("plain", contenders, config=RaceConfig(confidence=confidence)), 0.0
    for event in story:
        assert race.next() is not None and race.duel is not None
        error = (1.0 - race.duel.config.confidence) / 2.0
        assert spent + error <= (1.0 - confidence) * (1 + 1e-9)
        if event == "crash":
            race.fail("at once")
        while race.is_on:
            race.add(2.0 if event == "win" else 0.5, 1.0)
        spent += error * (event == "lose")


def test_with_too_few_rounds_for_so_many_the_last_are_skipped() -> None:
    trials = dict.fromkeys(("plain", *"abcdefgh"), steady(0.1))
    contenders = entered(**{name: 1.0 for name in "abcdefgh"})
    machine = Machine(random.Random(0).choices([1.0, 1.1, 0.9], k=500))
    race = Race("plain", contenders, config=RaceConfig(duel=DuelConfig(max_rounds=8)), clock=lambda: machine.now)
    held(race, trials, machine)
    assert [each.verdict for each in race.outcomes] == ["not faster"] * 3 + ["skipped"] * 5
    assert "luck" in race.outcomes[-1].reason


def test_misuse_is_refused() -> None:
    race = Race("plain", entered(a=0.1))
    with pytest.raises(ValueError, match="no contender is on"):
        race.add(1.0, 1.0)
    with pytest.raises(ValueError, match="no contender is on"):
        race.fail("what?")
    race.next()
    with pytest.raises(ValueError, match="still on"):
        race.next()


@pytest.mark.parametrize("name", ["plain", "a"])
def test_names_are_unique(name: str) -> None:
    with pytest.raises(ConfigError, match="name of its own"):
        Race("plain", [*entered(a=0.1), *entered(**{name: 0.2})])


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_expectations_are_numbers(value: float) -> None:
    with pytest.raises(ConfigError, match="expected gain"):
        Contender(name="a", expected_gain=value, expected_cost_seconds=1.0)
    with pytest.raises(ConfigError, match="expected cost"):
        Contender(name="a", expected_gain=0.1, expected_cost_seconds=value)


@pytest.mark.parametrize("config", [{"confidence": 1.0}, {"confidence": 0.5}, {"budget_seconds": math.nan}])
def test_a_race_that_makes_no_sense_is_refused(config: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        RaceConfig(**config)
