"""`optimize`: the fastest verified inference artifact of a trained run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upshift.core.files import write_json
from upshift.core.records import RunFolder
from upshift.core.reference import refuse_while_importing
from upshift.core.vouching import is_vouched
from upshift.errors import ArtifactError, OptimizeInterrupted
from upshift.inference.config import Samples, SearchConfig
from upshift.inference.defaults import MAX_DROP
from upshift.inference.manifest import NAME as MANIFEST
from upshift.inference.search import search
from upshift.training.interrupt import StoppedAtOnce, stop_on_signals
from upshift.training.rng import check_seed
from upshift.workflows.arguments import verb
from upshift.workflows.datasets import Data, load_data
from upshift.workflows.folders import hold_run_folder
from upshift.workflows.model import read_run

NUM_CALIBRATION = 300
NUM_SELECTION = 512


@verb
def optimize(
    path: str | Path,
    *,
    max_drop: float = MAX_DROP,
    batch_size: int = 1,
    budget_seconds: float | None = None,
    candidates: Sequence[str] | None = None,
    out: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    trust_code: bool = False,
    on_event: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Search the fastest inference backend that keeps a run's outputs and accuracy.

    Args:
        path: A finished run folder.
        max_drop: Largest loss of test accuracy that is accepted, as a share (0.005 is half a point).
        batch_size: Samples a call while timing.
        budget_seconds: No new backend is begun after this long; None is no limit.
        candidates: Backends to try; all usable ones when None.
        out: The artifact's folder; `artifact/` in the run when None.
        data: The torch datasets that the run was trained with, if it was trained with such.
        data_dir: Where named datasets are looked for.
        seed: Of the choice of calibration and selection samples and the order of timing rounds.
        trust_code: Import the model's code though you have not trained with it on this machine.
        on_event: Called with a line of text as the search goes on.

    Returns:
        The object that `result.json` holds as "optimize".

    Raises:
        ArtifactError: The folder is no finished run.
        BadInputError: The model's outputs are not finite, or an argument is out of range.
        OptimizeInterrupted: By Ctrl-C or SIGTERM; the run is as it was.
    """
    refuse_while_importing("optimize")
    check_seed(seed)
    config = SearchConfig(
        max_drop=max_drop,
        batch_size=batch_size,
        budget_seconds=budget_seconds,
        candidates=tuple(candidates) if candidates else None,
        seed=seed,
    )
    folder = RunFolder(Path(path).resolve())
    rule = "what is optimized must be a run folder"
    if (folder.path / MANIFEST).is_file():
        raise ArtifactError(rule, received=f"the artifact {path}", hint="name the run it came from")
    record, result = read_run(folder, trust_code=trust_code, rule=rule), folder.load_result()
    folder.check_model()
    if record.data_handed_over and data is None:
        raise ArtifactError(
            "a run that was trained on torch datasets must be optimized with them",
            received=path,
            hint="call upshift.optimize(path, data=…) in Python",
        )
    try:
        dataset = load_data(record.recipe, data, data_dir=data_dir, seed=record.seed, on_progress=None)
        if dataset.info.fingerprint != record.info.fingerprint:
            raise ArtifactError(
                "a run must be optimized with the data that it was trained on",
                received="data that have changed since",
                hint="train again",
            )
        # Python drops what a signal raises while an object is destroyed: it is noticed by the next line then.
        with hold_run_folder(folder), stop_on_signals(at_once=True) as stop:

            def tell(line: str) -> None:
                if stop.signal_name is not None:
                    raise StoppedAtOnce(stop.signal_name)
                if on_event is not None:
                    on_event(line)

            found = search(
                record.spec,
                folder.model,
                record.preprocessing,
                _samples(dataset, seed),
                labels=record.info.label_names,
                out=Path(out) if out else folder.artifact,
                config=config,
                on_event=tell,
                trials=folder.trials,
                data=record.data.to_json() if record.data is not None else None,
            ).to_json()
            write_json(folder.result, result | {"optimize": found})
    except KeyboardInterrupt:
        again = "upshift.optimize(…, data=…)" if data is not None else _command(folder, config, out, data_dir)
        again += "" if data is not None or is_vouched(record.spec.reference) else " --trust-code"
        raise OptimizeInterrupted(
            f"interrupted; the run in {folder.path} is whole, as it was before the search: go on with {again}"
        ) from None
    return found


def _command(folder: RunFolder, config: SearchConfig, out: str | Path | None, data_dir: str | Path | None) -> str:
    """The command line that makes the same search."""
    words = ["upshift", "optimize", str(folder.path)]
    usual = SearchConfig()
    for option, field in (("--max-drop", "max_drop"), ("--batch-size", "batch_size"), ("--seed", "seed")):
        if getattr(config, field) != getattr(usual, field):
            words += [option, str(getattr(config, field))]
    words += ["--budget", f"{config.budget_seconds:g}"] if config.budget_seconds is not None else []
    for name in config.candidates or ():
        words += ["--candidate", name]
    words += ["--out", str(out)] if out else []
    words += ["--data-dir", str(data_dir)] if data_dir else []
    return shlex.join(words)


def _samples(dataset: Data, seed: int) -> Samples:
    """What each split is for: calibration by training samples, the proof by all of test, without a copy in memory.

    Outputs are compared on validation samples; where there are none, on training samples apart from those.
    """
    generator = np.random.default_rng(seed)
    train, test = dataset.splits["train"], dataset.splits["test"]
    order = generator.permutation(len(train))
    calibration, others = np.split(order, [min(NUM_CALIBRATION, len(train) // 2)])
    held_out = dataset.splits.get("validation")
    compared = generator.permutation(len(held_out)) if held_out is not None else others
    return Samples(
        calibration=np.array(train.inputs[np.sort(calibration)]),
        selection=np.array((train if held_out is None else held_out).inputs[np.sort(compared[:NUM_SELECTION])]),
        test=test.inputs,
        test_labels=np.array(test.labels),
    )
