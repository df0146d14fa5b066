"""OpenVINO in float32. The only file that imports openvino."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upshift.errors import BackendError
from upshift.inference.backend import Array, BuildContext, LoadContext, Runner
from upshift.inference.backends.onnx_export import exported

MODEL = "model.xml"


class OpenVino:
    """An OpenVINO IR: `model.xml` and `model.bin`."""

    def build(self, context: BuildContext) -> Mapping[str, Any]:
        save(convert(context), context.folder)
        return {}

    def load(self, context: LoadContext) -> Runner:
        return compile_runner(context)


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Import OpenVINO and NNCF without the package that reports their use over the network."""
    name = "openvino_telemetry"
    if name in sys.modules:  # the user's own import came first
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def import_openvino() -> Any:
    """The module, imported without telemetry."""
    with without_telemetry():
        import openvino
        import openvino.tools.ovc  # it reports too when it is imported
    return openvino


def convert(context: BuildContext) -> Any:
    """The OpenVINO model of the exported ONNX file."""
    openvino = import_openvino()
    try:
        return openvino.convert_model(exported(context))
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot read the model: {str(error)[:300]}") from error


def save(model: Any, folder: Path) -> None:
    """Write the IR with the weights as they are (the default would round them to float16)."""
    import_openvino().save_model(model, folder / MODEL, compress_to_fp16=False)


def compile_runner(context: LoadContext) -> Runner:
    """A runner that reuses one request; calls from several threads wait for one another."""
    openvino = import_openvino()
    # f32: on processors with bfloat16 units OpenVINO would otherwise round to it unasked.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if context.num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = context.num_threads
    try:
        compiled = openvino.Core().compile_model(context.folder / MODEL, "CPU", settings)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot compile the model: {str(error)[:300]}") from error
    request, lock = compiled.create_infer_request(), threading.Lock()
    num_outputs = len(compiled.outputs)

    def run(inputs: Array) -> list[Array]:
        with lock:
            outputs = request.infer([inputs], share_inputs=True, share_outputs=True)
            # Copied: the next call overwrites what the request shares.
            return [outputs[index].copy() for index in range(num_outputs)]

    return run
