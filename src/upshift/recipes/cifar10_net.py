"""Two 5×5 convolutions 64-64 and one linear layer 1024-10 on CIFAR-10, trained by plain SGD for 10 epochs."""

from upshift.data.config import DataConfig
from upshift.models.cnn import Net
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig

RECIPE = Recipe(
    name="cifar10-net",
    description="two 5×5 convolutions 64-64 and a linear layer 1024-10 on CIFAR-10",
    model=Net,
    data=DataConfig(source="cifar10"),
    batch_size=64,
    epochs=10,
    optimizer=OptimizerConfig(name="sgd", lr=0.01),
    variants={
        "fast": {
            "epochs": 3,
            "batch_size": 128,
            "optimizer.name": "adamw",
            "optimizer.lr": 0.003,
            "optimizer.weight_decay": 0.01,
            "schedule.name": "one_cycle",
            "schedule.warmup_fraction": 0.2,
        }
    },
)
