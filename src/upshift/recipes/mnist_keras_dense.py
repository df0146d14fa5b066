"""The first example of the TensorFlow tutorial in PyTorch: Dense 32 ReLU, Dropout 0.2, Dense 10; Adam, 5 epochs.

Batches of 32 and Adam's eps of 1e-7 are the defaults of Keras that the example leaves unsaid.
"""

from upshift.data.config import DataConfig
from upshift.models.mlp import MLP
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig

RECIPE = Recipe(
    name="mnist-keras-dense",
    description="784–Dense 32 ReLU–Dropout 0.2–10 on MNIST, the TensorFlow example in PyTorch",
    model=MLP,
    model_args={"hidden": [32], "dropout": 0.2},
    data=DataConfig(source="mnist"),
    batch_size=32,
    epochs=5,
    optimizer=OptimizerConfig(name="adam", lr=0.001, eps=1e-7),
    variants={
        "fast": {
            "epochs": 2,
            "batch_size": 128,
            "optimizer.name": "adamw",
            "optimizer.lr": 0.01,
            "optimizer.weight_decay": 0.01,
            "schedule.name": "one_cycle",
            "schedule.warmup_fraction": 0.2,
            "model_args.dropout": 0.0,
        }
    },
)
