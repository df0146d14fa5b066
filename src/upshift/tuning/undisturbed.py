"""Tuning as if it had not been: what it changes of the process is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from upshift.core.malloc import keep_freed_memory, keeps_freed_memory
from upshift.training.rng import restore_rng_state, rng_state


@contextmanager
def undisturbed(loader: Any) -> Iterator[None]:
    """Put back what steps of a tuner change of the process, however the block ends.

    These are torch's, numpy's and Python's generators and those that shuffle the loader, and all that
    `torch_settings_put_back` puts back.

    Args:
        loader: Whose generators are put back too, where it is a DataLoader.
    """
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]
    states = [(rng_state(device), device) for device in devices]
    generators = [(generator, generator.get_state()) for generator in _generators(loader)]
    try:
        with torch_settings_put_back():
            yield
    finally:
        for state, device in states:
            restore_rng_state(state, device)
        for generator, before in generators:
            generator.set_state(before)


@contextmanager
def torch_settings_put_back() -> Iterator[None]:
    """Put back the settings of the process that plans change, however the block ends: they are for its steps alone.

    These are the number of torch's threads, the precision of matrix products, settings of torch.compile, and whether
    freed memory is kept.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    fallback_random = torch._inductor.config.fallback_random
    recompile_limit = torch._dynamo.config.recompile_limit
    keeps_memory = keeps_freed_memory()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch._inductor.config.fallback_random = fallback_random
        torch._dynamo.config.recompile_limit = recompile_limit
        keep_freed_memory(keeps_memory)


def _generators(loader: Any) -> list[torch.Generator]:
    """Those of a loader and of its samplers, each once."""
    found: dict[int, torch.Generator] = {}
    batch_sampler = getattr(loader, "batch_sampler", None)
    for owner in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = generator
    return list(found.values())
