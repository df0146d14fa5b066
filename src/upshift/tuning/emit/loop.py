"""The sections of a hand-written training loop: evaluation, one step, and `main`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upshift.training.batches import micro_batch_sizes
from upshift.training.ema import ExponentialMovingAverage
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.model import missing_of_blocks, replaces_blocks, settings
from upshift.tuning.emit.optimizer import has_schedule, thaws_momentum
from upshift.tuning.emit.source import indented, lines, literal, when
from upshift.tuning.emit.step_graph import compiles_step


@dataclass(frozen=True, kw_only=True)
class Words:
    """How a loop says what a library may have words of its own for.

    Attributes:
        prepare: Lines of `main` after model, optimizer and schedule are made.
        compiles: Whether they define `compiled`, which is called for batches of the usual size in place of `model`.
        autocast: The context in which the model is called; "" where there is none, or the library has it.
        backward: The statement that computes gradients of a loss, as a format with {loss}.
        clip: Lines that clip gradients, without indent.
        update: Lines that update the weights, without indent.
    """

    prepare: Sequence[str] = ()
    compiles: bool = False
    autocast: str = ""
    backward: str = "{loss}.backward()"
    clip: Sequence[str] = ()
    update: Sequence[str] = ("optimizer.step()",)


def missing_of_a_loop(job: Job) -> list[str]:
    """What the loop leaves out of the plan and of what upshift does."""
    return [
        "skipping a step whose loss is not finite: it ends there",
        "smaller micro-batches when memory does not suffice: it fails",
        *when(job.data_path == "mmap", "reading ahead: the arrays are read in step with training"),
        *when(
            job.fused and thaws_momentum(job),
            "the fused optimizer: torch's takes no parameters that are trained later than others",
        ),
        *missing_of_blocks(job),
    ]


def loop_sections(job: Job, carried: Carried, words: Words) -> list[str]:
    """`evaluate`, `main` and what these need."""
    if job.config.ema_decay:
        carried.add(ExponentialMovingAverage)
    if job.accumulates:
        carried.add(micro_batch_sizes)
    return [
        carried.take(),
        *when(job.config.stages, _enter_stage(job)),
        *when(_averages(job), _averaged()),
        _evaluate(job),
        _show(),
        _main(job, words),
        lines('if __name__ == "__main__":', "    main()"),
    ]


def _enter_stage(job: Job) -> str:
    size = "image_size, " if job.resizes else ""
    gives = "tuple[int, int] | None" if job.resizes else "None"
    return lines(
        f"def enter_stage(trainable: dict[str, nn.Parameter], epoch: int) -> {gives}:",
        f'    """Freeze what the stage of an epoch freezes{"; gives its image size" if job.resizes else ""}."""',
        f"    for epochs, {size}freeze in STAGES:",
        "        if epoch < epochs:",
        "            for name, parameter in trainable.items():",
        "                is_frozen = any(fnmatch.fnmatchcase(name, pattern) for pattern in freeze)",
        "                parameter.requires_grad_(not is_frozen)",
        "            return image_size" if job.resizes else "            return",
        "        epoch -= epochs",
        when(job.resizes, '    raise ValueError("the stages have fewer epochs than EPOCHS")'),
    )


def _averages(job: Job) -> bool:
    """Whether the optimizer's own average of the weights is what is evaluated and saved."""
    return job.averages and not job.config.ema_decay


def _averaged() -> str:
    return lines(
        "@contextmanager",
        "def averaged(model: nn.Module, optimizer: Any) -> Iterator[None]:",
        '    """The weights that the optimizer converges with; those that it trains are put back as they were."""',
        "    trained = [parameter.detach().clone() for parameter in model.parameters()]",
        "    optimizer.eval()",
        "    try:",
        "        yield",
        "    finally:",
        "        optimizer.train()",
        "        with torch.no_grad():",
        "            for parameter, values in zip(model.parameters(), trained, strict=True):",
        "                parameter.copy_(values)",
    )


def _with_final_weights(job: Job, code: Sequence[str]) -> list[str]:
    """Lines that are executed while the model has the weights that are evaluated and saved."""
    if job.config.ema_decay:
        return ["with ema.swapped_in():", *indented(1, code)]
    return ["with averaged(model, optimizer):", *indented(1, code)] if _averages(job) else list(code)


