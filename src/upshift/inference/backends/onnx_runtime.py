"""ONNX Runtime in float32."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from upshift.errors import BackendError
from upshift.inference.backend import Array, BuildContext, LoadContext, Runner
from upshift.inference.backends.onnx_export import INPUT, exported

MODEL = "model.onnx"


class OnnxRuntime:
    """One ONNX file."""

    def build(self, context: BuildContext) -> Mapping[str, Any]:
        shutil.copyfile(exported(context), context.folder / MODEL)
        return {}

    def load(self, context: LoadContext) -> Runner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        if context.num_threads is not None:
            options.intra_op_num_threads = context.num_threads
        # Threads may spin between the operators of a call, but not after it: by default they go on for some
        # 30 ms and take the cores from whatever runs next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # The file is read here, so that an ONNX file cannot make the library open others.
        content = (context.folder / MODEL).read_bytes()
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load the model: {str(error)[:300]}") from error
        names = [output.name for output in session.get_outputs()]

        def run(inputs: Array) -> list[Array]:
            outputs: list[Array] = session.run(names, {INPUT: inputs})
            return outputs

        return run
