"""What the verbs of the Python API take: arguments of a wrong type are refused with an example of a right one."""

from __future__ import annotations

from upshift.core.arguments import checked_arguments

EXAMPLES = {
    "recipe": 'recipe="digits", "my_recipe.py" or upshift.Recipe(name="mine", model=MyNetwork)',
    "model": "model=my_network",
    "loss": "loss=torch.nn.functional.cross_entropy",
    "optimizer": "optimizer=torch.optim.AdamW(model.parameters()); models of several (as GANs) are tuned one by one",
    "path": 'path="runs/latest"',
    "run": 'run="runs/latest"',
    "files": 'files=["picture.png"]',
    "variant": 'variant="fast"',
    "overrides": 'overrides=["epochs=3", "optimizer.lr=0.1"]',
    "plan": 'plan="baseline", "plan.json" or upshift.Plan(num_threads=2)',
    "target": 'target="script"',
    "seed": "seed=0",
    "out": 'out="my-run"',
    "data": 'data={"train": train_dataset, "test": test_dataset}',
    "data_dir": 'data_dir="data"',
    "source": 'source="digits"',
    "split": 'split="test"',
    "top_k": "top_k=3",
    "max_drop": "max_drop=0.005",
    "batch_size": "batch_size=1",
    "allow": 'allow=("algorithm",)',
    "budget_seconds": "budget_seconds=60",
    "candidates": 'candidates=["onnxruntime"]',
    "resume": "resume=True",
    "skip_bad": "skip_bad=True",
    "trust_code": "trust_code=True",
}

verb = checked_arguments(EXAMPLES)
"""Decorates a verb of the Python API."""
