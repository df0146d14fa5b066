"""Five conv–BN–ReLU–pool blocks 6-16-32-64-128 on CIFAR-10, trained by plain SGD for 10 epochs."""

from upshift.data.config import AugmentConfig, DataConfig
from upshift.models.cnn import SimpleCNN
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig

RECIPE = Recipe(
    name="cifar10-simplecnn",
    description="five conv–BN–ReLU–pool blocks 6-16-32-64-128 on CIFAR-10",
    model=SimpleCNN,
    model_args={"widths": [6, 16, 32, 64, 128]},
    data=DataConfig(source="cifar10"),
    augment=AugmentConfig(),
    batch_size=64,
    epochs=10,
    optimizer=OptimizerConfig(name="sgd", lr=0.01),
    variants={
        "fast": {
            "epochs": 2,
            "optimizer.name": "adamw",
            "optimizer.lr": 0.01,
            "optimizer.weight_decay": 0.01,
            "schedule.name": "one_cycle",
            "schedule.warmup_fraction": 0.2,
            "augment.horizontal_flip": True,
        }
    },
)