def _evaluate(job: Job) -> str:
    total = 'F.cross_entropy(logits, labels, reduction="sum").item()'
    if job.loss is not None:
        total = "compute_loss(logits, labels).item() * len(labels)"
    return lines(
        "@torch.no_grad()",
        "def evaluate(model: nn.Module, batches: Batches) -> dict[str, float]:",
        f'    """Mean {"loss" if job.loss is not None else "cross-entropy"} and accuracy over a split."""',
        "    model.eval()",
        "    loss, num_correct = 0.0, 0",
        "    for inputs, labels in batches.epoch(0):",
        "        logits = model(inputs).float()",
        f"        loss += {total}",
        "        num_correct += int((logits.argmax(1) == labels).sum())",
        "    model.train()",
        "    num_samples = len(batches.labels)",
        '    return {"loss": loss / num_samples, "accuracy": num_correct / num_samples}',
    )


def _show() -> str:
    return lines(
        "def show(**record: Any) -> None:",
        '    """One line of JSON; a loss that is not finite ends the training."""',
        '    if not math.isfinite(record["loss"]):',
        '        raise FloatingPointError(f"the loss is not finite: {record}; lower LEARNING_RATE, or check the data")',
        "    print(json.dumps(record))",
    )


def _main(job: Job, words: Words) -> str:
    config, has_validation = job.config, "validation" in job.num_samples
    total = "EPOCHS * len(train)"
    evaluation = f"Batches({{}}, {job.evaluation_batch_size}, training=False)"
    return lines(
        "def main() -> None:",
        indented(1, settings(job)),
        "    seed_everything()",
        "    model = make_model()",
        when(replaces_blocks(job), "    prepare_blocks(model)"),
        "    optimizer = make_optimizer(model)",
        '    train = Batches("train", BATCH_SIZE, training=True)',
        when(has_validation, f"    validation = {evaluation.format(literal('validation'))}"),
        f"    test = {evaluation.format(literal('test'))}",
        f"    total_steps = {total if config.max_steps is None else f'min({total}, MAX_STEPS)'}",
        when(
            has_schedule(job),
            "    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, total_steps))",
        ),
        when(
            compiles_step(job),
            "    # For batches of the usual size: a smaller one would be compiled anew.",
            "    step_graph = StepGraph(model)",
        ),
        indented(1, words.prepare),
        when(config.ema_decay, f"    ema = ExponentialMovingAverage(model, {literal(config.ema_decay)})"),
        when(
            config.stages,
            "    trainable = {name: parameter for name, parameter in model.named_parameters() "
            "if parameter.requires_grad}",
        ),
        when(has_validation, "    best, best_accuracy = model.state_dict(), -1.0"),
        when(config.patience is not None, "    best_epoch = 0"),
        "    seed_everything()  # again: dropout must not depend on how many numbers the weights took",
        "    step = 0",
        "    losses: list[torch.Tensor] = []  # since the last line; of all samples of a step together",
        "    num_samples = 0",
        "    for epoch in range(EPOCHS):",
        when(config.stages, f"        {'image_size = ' if job.resizes else ''}enter_stage(trainable, epoch)"),
        when(
            config.stages and compiles_step(job),
            "        step_graph.trained = trained_parameters(model)",
        ),
        f"        for inputs, labels in train.epoch(epoch{', image_size' if job.resizes else ''}):",
        indented(3, _step(job, words)),
        indented(2, _after_epoch(job)),
        indented(1, _end(job)),
    )


