"""The callback for Lightning, in real Trainers: the same losses, plain checkpoints, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import upshift
from upshift.errors import ConfigError, PlanError, UnknownNameError
from upshift.workflows.tune import TunedPlan

lightning = pytest.importorskip("lightning")

pytestmark = [
    # Of lightning 2.6: advice on workers and logging, and its own use of what torch deprecates.
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
]
SEEN = list[tuple[float, torch.dtype]]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 4, 3), nn.Sequential(Block(), Block())
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.drop(self.blocks(self.stem(images)).mean((2, 3))))
        return result


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.net, self.losses, self.kinds = Net(), [], set()
        self.net.stem.register_forward_hook(lambda *call: self.kinds.add((call[-1].dtype, self.training)))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def data() -> DataLoader[Any]:
    torch.manual_seed(2)
    images = TensorDataset(torch.randn(40, 3, 8, 8), torch.randint(0, 3, (40,)))
    return DataLoader(images, batch_size=16)


def fit(
    module: Any, folder: Path, *callbacks: Any, ckpt_path: Path | None = None, loader: Any = None, **settings: Any
) -> Any:
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **({"max_epochs": 2, "enable_checkpointing": False} | settings),
    )
    torch.manual_seed(3)
    trainer.fit(module, data() if loader is None else loader, data(), ckpt_path=ckpt_path)
    return trainer


def module() -> Module:
    torch.manual_seed(0)
    return Module()


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    plain = module()
    fit(plain, tmp_path_factory.mktemp("plain"))
    return plain.losses


PLAN = upshift.Plan(memory_format="channels_last", activation_checkpointing=True, num_threads=2)


def test_training_with_a_plan_has_the_losses_of_one_without(tmp_path: Path, plain_losses: list[float]) -> None:
    ours = module()
    threads = torch.get_num_threads()
    trainer = fit(ours, tmp_path, upshift.lightning_callback(PLAN))
    torch.testing.assert_close(ours.losses, plain_losses, rtol=1e-4, atol=1e-5)
    assert ours.net.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert trainer.optimizers[0].param_groups[0]["fused"] is True
    assert torch.get_num_threads() == threads
    assert all("forward" not in vars(part) for part in ours.modules())


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["whole", "regional"])
def test_a_compiled_network_has_the_losses_of_a_plain_one(
    compile: Any, tmp_path: Path, plain_losses: list[float]
) -> None:
    torch.compiler.reset()
    ours = module()
    fit(ours, tmp_path, upshift.lightning_callback(upshift.Plan(compile=compile)))
    torch.testing.assert_close(ours.losses, plain_losses, rtol=1e-4, atol=1e-5)
    assert not any("_orig_mod" in key for key in ours.state_dict())


def test_plan_may_be_a_file_or_what_tune_gave(tmp_path: Path, plain_losses: list[float]) -> None:
    PLAN.save(tmp_path / "plan.json")
    for plan in (tmp_path / "plan.json", str(tmp_path / "plan.json"), TunedPlan(PLAN, 1.0, (), {})):
        ours = module()
        fit(ours, tmp_path, upshift.lightning_callback(plan), max_epochs=1)
        torch.testing.assert_close(ours.losses, plain_losses[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("simulated_clock")
def test_the_network_of_a_module_is_tuned_before_and_the_callback_takes_what_was_found(
    tmp_path: Path, plain_losses: list[float]
) -> None:
    ours = module()
    optimizer = torch.optim.SGD(ours.net.parameters(), lr=0.05, momentum=0.9)
    tuned = upshift.tune(
        model=ours.net, loss=functional.cross_entropy, optimizer=optimizer, data=list(data()), budget_seconds=0.05
    )
    (fused,) = [trial for trial in tuned.plan.trials if trial["name"] == "fused optimizer"]
    assert fused["verdict"] in ("adopted", "refused") and fused["gradient_error"] < 1e-5
    fit(ours, tmp_path, upshift.lightning_callback(tuned))
    torch.testing.assert_close(ours.losses, plain_losses, rtol=1e-4, atol=1e-5)


def test_checkpoints_are_those_of_a_plain_training_and_are_resumed_from(
    tmp_path: Path, plain_losses: list[float]
) -> None:
    saving = lightning.pytorch.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="one", save_top_k=-1)
    first = module()
    fit(first, tmp_path, upshift.lightning_callback(PLAN), saving, max_epochs=1, enable_checkpointing=True)
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == list(module().state_dict())
    Module().load_state_dict(saved["state_dict"])
    second = module()
    trainer = fit(second, tmp_path, upshift.lightning_callback(PLAN), ckpt_path=tmp_path / "one.ckpt")
    kernel = second.net.stem.weight
    assert trainer.optimizers[0].state[kernel]["momentum_buffer"].stride() == kernel.stride()
    assert second.losses[0] < plain_losses[0]  # it goes on from what was learnt


def test_autocast_is_for_training_and_evaluation_within_fit_alone(tmp_path: Path) -> None:
    ours = module()
    fit(ours, tmp_path, upshift.lightning_callback(upshift.Plan(precision="bf16")), num_sanity_val_steps=0)
    assert ours.kinds == {(torch.bfloat16, True), (torch.bfloat16, False)}
    assert ours.net.eval()(torch.randn(2, 3, 8, 8)).dtype == torch.float32
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


class Stopping(lightning.Callback):  # type: ignore[misc]
    def on_train_batch_end(self, *arguments: Any) -> None:
        raise RuntimeError("stopped")


def test_an_error_while_training_leaves_a_plain_network(tmp_path: Path) -> None:
    ours, threads = module(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stopped"):
        fit(ours, tmp_path, upshift.lightning_callback(PLAN), Stopping())
    assert torch.get_num_threads() == threads
    assert all("forward" not in vars(part) for part in ours.modules())


class Two(lightning.LightningModule):  # type: ignore[misc]
    """As a GAN: two networks, two optimizers, steps of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = Net(), Net()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        for network, optimizer in zip((self.generator, self.critic), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(functional.cross_entropy(network(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(network.parameters(), lr=0.1) for network in (self.generator, self.critic)], []


def test_of_several_networks_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"which one the plan is of; received Two with generator, critic"):
        fit(Two(), tmp_path, upshift.lightning_callback(PLAN))
    with pytest.raises(UnknownNameError, match="did you mean 'critic'"):
        fit(Two(), tmp_path, upshift.lightning_callback(PLAN, model="critics"))
    ours = Two()
    fit(ours, tmp_path, upshift.lightning_callback(PLAN, model="critic"))
    layouts = {
        name: getattr(ours, name).stem.weight.is_contiguous(memory_format=torch.channels_last)
        for name in ("generator", "critic")
    }
    assert layouts == {"generator": False, "critic": True}


class Itself(Module):
    """Its own forward is the network."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.net(images)
        return result

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])


def test_the_module_itself_can_be_named(tmp_path: Path) -> None:
    ours = Itself()
    fit(ours, tmp_path, upshift.lightning_callback(upshift.Plan(precision="bf16"), model=""), num_sanity_val_steps=0)
    assert (torch.bfloat16, True) in ours.kinds


def test_a_loader_with_the_workers_of_a_plan_can_be_handed_over(tmp_path: Path) -> None:
    plan, losses = upshift.Plan(data_path="worker", num_workers=1), []
    for workers, callbacks in ((0, []), (1, [upshift.lightning_callback(plan)])):
        ours = module()
        _, _, loader = upshift.Plan(data_path="worker", num_workers=workers).apply(ours.net, None, data())
        trainer = fit(ours, tmp_path, *callbacks, loader=loader)
        assert trainer.train_dataloader.num_workers == workers
        losses.append(ours.losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_plans_that_no_callback_can_carry_out_are_refused_when_it_is_made() -> None:
    with pytest.raises(PlanError, match="split its batches"):
        upshift.lightning_callback(upshift.Plan(micro_batch_size=2))
    with pytest.raises(PlanError, match="check the path"):
        upshift.lightning_callback("no-such-plan.json")
    with pytest.raises(ConfigError, match="plan must be"):
        not_a_plan: Any = 3
        upshift.lightning_callback(not_a_plan)
