"""`plan emit`: a plan and a recipe as source code for another loop."""

from __future__ import annotations

import keyword
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from upshift.core.files import atomic_folder, refuse_unwritable, write_bytes
from upshift.core.reference import reference_to
from upshift.data.packing import inputs_file, labels_file
from upshift.data.source import SPLIT_NAMES
from upshift.errors import ConfigError, StorageError
from upshift.recipes.recipe import Recipe
from upshift.training.optimizers import build_optimizer
from upshift.training.stages import Stages
from upshift.tuning.emit.assemble import is_emitted
from upshift.tuning.emit.imports import KNOWN_IMPORTS, imported_modules
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.targets import find_target
from upshift.tuning.plan import Plan, read_plan
from upshift.workflows.arguments import verb
from upshift.workflows.datasets import EVALUATION_BATCH_SIZE, Data
from upshift.workflows.preparation import Prepared, prepare_training


@dataclass(frozen=True)
class EmitResult:
    """What was emitted.

    Attributes:
        text: Python source.
        inexpressible: What the file leaves out of the plan, the recipe, or what upshift does with them; its docstring
            names them too.
        files: What was written: the file and the arrays that it reads; none without `out`.
    """

    text: str
    inexpressible: tuple[str, ...]
    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "text": self.text,
            "inexpressible": list(self.inexpressible),
            "files": [str(path) for path in self.files],
        }


@verb
def emit(
    plan: str | Path | Plan,
    recipe: str | Path | Recipe,
    target: str,
    *,
    out: str | Path | None = None,
    variant: str | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    data_dir: str | Path | None = None,
    skip_bad: bool = False,
    on_data_progress: Callable[[str, int, int], None] | None = None,
) -> EmitResult:
    """Write a plan and a recipe as source code for another loop.

    Args:
        plan: "baseline", a plan file, or a `Plan`.
        recipe: A built-in name, a Python file, "package.module:RECIPE", or a `Recipe`.
        target: "script", "lightning", "accelerate" or "hf".
        out: The file to write; the arrays that it reads are written beside it, in the folder `<name>-data`. Nothing
            is written when None.
        variant: One of the recipe's variants, such as "fast".
        overrides: Fields to change, as "optimizer.lr=0.1".
        seed: Of the weights, the order of samples, augmentation and dropout.
        data_dir: Where named datasets are looked for.
        skip_bad: Leave bad rows of the data out, instead of refusing.
        on_data_progress: Called with (description, done, total) while data are packed.

    Raises:
        BadInputError: Something of the above cannot be served; nothing was written.
    """
    found = find_target(target)
    chosen = read_plan(plan)
    path = None if out is None else _checked_path(Path(out))
    # What the plan has of this machine is not carried out here: the file may be for another.
    prepared = prepare_training(
        recipe,
        variant=variant,
        overrides=overrides,
        plan=replace(chosen, device="cpu", precision="fp32", num_threads=None),
        seed=seed,
        data=None,
        data_dir=data_dir,
        skip_bad=skip_bad,
        on_data_progress=on_data_progress,
    )
    folder = f"{path.stem if path else prepared.recipe.name}-data"
    job = _job(chosen, prepared, folder)
    if path is not None:
        _refuse_sources(path, recipe, job)
    emission = found.emit(job)
    if path is not None:
        _refuse_shadow(path, imported_modules(emission.text))
    files: list[Path] = []
    if path is not None:
        arrays = _write_arrays(path.parent / folder, prepared.dataset)
        write_bytes(path, emission.text.encode())
        files = [path, *arrays]
    return EmitResult(emission.text, emission.inexpressible, tuple(files))


