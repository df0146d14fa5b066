"""The result of a run in one sentence, and the figures behind it."""

from __future__ import annotations

from upshift.core import units
from upshift.reports.candidates import Optimization, backend_title, read_optimization
from upshift.reports.fields import Record, amount, count, number, record, text

SAMPLE_NOUNS = {"image": "image", "text": "text", "tabular": "row"}


def sentence(result: Record) -> str:
    """The result in plain language, saying no more than was measured."""
    said = f"{_trained(result)}{_inference(read_optimization(result))}."
    return said[0].upper() + said[1:]


def sample_noun(result: Record) -> str:
    """What one sample is: "image", "text", "row", else "sample"."""
    return SAMPLE_NOUNS.get(text(record(result, "data"), "kind"), "sample")


def target_reached(result: Record) -> str:
    """The target and when it was reached ("accuracy 0.99 reached after 5.0 s"); empty where there was none."""
    target, reached = record(result, "target"), amount(result, "time_to_target_seconds")
    goals = [f"{name} {units.setting(goal)}" for name in target if (goal := number(target, name)) is not None]
    if not goals:
        return ""
    return f"{' and '.join(goals)} " + (
        "not reached" if reached is None else f"reached after {units.duration(reached)}"
    )


def accuracy_change(drop: float | None) -> str:
    """A measured change of accuracy in words; empty where it was not measured."""
    if drop is None:
        return ""
    if units.points(drop) == units.points(0):
        return "accuracy unchanged"
    return f"accuracy {units.points(abs(drop))} {'lower' if drop > 0 else 'higher'}"


def _trained(result: Record) -> str:
    metrics, data = record(result, "metrics"), record(result, "data")
    seconds, num_test = amount(result, "train_seconds"), count(data, "num_test")
    accuracy, loss = number(metrics, "accuracy"), number(metrics, "loss")
    said = "trained" if seconds is None else f"trained in {units.duration(seconds)}"
    on_test = f" on {units.counted(num_test, f'test {sample_noun(result)}')}" if num_test else ""
    if accuracy is not None:
        return f"{said} to {units.percent(accuracy, num_test)} accuracy{on_test}"
    return f"{said} to a loss of {units.significant(loss)}{on_test}" if loss is not None else said


def _inference(found: Optimization | None) -> str:
    if found is None:
        return ""
    if found.kept_eager:
        return "; nothing was proven to run faster than plain PyTorch, so that is kept for inference"
    if found.speedup is None:
        return ""
    faster = f"; inference {units.factor(found.speedup, found.speedup_interval)} faster"
    if found.unsteady_range:
        rounds = units.factor_range(*found.unsteady_range)
        faster = f"; inference faster by an unknown factor (timing was unsteady: {rounds} in single rounds)"
    elif found.speedup_interval:
        faster += f" ({units.factor_range(*found.speedup_interval)})"
    change = accuracy_change(found.drop)
    return f"{faster} with {backend_title(found.chosen)}" + (f", {change}" if change else "")
