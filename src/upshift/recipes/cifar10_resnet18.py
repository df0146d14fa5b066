"""ResNet-18 for 32×32 images on CIFAR-10: batch norm and residual connections, trained by plain SGD for 10 epochs."""

from upshift.data.config import DataConfig
from upshift.models.resnet import resnet18_cifar
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig

RECIPE = Recipe(
    name="cifar10-resnet18",
    description="ResNet-18 with a 3×3 stem on CIFAR-10",
    model=resnet18_cifar,
    data=DataConfig(source="cifar10"),
    batch_size=64,
    epochs=10,
    optimizer=OptimizerConfig(name="sgd", lr=0.01),
    variants={
        "fast": {
            "epochs": 5,
            "batch_size": 128,
            "optimizer.lr": 0.1,
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 5e-4,
            "schedule.name": "one_cycle",
            "schedule.warmup_fraction": 0.25,
            "label_smoothing": 0.1,
            "augment.horizontal_flip": True,
            "augment.crop_padding": 4,
            "model_args.zero_init_residual": True,
        }
    },
)
