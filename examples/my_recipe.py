"""A recipe of one's own: a model, its data and how it is trained, in one file.

Train it with `upshift train examples/my_recipe.py`; on your own pictures, one folder a class, with
`--set data.source=/path/to/pictures --set data.image_size=32,32`.
"""

import torch
from torch import nn

from upshift import AugmentConfig, DataConfig, OptimizerConfig, Recipe, ScheduleConfig


class MyNetwork(nn.Module):
    """Input (N, C, H, W), output logits (N, num_classes). upshift fills in both arguments from the data."""

    def __init__(self, input_shape=(1, 8, 8), num_classes=10, width=32):
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], width, kernel_size=3, padding=1)
        self.head = nn.Linear(width * 16, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = nn.functional.adaptive_max_pool2d(self.conv(images).relu(), 4)
        return self.head(features.flatten(1))


RECIPE = Recipe(
    name="my-recipe",
    model=MyNetwork,
    model_args={"width": 48},
    data=DataConfig(source="digits"),
    augment=AugmentConfig(translate=0.1),
    epochs=10,
    optimizer=OptimizerConfig(name="adamw", lr=0.005),
    schedule=ScheduleConfig(name="one_cycle", warmup_fraction=0.2),
    variants={"wide": {"model_args.width": 128, "epochs": 20}},
)
