"""A small transformer encoder on the bytes of SST-2's sentences, from random weights, trained by AdamW.

The sentences are stored as their UTF-8 bytes, cut at 256: that is longer than all but a few of them.
"""

from upshift.data.config import DataConfig
from upshift.models.text import TextTransformer
from upshift.recipes.recipe import Recipe
from upshift.training.config import OptimizerConfig

RECIPE = Recipe(
    name="sst2-transformer",
    description="two-layer transformer encoder on the bytes of SST-2's sentences",
    model=TextTransformer,
    data=DataConfig(source="sst2", max_text_bytes=256),
    batch_size=64,
    epochs=10,
    optimizer=OptimizerConfig(name="adamw", lr=0.001, weight_decay=0.01),
)
