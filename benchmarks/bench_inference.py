"""Inference: the artifact that `optimize` chooses against eager, torch.compile, ONNX Runtime and OpenVINO.

All candidates are built, verified and timed by upshift's own search: each in a process of its own, in interleaved
rounds of random order, on the same normalised batch; what is chosen is loaded from disk again and timed again
against eager. A candidate whose accuracy is not proven is timed too, and shown as refused.

ResNet-50 at 224×224, batch 1: random convolutions, synthetic pictures of ten kinds, and a last layer fitted to tell
them apart, so that the speed is real and the accuracy is of an easy task. cifar10-simplecnn: trained here by its
`fast` variant on real data, batches of 1 and 64.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from arguments import names, parser
from record import Record, Table, say

SIMPLECNN_BATCHES, RESNET, NUM_KINDS = (1, 64), "ResNet-50", 10
NUM_SELECTION, NUM_CALIBRATION = 32, 100
NUM_TEST = 640  # the fewest that can prove a drop below 0.005 are 598
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Measure and publish."""
    options = parser(__doc__ or "", rounds=30)
    options.add_argument("--image-size", type=int, default=224, help="height and width for ResNet-50")
    options.add_argument("--candidates", type=names, help="backends to try [default: all that are usable]")
    options.add_argument("--skip-resnet50", action="store_true", help="only cifar10-simplecnn")
    options.add_argument("--skip-simplecnn", action="store_true", help="only ResNet-50")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.image_size = 8, 32
        arguments.candidates = arguments.candidates or ["onnxruntime"]  # the others take long to build
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if not arguments.skip_resnet50:
            found |= _resnet50(Path(scratch), arguments)
        if not arguments.skip_simplecnn:
            found |= _simplecnn(Path(scratch), arguments)
    Record(
        claim="inference",
        tables=[_table(name, part["result"]) for name, part in found.items()],
        summary={name: _summary(part["result"]) for name, part in found.items()},
        rounds={name: part["trials"] for name, part in found.items()},
        aims=_aims(found) if not arguments.quick else {},
        notes=[f"{name}: {note}" for name, part in found.items() for note in part["result"]["notes"]],
    ).publish(arguments)


