"""One convolution and two fully connected layers on MNIST, trained by plain SGD for 10 epochs."""

from upshift.data.config import DataConfig
from upshift.models.cnn import ConvNet
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig

RECIPE = Recipe(
    name="mnist-cnn",
    description="one convolution and two fully connected layers on MNIST",
    model=ConvNet,
    model_args={"channels": 32, "hidden": 128},
    data=DataConfig(source="mnist"),
    batch_size=64,
    epochs=10,
    optimizer=OptimizerConfig(name="sgd", lr=0.01),
    variants={
        "fast": {
            "epochs": 1,
            "batch_size": 128,
            "optimizer.name": "adamw",
            "optimizer.lr": 0.004,
            "optimizer.weight_decay": 0.01,
            "schedule.name": "one_cycle",
            "schedule.warmup_fraction": 0.2,
        }
    },
)
