"""Who trains in bench_training_peers.py, and what came of one model: figures, tables, notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from record import Table

ARTICLES, UPSHIFT, SECOND = "articles", "upshift", "upshift-again"
MAX_LOSS_DIFFERENCE = 0.05


@dataclass(frozen=True)
class Peer:
    """A contestant: its name in tables, the modules that it needs, variables of its process."""

    title: str
    modules: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Those of its modules that are not installed."""
        return [name for name in self.modules if find_spec(name) is None]


PEERS = {
    ARTICLES: Peer("the articles' loop"),
    "careful": Peer("by hand, with workers"),
    "careful-compiled": Peer("by hand, compiled"),
    "lightning": Peer("Lightning", ("lightning",)),
    "accelerate": Peer("Accelerate", ("accelerate",)),
    "keras-tensorflow": Peer(
        "Keras on TensorFlow",
        ("keras", "tensorflow"),
        {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"},
    ),
    "keras-jax": Peer("Keras on JAX", ("keras", "jax"), {"KERAS_BACKEND": "jax"}),
    "keras-torch": Peer("Keras on torch", ("keras",), {"KERAS_BACKEND": "torch"}),
    UPSHIFT: Peer("upshift"),
}


@dataclass
class Measured:
    """What came of one model.

    Attributes:
        name: Of the recipe.
        batch_size: Of all contestants.
        num_steps: Of a turn.
        job_steps: Of a whole job.
        limit_seconds: The least that a step could take on this machine.
        jobs: Of each contestant, one a round.
        contest: The rounds of steady state; None if nobody came to them.
        losses: Mean loss of the last turn.
        facts: What upshift's tuner did.
        failures: Why a contestant could not go on.
    """

    name: str
    batch_size: int
    num_steps: int
    job_steps: int
    limit_seconds: float
    jobs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    contest: Any = None
    losses: dict[str, float | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def steady(self) -> list[str]:
        """Who came through all rounds."""
        timings = self.contest.timings if self.contest is not None else {}
        return [key for key in PEERS if key in timings and timings[key].failure is None]

    def rate(self, key: str) -> float:
        """Samples a second in steady state."""
        return self.num_steps * self.batch_size / float(self.contest.median(key))

    def share(self, key: str) -> float:
        """Of the machine's peak, in steady state."""
        return self.limit_seconds * self.num_steps / float(self.contest.median(key))

    def times_as_fast(self, key: str, other: str) -> Any:
        """In steady state, paired by rounds."""
        return self.contest.times_as_fast(key, other)

    def job_seconds(self, key: str, what: str = "job_seconds") -> float:
        """The median of a contestant's whole jobs."""
        from upshift.core.stats import quantile

        return quantile([job[what] for job in self.jobs[key]], 0.5)

    def job_times_as_fast(self, key: str, other: str) -> Any:
        """Of whole jobs, paired by rounds; an interval needs six."""
        from rounds import paired

        seconds, others = ([job["job_seconds"] for job in self.jobs[one]] for one in (key, other))
        return paired(seconds, others)

    def against_best(self) -> Any:
        """upshift's steady state beside the fastest of all others."""
        others = [key for key in self.steady if key != UPSHIFT]
        return self.times_as_fast(UPSHIFT, max(others, key=self.rate))

    def table(self, missing: dict[str, Peer]) -> Table:
        """A row for each contestant, those that are missing or failed too."""
        from rounds import times

        rows = []
        for key in (*PEERS, SECOND):
            title = "upshift, second run" if key == SECOND else PEERS[key].title
            row = [title, *["–"] * 8]
            if key in self.steady:
                row[1:5] = [
                    f"{self.rate(key):,.0f}",
                    f"{self.share(key):.0%}",
                    times(self.times_as_fast(key, ARTICLES)) if ARTICLES in self.steady else "–",
                    times(self.times_as_fast(UPSHIFT, key)) if UPSHIFT in self.steady else "–",
                ]
                row[8] = "–" if self.losses.get(key) is None else f"{self.losses[key]:.4f}"
            if self.jobs.get(key):
                seconds = self.job_seconds(key)
                row[5] = f"{seconds:.2f}"
                row[6] = f"{self.limit_seconds * self.job_steps / seconds:.0%}"
                row[7] = f"{self.job_seconds(key, 'process_seconds'):.1f}"
            if key in missing or key in self.failures:
                row[1] = "not installed" if key in missing else f"failed: {self.failures[key][:60]}"
            if any(cell != "–" for cell in row[1:]):
                rows.append(row)
        return Table(
            title=f"{self.name}, batches of {self.batch_size}; whole jobs of {self.job_steps} steps",
            columns=(
                "",
                "samples/s",
                "of the machine's peak",
                "speed of the articles' loop",
                "upshift is as fast",
                "whole job, s",
                "of the peak",
                "with imports, s",
                "mean loss",
            ),
            rows=rows,
        )


def overview(complete: list[Measured]) -> Table:
    from rounds import times

    rows = []
    for one in complete:
        best = max((key for key in one.steady if key != UPSHIFT), key=one.rate)
        quickest = min((key for key in one.jobs if key not in (UPSHIFT, SECOND)), key=one.job_seconds)
        rows.append(
            [
                one.name,
                PEERS[best].title,
                times(one.against_best()),
                times(one.times_as_fast(UPSHIFT, ARTICLES)),
                PEERS[quickest].title,
                f"{one.job_times_as_fast(UPSHIFT, quickest).estimate:.2f}×",
            ]
        )
    columns = ("", "best peer", "upshift is as fast", "as the articles' loop", "quickest job", "upshift's is as quick")
    return Table(title="upshift and the best of all others, model by model", columns=columns, rows=rows)


def summary(one: Measured) -> dict[str, Any]:
    from rounds import as_list

    summary: dict[str, Any] = {}
    for key in one.steady:
        summary[key] = {
            "samples_per_second": one.rate(key),
            "share_of_peak": one.share(key),
            "times_the_articles_loop": as_list(one.times_as_fast(key, ARTICLES)) if ARTICLES in one.steady else None,
            "upshift_times_as_fast": as_list(one.times_as_fast(UPSHIFT, key)) if UPSHIFT in one.steady else None,
            "mean_loss": one.losses.get(key),
        }
    for key, jobs in one.jobs.items():
        seconds = one.job_seconds(key)
        summary.setdefault(key, {}).update(
            num_jobs=len(jobs),
            job_seconds=seconds,
            job_share_of_peak=one.limit_seconds * one.job_steps / seconds,
            process_seconds=one.job_seconds(key, "process_seconds"),
            upshift_job_times_as_fast=as_list(one.job_times_as_fast(UPSHIFT, key)) if UPSHIFT in one.jobs else None,
        )
    return summary


def raw(one: Measured) -> dict[str, Any]:
    return {
        "batch_size": one.batch_size,
        "num_steps": one.num_steps,
        "job_steps": one.job_steps,
        "limit_seconds_a_step": one.limit_seconds,
        "jobs": one.jobs,
        "turns": one.contest.raw() if one.contest is not None else {},
        "tuner": one.facts,
        "failures": one.failures,
    }


def loss_notes(one: Measured) -> list[str]:
    """A loop whose loss is another does not do the same training."""
    expected = one.losses.get(ARTICLES)
    return [
        f"{one.name}: {PEERS[key].title} came to a mean loss of {loss:.4f}, the articles' loop to {expected:.4f}"
        for key, loss in one.losses.items()
        if loss is not None and expected and abs(loss / expected - 1) > MAX_LOSS_DIFFERENCE
    ]
