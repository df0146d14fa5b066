"""A plan in a loop of one's own on a CUDA device. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upshift import Plan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_outputs_of_recorded_graphs_last_beyond_the_next_step() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).cuda()
    batches = [torch.randn(8, 16, device="cuda") for _ in range(8)]
    expected = [model(batch).detach() for batch in batches]
    Plan(compile="whole", compile_mode="reduce-overhead", fused_optimizer=None).apply(model)
    kept = []
    for batch in batches:
        outputs = model(batch)
        outputs.sum().backward()
        kept.append(outputs.detach())
    for outputs, plain in zip(kept, expected, strict=True):
        torch.testing.assert_close(outputs, plain, rtol=1e-4, atol=1e-5)


def test_an_optimizer_without_fused_kernels_updates_all_parameters_at_once() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    Plan(fused_optimizer=False).apply(model, optimizer)
    model(torch.randn(8, 16, device="cuda")).sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert any("_foreach_" in event.key for event in profile.key_averages())
