"""The search for the fastest artifact that is proven faithful."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from upshift.core.environment import available_memory_bytes, describe, num_usable_threads
from upshift.core.files import storage_errors
from upshift.core.isolation import ChildFailure
from upshift.core.knockout import Knockout
from upshift.core.load import Load, LoadMeter
from upshift.core.records import JsonlWriter
from upshift.core.scratch import scratch_folder
from upshift.core.stats import Interval
from upshift.core.timing import TimingConfig, TimingResult, measure_interleaved, speedup
from upshift.core.units import factor_range, percent, plain
from upshift.errors import BackendError, BadInputError
from upshift.inference.backend import BackendInfo, backend_info, backends
from upshift.inference.candidate import Candidate, Task
from upshift.inference.config import Samples, SearchConfig
from upshift.inference.manifest import NAME, Manifest
from upshift.inference.preprocess import Preprocessing
from upshift.inference.reference import Reference, run_reference
from upshift.inference.result import CandidateResult, OptimizeResult
from upshift.inference.rows import write_rows
from upshift.inference.saving import save, stage
from upshift.inference.selection import ranked
from upshift.inference.verification import Verifier
from upshift.models.spec import ModelSpec

__all__ = ["Samples", "SearchConfig", "search"]

EAGER = "eager"
UNSTEADY_NOTE = (
    "timing was unsteady: what is told of such a speedup is the range of single rounds; optimize again when nothing "
    "else runs"
)
_MEMORY_SHARE = 0.8
_KNOCKOUT_CONFIDENCE = 0.975  # so that the two-sided intervals of those that are out hold at 95 %
_WHOLE = Interval(1.0, 1.0, 1.0)


def search(
    spec: ModelSpec,
    weights: Path,
    preprocessing: Preprocessing,
    samples: Samples,
    *,
    labels: tuple[str, ...],
    out: Path,
    config: SearchConfig,
    on_event: Callable[[str], None] | None = None,
    trials: Path | None = None,
    data: Mapping[str, Any] | None = None,
) -> OptimizeResult:
    """Find the fastest artifact that is proven faithful, and save it.

    Each candidate is built and run in a process of its own. Its outputs are compared with eager float32
    on the selection samples, then its accuracy is judged on the test samples; those that pass are timed
    side by side, each until it is proven slower than another. The best is saved, loaded again from disk in a fresh
    process, verified again on the test samples and timed again; if it fails there the next one follows, at last eager.

    What is timed is the call that a user makes: the artifact (eager: the module under `inference_mode`)
    called with a float32 tensor (int64 for text) of `batch_size` samples; preprocessing is not in it.

    Args:
        spec: The model, as data.
        weights: Its safetensors file.
        preprocessing: From stored samples to the model's input.
        samples: What to calibrate, compare and judge by.
        labels: Class names; empty if the model has no classes.
        out: Folder of the artifact; an artifact that is there is replaced.
        config: Budget and limits.
        on_event: Called with a line for each thing that happens.
        trials: JSON-lines file to which each candidate and its rounds are appended.
        data: What the manifest is to say of the data; see `Manifest`.

    Raises:
        StorageError: `out` cannot be written, or a disk is full.
        BadInputError: Samples that do not fit, a model whose own outputs are not finite, or an `out` that
            is something else than an artifact.
        BackendError: The model itself cannot be run.
    """
    samples.check(preprocessing, len(labels))
    if out.exists() and not (out / NAME).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(
            "the artifact's folder must be new, empty, or an artifact to replace", received=out, hint="name another"
        )
    with storage_errors(out):  # found out now rather than after the search
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".upshift-").cleanup()
    with scratch_folder() as scratch, ExitStack() as stack:
        journal = None
        if trials is not None:
            journal = JsonlWriter(trials)
            stack.callback(journal.close)
        task = Task(
            spec=spec,
            weights=weights.resolve(),
            preprocessing=preprocessing,
            config=config,
            memory_limit_bytes=config.memory_limit_bytes or int(available_memory_bytes() * _MEMORY_SHARE),
            num_threads=config.num_threads or num_usable_threads(),
            scratch=scratch,
        )
        with storage_errors(scratch):
            _save_samples(task, samples)
        running = _Search(task, samples, labels, on_event or (lambda line: None), journal, stack, data or {})
        return running.run(out)


def _save_samples(task: Task, samples: Samples) -> None:
    batch = np.resize(samples.selection, (task.config.batch_size, *samples.selection.shape[1:]))
    for name, part in {"calibration": samples.calibration, "selection": samples.selection, "timed": batch}.items():
        np.save(task.samples_file(name), part, allow_pickle=False)
    write_rows(task.samples_file("test"), samples.test)


class _Search:
    """The state of one search."""

    def __init__(
        self,
        task: Task,
        samples: Samples,
        labels: tuple[str, ...],
        say: Callable[[str], None],
        journal: JsonlWriter | None,
        stack: ExitStack,
        data: Mapping[str, Any],
    ) -> None:
        self.task, self.samples, self.labels, self.data = task, samples, labels, data
        self.say, self.journal, self.stack = say, journal, stack
        self.config = task.config
        budget = self.config.budget_seconds
        self.deadline = None if budget is None else time.monotonic() + budget
        self.results: dict[str, CandidateResult] = {}
        self.live: dict[str, Candidate] = {}
        self.options: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []

    def run(self, out: Path) -> OptimizeResult:
        """All of it."""
        self.reference = self._run_eager()
        tiers = Counter[str](info.tier for info in self._others() if info.usable() is None)
        self.verifier = Verifier(self.reference, self.samples, max_drop=self.config.max_drop, num_candidates=tiers)
        for info in self._others():
            self._try(info)
        timings = self._time_all()
        accepted = [n for n in backends() if n in timings and n != EAGER and self.results[n].verdict == "accepted"]
        order = ranked(timings, accepted, reference=EAGER)
        chosen, staged = next((found for name in order if (found := self._confirm(name))), None) or self._fall_back()
        self._explain_losers(chosen, timings)
        self.results[chosen].verdict = "chosen"
        return self._save(out, staged)

    def _run_eager(self) -> Reference:
        result = self.results[EAGER] = CandidateResult(EAGER, "accepted", "the reference")
        candidate = self.live[EAGER] = self._candidate(backend_info(EAGER))
        try:
            candidate.start()
            self._record_build(result, candidate.build())
            reference, facts = run_reference(candidate, self.samples, len(self.labels))
        except ChildFailure as error:
            raise BackendError(f"the model itself cannot be run: {error}") from error
        result.load_seconds, result.first_call_ms = facts["load_seconds"], facts["first_call_ms"]
        result.max_abs_error = result.max_rel_error = 0.0
        if reference.scores is not None:
            result.top1_agreement = 1.0
            if self.samples.test_labels is not None:
                result.accuracy = float(np.mean(reference.scores.argmax(1) == self.samples.test_labels))
                result.accuracy_drop = result.accuracy_drop_upper = 0.0
        return reference

    # --- the other candidates ------------------------------------------------------------------------

    def _others(self) -> list[BackendInfo]:
        named = self.config.candidates
        wanted = [info for name, info in backends().items() if name != EAGER and (named is None or name in named)]
        return sorted(wanted, key=lambda info: info.cost)

    def _candidate(self, info: BackendInfo, attempt: str = "search") -> Candidate:
        candidate = Candidate(info, self.task, attempt=attempt)
        self.stack.callback(candidate.close)
        return candidate

    def _try(self, info: BackendInfo) -> None:
        """Build, load and verify one candidate; it stays loaded if it is to be timed.

        One that is refused as unproven is timed too: it shows what more test samples could win.
        """
        result = self.results[info.name] = CandidateResult(info.name)
        if self.deadline is not None and time.monotonic() > self.deadline:
            result.reason = f"not tried: the budget of {self.config.budget_seconds:g} s was used up"
        elif reason := info.usable():
            result.reason = f"not usable here: {reason}"
        else:
            self.say(f"{info.name}: building")
            candidate = self._candidate(info)
            try:
                is_usable = self._build_and_verify(candidate, result)
            except (ChildFailure, BadInputError) as error:
                result.verdict, result.reason, is_usable = "failed", str(error), False
            if is_usable:
                self.live[info.name] = candidate
            else:
                candidate.close()
        self.say(f"{info.name}: {result.verdict}, {result.reason}")
        self._note("candidate", **result.to_json())

    def _build_and_verify(self, candidate: Candidate, result: CandidateResult) -> bool:
        """Whether its outputs are fit for use, whatever their accuracy."""
        candidate.start()
        self._record_build(result, candidate.build())
        opened = candidate.open(self._manifest(result.name))
        result.load_seconds, result.first_call_ms = opened["load_seconds"], opened["first_call_ms"]
        parity, decision = self.verifier.judge_built(candidate)
        result.add_parity(parity)
        result.add_decision(decision)
        return decision.accepted or (parity.problem is None and candidate.info.tier != "A")

    def _record_build(self, result: CandidateResult, built: dict[str, Any]) -> None:
        self.options[result.name] = built["options"]
        result.build_seconds, result.size_bytes = built["build_seconds"], built["size_bytes"]

    # --- timing --------------------------------------------------------------------------------------

    def _time_all(self) -> dict[str, TimingResult]:
        """Time all that are loaded, each until it is proven slower than one that can win; the others stay loaded."""
        self.say(f"timing {', '.join(self.live)}")
        knockout = Knockout(
            self.live,
            max_rounds=self.config.num_rounds,
            keep=(EAGER,),
            may_win=[name for name in self.live if self.results[name].verdict == "accepted"],
            confidence=_KNOCKOUT_CONFIDENCE,
        )
        timings = self._time(self.live, "selection", self.config.seed, knockout)
        for name, timing in timings.items():
            if timing.eliminated is not None:
                self.live.pop(name).close()
        return timings

    def _time(
        self, subjects: dict[str, Candidate], stage: str, seed: int, knockout: Knockout | None = None
    ) -> dict[str, TimingResult]:
        """Time side by side; returns those that did not fail, after recording them all."""
        left = None if self.deadline is None else max(1.0, self.deadline - time.monotonic())
        config = TimingConfig(num_rounds=self.config.num_rounds, budget_seconds=left, seed=seed)
        meter = LoadMeter()
        meter.start()
        measures = {name: subject.time for name, subject in subjects.items()}
        timings = measure_interleaved(measures, config=config, knockout=knockout)
        self._note_if_busy(stage, meter.stop())
        for name, timing in timings.items():
            seconds, ended = timing.medians(), {"failure": timing.failure, "eliminated": timing.eliminated}
            self._note("rounds", stage=stage, name=name, median_seconds=seconds, **ended)
        if timings[EAGER].failure is not None:
            raise BackendError(f"the model itself cannot be run: {timings[EAGER].failure}")
        for name, timing in timings.items():
            result = self.results[name]
            if timing.failure is not None:
                result.verdict, result.reason = "failed", timing.failure
                self.live.pop(name, None)
            elif knockout is not None and timing.eliminated is not None:
                result.add_timing(timing, knockout.speedup(name, EAGER), timings[EAGER])
            else:
                gain = _WHOLE if name == EAGER else speedup(timings[EAGER], timing)
                result.add_timing(timing, gain, timings[EAGER])
        return {name: timing for name, timing in timings.items() if timing.failure is None}

    def _note_if_busy(self, stage: str, load: Load | None) -> None:
        if load is not None and load.is_busy:
            used = f"other programs used {plain(percent(load.others_share))} of the cores during the {stage} rounds"
            self.notes.append(f"{used}: latencies are those of a busy machine")
            self.say(self.notes[-1])

    def _explain_losers(self, chosen: str, timings: dict[str, TimingResult]) -> None:
        for name, result in self.results.items():
            if result.verdict == "accepted" and name not in (EAGER, chosen) and result.speedup is not None:
                gains = result.speedup_interval is not None and result.speedup_interval[0] > 1.0
                why = timings[name].eliminated or (f"not faster than {chosen}" if gains else "no proven gain")
                result.reason = f"verified, {why} ({result.speed()}); {result.reason}"
            elif result.verdict == "refused" and result.unsteady_range is not None:
                result.reason += f"; {result.speed()}"
        if any(result.unsteady_range is not None for result in self.results.values()):
            self.notes.insert(0, UNSTEADY_NOTE)

    # --- the last word -------------------------------------------------------------------------------

    def _stage(self, name: str) -> Path:
        """The candidate as an artifact in the scratch folder."""
        folder = self.task.scratch / name
        return stage(folder / "search" / "data", folder / "artifact", self._manifest(name))

    def _confirm(self, name: str) -> tuple[str, Path] | None:
        """Load from disk in a fresh process, verify on the test samples and time again on fresh rounds.

        Those that are about as fast are timed with it, so that a reader can compare the figures.
        """
        if self.results[name].verdict == "failed":  # while another was confirmed
            return None
        self.say(f"{name}: confirming after reload")
        if name in self.live:
            self.live.pop(name).close()
        result, candidate = self.results[name], self._candidate(backend_info(name), "confirm")
        try:
            staged = self._stage(name)
            problem = self._reloaded(candidate, staged, result)
            if problem is None:
                problem = self._retimed(candidate, result)
        except (ChildFailure, BadInputError) as error:
            problem = str(error)
        finally:
            candidate.close()
        if problem is None:
            return name, staged
        result.verdict, result.reason = "refused", f"not confirmed after reload from disk: {problem}"
        self.say(f"{name}: {result.reason}")
        return None

    def _reloaded(self, candidate: Candidate, staged: Path, result: CandidateResult) -> str | None:
        """Verify a reloaded artifact; returns what is wrong with it."""
        candidate.start()
        loaded = candidate.load(staged)
        result.load_seconds, result.first_call_ms = loaded["load_seconds"], loaded["first_call_ms"]
        decision = self.verifier.judge_reloaded(candidate)
        if not decision.accepted:
            return decision.reason
        result.add_decision(decision)
        return None

    def _retimed(self, candidate: Candidate, result: CandidateResult) -> str | None:
        """Time a reloaded artifact; returns why its gain is not confirmed."""
        name = candidate.info.name
        timings = self._time({**self.live, name: candidate}, "confirmation", self.config.seed + 1)
        if name not in timings:
            return result.reason
        gain = speedup(timings[EAGER], timings[name])
        if gain.low <= 1.0:
            return f"no proven gain ({result.speed()}, interval {factor_range(gain.low, gain.high)})"
        result.reason = f"the fastest proven ({result.speed()}); {result.reason}"
        return None

    def _fall_back(self) -> tuple[str, Path]:
        """Eager, when nothing is proven to be faster."""
        candidate = self._candidate(backend_info(EAGER), "confirm")
        staged, result = self._stage(EAGER), self.results[EAGER]
        try:
            problem = self._reloaded(candidate, staged, result)
        except (ChildFailure, BadInputError) as error:
            problem = str(error)
        finally:
            candidate.close()
        if problem is not None:
            raise BackendError(f"the model does not give the same results after it was saved and loaded: {problem}")
        result.reason = "no other candidate is proven to be both faithful and faster"
        return EAGER, staged

    def _save(self, out: Path, staged: Path) -> OptimizeResult:
        result = OptimizeResult(
            artifact=out,
            batch_size=self.config.batch_size,
            max_drop=self.config.max_drop,
            num_test_samples=len(self.samples.test),
            candidates=tuple(self.results.values()),
            notes=tuple(self.notes),
        )
        name = result.chosen.name
        save(staged, out, self._manifest(name, evidence=result.to_json()))
        self.say(f"saved {name} to {out}")
        self._note("result", **result.to_json())
        return result

    def _manifest(self, name: str, **more: Any) -> Manifest:
        return Manifest(
            backend=name,
            options=self.options[name],
            preprocessing=self.task.preprocessing,
            output=self.reference.signature,
            labels=self.labels,
            num_threads=self.config.num_threads,
            environment=describe(),
            data=self.data,
            **more,
        )

    def _note(self, event: str, **facts: Any) -> None:
        if self.journal is not None:
            self.journal.write({"event": event, **facts})
