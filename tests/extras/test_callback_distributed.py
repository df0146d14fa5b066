"""The callbacks in real Trainers of two processes: the layout is there before the model is wrapped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMON = """
import sys, warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import upshift
from upshift.errors import PlanError

warnings.filterwarnings("error", message="Grad strides do not match bucket view strides")
PLAN = upshift.Plan(memory_format="channels_last", activation_checkpointing=True)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images, labels=None):
        logits = self.head(torch.relu(self.stem(images)).mean((2, 3)))
        return logits if labels is None else {"loss": functional.cross_entropy(logits, labels), "logits": logits}

class Images(Dataset):
    def __init__(self):
        self.images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, index):
        return {"images": self.images[index], "labels": index % 3}

    def __len__(self):
        return 32

def is_laid_out(model):
    return model.stem.weight.is_contiguous(memory_format=torch.channels_last)
"""

LIGHTNING = """
import lightning

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch, index):
        return functional.cross_entropy(self.net(batch["images"]), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

class Looking(lightning.Callback):
    def on_fit_start(self, trainer, module):
        assert isinstance(trainer.model, DistributedDataParallel)
        assert is_laid_out(module.net), "laid out after the model was wrapped"

def train(*callbacks):
    lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
    ).fit(Module(), DataLoader(Images(), batch_size=8))

train(upshift.lightning_callback(PLAN), Looking())

class MadeLater(Module):
    def __init__(self):
        lightning.LightningModule.__init__(self)

    def configure_model(self):
        self.net = Net()

Module = MadeLater
try:
    train(upshift.lightning_callback(PLAN))
except PlanError as error:
    assert "before it is wrapped" in str(error)
else:
    raise AssertionError("laid out behind the back of DistributedDataParallel")
"""

TRANSFORMERS = """
import transformers

def trainer(*callbacks):
    arguments = transformers.TrainingArguments(
        output_dir=sys.argv[1], per_device_train_batch_size=8, num_train_epochs=2, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
    )
    assert arguments.world_size == 2
    return transformers.Trainer(Net(), arguments, train_dataset=Images(), callbacks=list(callbacks))

made = trainer(upshift.transformers_callback(PLAN))
assert is_laid_out(made.model)
made.train()

late = trainer()
late.add_callback(upshift.transformers_callback(PLAN))
try:
    late.train()
except PlanError as error:
    assert "when the Trainer is made" in str(error)
else:
    raise AssertionError("laid out behind the back of DistributedDataParallel")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("package", "script"), [("lightning", LIGHTNING), ("transformers", TRANSFORMERS)])
def test_a_plan_lays_the_model_out_before_several_processes_wrap_it_or_is_refused(
    package: str, script: str, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    (tmp_path / "train.py").write_text(COMMON + script + '\nprint("done", flush=True)\n', encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "train.py", str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("done") == 2
