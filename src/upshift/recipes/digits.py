"""A small convolutional network on scikit-learn's 8×8 handwritten digits: embedded, no download."""

from upshift.data.config import AugmentConfig, DataConfig
from upshift.models.cnn import SimpleCNN
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig, ScheduleConfig

RECIPE = Recipe(
    name="digits",
    description="small CNN on scikit-learn's 8×8 handwritten digits (embedded, no download)",
    model=SimpleCNN,
    model_args={"widths": [32, 64, 128]},
    data=DataConfig(source="digits"),
    augment=AugmentConfig(translate=0.1, rotation_degrees=10),
    batch_size=64,
    epochs=20,
    optimizer=OptimizerConfig(name="adamw", lr=0.005, weight_decay=0.01),
    schedule=ScheduleConfig(name="one_cycle", warmup_fraction=0.3),
    label_smoothing=0.05,
)
