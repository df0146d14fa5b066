"""Weight decay that leaves norms and biases out, as lines of `make_optimizer`."""

from __future__ import annotations

from upshift.training.config import OptimizerConfig
from upshift.tuning.emit.source import literal


def splits_decay(config: OptimizerConfig) -> bool:
    """Whether parameters come in two groups, with weight decay and without."""
    return config.weight_decay != 0 and not config.decay_norm_and_bias


def decay_groups(config: OptimizerConfig, parameters: str) -> tuple[str, ...]:
    """Lines that define `groups`.

    Args:
        config: The optimizer.
        parameters: The name of the list that is split.
    """
    decay = literal(config.weight_decay)
    return (
        "    groups = [",
        f'        {{"params": [p for p in {parameters} if p.dim() >= 2], "weight_decay": {decay}}},',
        f'        {{"params": [p for p in {parameters} if p.dim() < 2], "weight_decay": 0.0}},  # norms and biases',
        "    ]",
        '    groups = [group for group in groups if group["params"]]',
    )
