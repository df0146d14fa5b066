"""The multilayer perceptron 784–64–10 on MNIST, trained by plain SGD for 10 epochs."""

from upshift.data.config import DataConfig
from upshift.models.mlp import MLP
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig

RECIPE = Recipe(
    name="mnist-mlp-small",
    description="multilayer perceptron 784–64–10 on MNIST",
    model=MLP,
    model_args={"hidden": [64]},
    data=DataConfig(source="mnist"),
    batch_size=64,
    epochs=10,
    optimizer=OptimizerConfig(name="sgd", lr=0.01),
    variants={
        "fast": {
            "epochs": 2,
            "batch_size": 128,
            "optimizer.name": "adamw",
            "optimizer.lr": 0.01,
            "optimizer.weight_decay": 0.01,
            "schedule.name": "one_cycle",
            "schedule.warmup_fraction": 0.2,
        }
    },
)