def _step(job: Job, words: Words) -> list[str]:
    """One optimizer step, and what is noted of it."""
    return [
        "optimizer.zero_grad()",
        *when(
            not job.accumulates,
            *_unless_graph(
                job,
                ["if len(inputs) == BATCH_SIZE:", "    loss = step_graph(inputs, labels)", "else:"],
                [*_loss("inputs", "labels", "BATCH_SIZE", words), words.backward.format(loss="loss")],
            ),
            "losses.append(loss.detach().float() * len(inputs))",
        ),
        *when(
            job.accumulates,
            "losses.append(torch.zeros((), device=DEVICE))",
            "sizes = micro_batch_sizes(len(inputs), MICRO_BATCH_SIZE)",
            "parts = zip(inputs.split(sizes), labels.split(sizes), strict=True)",
            "for part, part_labels in parts:",
            "    share = len(part) / len(inputs)  # so that a smaller last part counts for what it is",
            *indented(
                1,
                _unless_graph(
                    job,
                    [
                        "if len(part) == MICRO_BATCH_SIZE:",
                        "    loss = step_graph(part, part_labels, share)",
                        "else:",
                    ],
                    [
                        *_loss("part", "part_labels", "MICRO_BATCH_SIZE", words),
                        "loss = loss * share",
                        words.backward.format(loss="loss"),
                    ],
                ),
            ),
            "    losses[-1] += loss.detach()",
            "losses[-1] *= len(inputs)",
        ),
        "num_samples += len(inputs)",
        *words.clip,
        *words.update,
        *when(has_schedule(job), "schedule.step()"),
        *when(job.config.ema_decay, "ema.update()"),
        "step += 1",
        "if step % LOG_EVERY == 0 or step % len(train) == 0 or step == total_steps:",
        "    show(step=step, epoch=epoch, loss=torch.stack(losses).sum().item() / num_samples)",
        "    losses.clear()",
        "    num_samples = 0",
        *when(job.config.max_steps is not None, "if step == total_steps:", "    break"),
    ]


def _unless_graph(job: Job, graph: Sequence[str], eager: Sequence[str]) -> Sequence[str]:
    """Lines for batches of the usual size where a step is one graph, and for the others, which end in `loss`."""
    return [*graph, *indented(1, eager)] if compiles_step(job) else eager


def _loss(inputs: str, labels: str, size: str, words: Words) -> list[str]:
    """Lines that compute `loss` of a batch."""
    forward = "model"
    lines_before = []
    if words.compiles:
        lines_before = [f"forward = compiled if len({inputs}) == {size} else model"]
        forward = "forward"
    if not words.autocast:
        return [*lines_before, f"loss = compute_loss({forward}({inputs}), {labels})"]
    return [
        *lines_before,
        f"with {words.autocast}:",
        f"    logits = {forward}({inputs})",
        f"loss = compute_loss(logits, {labels})",
    ]


def _after_epoch(job: Job) -> list[str]:
    """Evaluation, and what follows from it."""
    config, split = job.config, job.monitor_split
    has_validation = split == "validation"
    signs = {"loss": "<=", "accuracy": ">="}
    reached = " and ".join(
        f'metrics["{name}"] {signs[name]} {literal(goal)}' for name, goal in sorted(config.target.items())
    )
    is_better = 'metrics["accuracy"] > best_accuracy'
    evaluation = [
        f"metrics = evaluate(model, {split})",
        f'show(epoch=epoch, split="{split}", **metrics)',
        *when(reached, f"is_reached = {reached}"),
        *when(
            has_validation,
            f"if {'is_reached or ' if reached else ''}{is_better}:",
            '    best_accuracy = metrics["accuracy"]',
            *when(config.patience is not None, "    best_epoch = epoch"),
            "    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}",
        ),
    ]
    ends = [
        *when(reached, "is_reached"),
        *when(config.patience is not None, f"epoch - best_epoch >= {config.patience}"),
        *when(config.max_steps is not None, "step == total_steps"),
    ]
    skipped = config.evaluate_every > 1
    return [
        *when(
            skipped,
            f"if (epoch + 1) % {config.evaluate_every} != 0 and step != total_steps:",
            "    continue",
        ),
        *_with_final_weights(job, evaluation),
        *when(ends, f"if {' or '.join(ends)}:", "    break"),
    ]


def _end(job: Job) -> list[str]:
    """The final weights, judged on the test split and saved."""
    has_validation = "validation" in job.num_samples
    final = [
        *when(has_validation, 'show(split="test", **evaluate(model, test))'),
        "weights = model.state_dict()",
        "# One by one on the CPU: tensors that share memory cannot be saved together.",
        "save_file({name: tensor.cpu().contiguous().clone() for name, tensor in weights.items()}, WEIGHTS)",
    ]
    if has_validation:
        return ["model.load_state_dict(best)", *final]
    return _with_final_weights(job, final)