def _resnet50(scratch: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """ResNet-50 with weights and pictures made up here."""
    from safetensors.torch import save_file

    from upshift.inference.config import Samples, SearchConfig
    from upshift.inference.preprocess import Preprocessing
    from upshift.inference.search import search
    from upshift.models.spec import ModelSpec, state_dict_on_cpu

    side = arguments.image_size
    num_fit, num_selection, num_test = (20, 4, 16) if arguments.quick else (NUM_CALIBRATION, NUM_SELECTION, NUM_TEST)
    say(f"{RESNET}: making weights and {num_fit + num_selection + num_test} pictures of {side}×{side}")
    spec = ModelSpec(factory="upshift.models.resnet:resnet50", args={"input_shape": [3, side, side]})
    preprocessing = Preprocessing(kind="image", input_shape=(3, side, side), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pictures, kinds = synthetic_pictures(num_fit + num_selection + num_test, side)
    model = fitted(spec, preprocessing.apply(pictures[:num_fit]), kinds[:num_fit])
    weights = scratch / "resnet50.safetensors"
    save_file(state_dict_on_cpu(model), weights)
    result = search(
        spec,
        weights,
        preprocessing,
        Samples(
            calibration=pictures[:num_fit],
            selection=pictures[num_fit : num_fit + num_selection],
            test=pictures[num_fit + num_selection :],
            test_labels=kinds[num_fit + num_selection :],
        ),
        labels=tuple(map(str, range(1000))),
        out=scratch / "resnet50",
        config=SearchConfig(num_rounds=arguments.rounds, candidates=_candidates(arguments)),
        on_event=say,
        trials=scratch / "resnet50.jsonl",
    ).to_json()
    return {f"{RESNET}, {side}×{side}, batch 1": _part(result, scratch / "resnet50.jsonl")}


def synthetic_pictures(num_pictures: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth patches of colour in ten kinds, each varied, with noise: uint8 (N, 3, H, W) and int64 (N,)."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    of_kind = torch.rand((NUM_KINDS, 3, 6, 6), generator=generator)
    kinds = torch.arange(num_pictures) % NUM_KINDS
    coarse = 0.7 * of_kind[kinds] + 0.3 * torch.rand((num_pictures, 3, 6, 6), generator=generator)
    smooth = F.interpolate(coarse * 255, (side, side), mode="bicubic", align_corners=False)
    noise = torch.randn((num_pictures, 3, side, side), generator=generator) * 12
    return (smooth + noise).clamp_(0, 255).to(torch.uint8).numpy(), kinds.numpy()


def fitted(spec: Any, inputs: Any, kinds: np.ndarray) -> Any:
    """ResNet-50 with random convolutions, batch-norm statistics of the inputs, and a last layer fitted to their kinds.

    As it is made, an untrained network of this depth maps all pictures to nearly the same features, and its two
    highest scores lie so near each other that any rounding swaps them, as no trained network's do. Hence the
    statistics, the fit, and residual branches scaled by a fifth, which leaves out no computation.
    """
    import torch

    from upshift.models.resnet import Bottleneck

    torch.manual_seed(0)
    model = spec.make()
    for module in model.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.constant_(module.last_norm.weight, 0.2)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    head, model.fc = model.fc, torch.nn.Identity()
    with torch.no_grad():
        model.train()(inputs[:32])
        features = torch.cat([model.eval()(part) for part in inputs.split(32)]).double()
        targets = torch.nn.functional.one_hot(torch.from_numpy(kinds), head.out_features).double()
        centred = features - features.mean(0)
        # Ridge regression in its dual form: there are far fewer samples than features.
        gram = centred @ centred.T
        gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        weight = centred.T @ torch.linalg.solve(gram, targets - targets.mean(0))
        head.weight.copy_(weight.T)
        head.bias.copy_(targets.mean(0) - features.mean(0) @ weight)
    model.fc = head
    return model


def _simplecnn(scratch: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """cifar10-simplecnn, trained and then optimized for each batch size as `upshift optimize` does."""
    from upshift.terminal import Terminal
    from upshift.workflows.optimize import optimize
    from upshift.workflows.train import train

    say("cifar10-simplecnn: training")
    run = scratch / "simplecnn"
    terminal = Terminal(quiet=False)
    train(
        "cifar10-simplecnn",
        variant="fast",
        overrides=["epochs=1"] if arguments.quick else [],
        out=run,
        data_dir=arguments.data_dir,
        observers=(terminal,),
    )
    found = {}
    for batch_size in SIMPLECNN_BATCHES[: 1 if arguments.quick else None]:
        (run / "trials.jsonl").unlink(missing_ok=True)
        say(f"cifar10-simplecnn: optimizing for batches of {batch_size}")
        result = optimize(
            run,
            batch_size=batch_size,
            candidates=_candidates(arguments),
            out=scratch / f"simplecnn-{batch_size}",
            data_dir=arguments.data_dir,
            on_event=say,
        )
        found[f"cifar10-simplecnn, 32×32, batch {batch_size}"] = _part(result, run / "trials.jsonl")
    return found


def _candidates(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    return tuple(arguments.candidates) if arguments.candidates else None


def _part(result: dict[str, Any], trials: Path) -> dict[str, Any]:
    from upshift.core.records import read_jsonl

    return {"result": result, "trials": [line for line in read_jsonl(trials) if line["event"] == "rounds"]}


def _table(name: str, result: dict[str, Any]) -> Table:
    rows = []
    for candidate in sorted(result["candidates"], key=lambda item: item.get("latency_ms_p50") or float("inf")):
        low, high = candidate.get("speedup_interval", (None, None))
        speed = "" if low is None else f"{candidate['speedup']:.2f}× ({low:.2f}–{high:.2f})"
        rows.append(
            [
                candidate["name"],
                _number(candidate.get("latency_ms_p50"), ".2f"),
                _number(candidate.get("latency_ms_p90"), ".2f"),
                speed,
                _number(candidate.get("top1_agreement"), ".2%"),
                _number(candidate.get("accuracy_drop"), ".4f"),
                candidate["verdict"],
            ]
        )
    columns = ("", "p50 ms", "p90 ms", "speed of eager", "same top-1", "accuracy drop", "verdict")
    return Table(title=f"{name}: a call", columns=columns, rows=rows)


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    keys = ("backend", "reason", "latency_ms_p50", "eager_latency_ms_p50", "speedup", "speedup_interval")
    candidate_keys = ("name", "verdict", "reason", "latency_ms_p50", "speedup", "speedup_interval", "accuracy_drop")
    candidates = [{key: item[key] for key in candidate_keys if key in item} for item in result["candidates"]]
    return {key: result[key] for key in keys} | {"candidates": candidates}


def _aims(found: dict[str, dict[str, Any]]) -> dict[str, bool | None]:
    """The chosen one must be the fastest of those that are proven faithful, and never slower than eager."""
    aims: dict[str, bool | None] = {}
    for name, part in found.items():
        result = part["result"]
        faithful = [item for item in result["candidates"] if item["verdict"] == "accepted" and "speedup" in item]
        others = [item["speedup"] for item in faithful if item["name"] != result["backend"]]
        aims[f"{name}: no proven candidate is faster than the chosen"] = result["speedup"] >= 0.97 * max(
            others, default=0.0
        )
        aims[f"{name}: faster than eager"] = result["speedup_interval"][0] > 1
    return aims


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    main()
