"""The multilayer perceptron 784–128–64–10 on MNIST, trained by plain SGD for 10 epochs.

`fast` passes the baseline's accuracy in one epoch: AdamW and one cycle in batches of 128.
"""

from upshift.data.config import AugmentConfig, DataConfig
from upshift.models.mlp import MLP
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig

RECIPE = Recipe(
    name="mnist-mlp",
    description="multilayer perceptron 784–128–64–10 on MNIST",
    model=MLP,
    model_args={"hidden": [128, 64]},
    data=DataConfig(source="mnist"),
    augment=AugmentConfig(),
    batch_size=64,
    epochs=10,
    optimizer=OptimizerConfig(name="sgd", lr=0.01),
    variants={
        "fast": {
            "epochs": 1,
            "batch_size": 128,
            "optimizer.name": "adamw",
            "optimizer.lr": 0.01,
            "optimizer.weight_decay": 0.01,
            "schedule.name": "one_cycle",
            "schedule.warmup_fraction": 0.2,
        }
    },
)