def _checked_path(path: Path) -> Path:
    is_name = path.stem.isidentifier() and not keyword.iskeyword(path.stem)
    if path.suffix != ".py" or not is_name:
        raise ConfigError(
            "an emitted file must have a name that Python can import, and end in .py",
            received=path.name,
            hint="for example --out train_digits.py",
        )
    if path.is_dir():
        raise StorageError("an emitted file must not be a folder", received=path, hint="name a file ending in .py")
    if path.exists() and not _is_emitted(path):
        raise StorageError(
            "an emitted file replaces none but one that was emitted before",
            received=path,
            hint="name another file with --out, or move that one",
        )
    _refuse_shadow(path, {imported.module.partition(".")[0] for imported in KNOWN_IMPORTS.values()})
    refuse_unwritable(path)
    return path


def _refuse_shadow(path: Path, imported: set[str]) -> None:
    """Refuse the name of a module: Python looks for modules in the folder of the file that it runs first."""
    # The folder itself, and where one works, are left out: what lies there may be an emitted file of before.
    own = {path.absolute().parent.resolve(), Path.cwd().resolve()}
    elsewhere = [entry for entry in sys.path if entry and Path(entry).resolve() not in own]
    name = path.stem
    if name in imported or name in sys.stdlib_module_names or PathFinder.find_spec(name, elsewhere) is not None:
        raise ConfigError(
            "an emitted file must not have the name of a module: Python would import the file in its place",
            received=path.name,
            hint=f"for example --out train_{name}.py",
        )


def _is_emitted(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_emitted(file.readline(1000).decode(errors="replace"))
    except OSError:
        return False


def _refuse_sources(path: Path, recipe: str | Path | Recipe, job: Job) -> None:
    """Refuse to replace a file that the recipe, its model or its loss is from."""
    sources = [job.model.file, None if job.loss is None else job.loss.file]
    sources += [] if isinstance(recipe, Recipe) else [str(recipe)]
    for source in sources:
        if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
            raise StorageError(
                "an emitted file must not replace what the recipe is made of",
                received=path,
                hint="name another file with --out",
            )


def _job(plan: Plan, prepared: Prepared, data_folder: str) -> Job:
    recipe, model = prepared.recipe, prepared.model
    Stages(model, recipe.stages)  # refuses patterns that match nothing
    optimizers = build_optimizer(model, recipe.optimizer, fused=plan.fused_optimizer).optimizers
    return Job(
        name=recipe.name,
        plan=plan,
        config=recipe,
        augment=recipe.augment,
        info=prepared.dataset.info,
        num_samples={name: len(split) for name, split in prepared.dataset.splits.items()},
        evaluation_batch_size=max(recipe.batch_size, EVALUATION_BATCH_SIZE),
        data_path="mmap" if prepared.loaders.train.data_path == "mmap" else "resident",
        data_folder=data_folder,
        model=prepared.record.spec,
        optimizers=tuple(type(optimizer).__name__ for optimizer in optimizers),
        averages=any(
            callable(getattr(one, "eval", None)) and callable(getattr(one, "train", None)) for one in optimizers
        ),
        fused=any(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups),
        loss=None if recipe.loss is None else reference_to(recipe.loss, field="loss"),
        seed=prepared.seed,
    )


def _write_arrays(folder: Path, dataset: Data) -> list[Path]:
    """The arrays of all splits, and the statistics of features, in a folder that holds nothing else."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, split in dataset.splits.items():
        arrays |= {inputs_file(name): np.asarray(split.inputs), labels_file(name): split.labels}
    if dataset.info.kind == "tabular":
        arrays |= {"mean.npy": np.array(dataset.info.mean), "std.npy": np.array(dataset.info.std)}
    known = {file(name) for name in SPLIT_NAMES for file in (inputs_file, labels_file)} | {"mean.npy", "std.npy"}
    if folder.exists() and (not folder.is_dir() or {entry.name for entry in folder.iterdir()} - known):
        raise StorageError(
            "the folder of an emitted file's arrays must hold nothing else",
            received=folder,
            hint="name another file with --out, or move the folder",
        )
    with atomic_folder(folder) as temporary:
        for file, array in arrays.items():
            np.save(temporary / file, array, allow_pickle=False)
    return [folder / file for file in arrays]
