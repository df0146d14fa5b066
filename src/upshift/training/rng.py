"""The random state of a training process, as tensors that a checkpoint keeps."""

from __future__ import annotations

import random

import numpy as np
import torch

from upshift.errors import ConfigError


def check_seed(seed: int) -> None:
    """Refuse a seed that the generators do not take.

    Raises:
        ConfigError: It is negative or too large.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError("seed must be at least 0 and below 2^63", received=seed, hint="for example --seed 0")


def seed_everything(seed: int) -> None:
    """Seed torch (every device), numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


HOST_GENERATORS = ("numpy_key", "numpy_rest", "python", "python_gauss")
"""The parts of a state that are not torch's."""


def rng_state(device: torch.device, *, with_host: bool = True) -> dict[str, torch.Tensor]:
    """The state of torch's, numpy's and Python's generators; nothing waits for an accelerator for it.

    Args:
        device: Whose generator is kept beside the CPU's.
        with_host: Whether numpy's and Python's are too: they take a hundred times as long.
    """
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state | _host_state() if with_host else state


def _host_state() -> dict[str, torch.Tensor]:
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    version, internal, gauss = random.getstate()
    return {
        "numpy_key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_rest": torch.tensor(
            [numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]], dtype=torch.float64
        ),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }


def restore_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Take back what `rng_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "python" in state:
        _restore_host_state(state)


def _restore_host_state(state: dict[str, torch.Tensor]) -> None:
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": state["numpy_key"].numpy().astype(np.uint32), "pos": int(position)},
            "has_gauss": int(has_gauss),
            "gauss": gauss,
        }
    )
    version, *internal = state["python"].tolist()
    python_gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(internal), python_gauss[0] if python_gauss else None))
