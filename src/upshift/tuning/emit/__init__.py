"""A plan and a recipe as source code for other loops: plain PyTorch, Lightning, Accelerate, Transformers."""
