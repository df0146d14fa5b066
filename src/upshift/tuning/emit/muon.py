"""Muon, which is for hidden 2-D weights, with AdamW for the rest, as one optimizer."""

from __future__ import annotations

from upshift.tuning.emit.decay import decay_groups, splits_decay
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.source import call, keywords, lines, literal, when

_TOGETHER = '''
class Together(torch.optim.Optimizer):
    """Optimizers of different parameters as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
'''


def make_muon(job: Job) -> str:
    """The function `make_optimizer`; of the two optimizers the model may have use for one alone."""
    config = job.config.optimizer
    is_one, splits = len(job.optimizers) == 1, splits_decay(config)
    made = [
        f"    return {_made(job, name, used=11)}" if is_one else f"    {name.lower()} = {_made(job, name, used=12)}"
        for name in job.optimizers
    ]
    function = lines(
        "def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:",
        '    """Muon for hidden 2-D weights; AdamW for embeddings, the output layer, norms, biases, convolutions."""',
        "    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]",
        "    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]",
        "    others = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}",
        "    others |= {id(linears[-1].weight)} if linears else set()",
        when("Muon" in job.optimizers, "    hidden = [p for p in parameters if p.dim() == 2 and id(p) not in others]"),
        when(
            "AdamW" in job.optimizers,
            "    rest = [p for p in parameters if p.dim() != 2 or id(p) in others]",
            *when(splits, *decay_groups(config, "rest")),
        ),
        made,
        when(not is_one, "    return Together(muon, adamw)"),
    )
    return function if is_one else lines(_TOGETHER.strip("\n"), "", "", function)


def _made(job: Job, name: str, *, used: int) -> str:
    """The call that makes one of the two."""
    config = job.config.optimizer
    if name == "Muon":
        values = {"momentum": config.momentum, "nesterov": config.nesterov, "weight_decay": config.weight_decay}
        arguments = ["hidden", "lr=LEARNING_RATE", *keywords({**values, **config.options}, indent=4)]
        return call("torch.optim.Muon", arguments, indent=4, used=used)
    rate = "LEARNING_RATE" if config.adamw_lr is None else literal(config.adamw_lr)
    rest = ["groups"] if splits_decay(config) else ["rest", f"weight_decay={literal(config.weight_decay)}"]
    fused = {"fused": True} if job.fused else {}
    arguments = [*rest, f"lr={rate}", *keywords({"betas": config.betas, "eps": config.eps, **fused})]
    return call("torch.optim.AdamW", arguments, indent=4, used=used)
