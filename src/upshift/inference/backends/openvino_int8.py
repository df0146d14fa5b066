"""OpenVINO in int8, quantized after training by NNCF. The only file that imports nncf."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from upshift.errors import BackendError
from upshift.inference.backend import BuildContext, LoadContext, Runner
from upshift.inference.backends.openvino_float import compile_runner, convert, save, without_telemetry


class OpenVinoInt8:
    """An OpenVINO IR with int8 weights and activations where NNCF puts them."""

    def build(self, context: BuildContext) -> Mapping[str, Any]:
        model = convert(context)
        with without_telemetry():
            import nncf
        logging.getLogger("nncf").setLevel(logging.ERROR)
        samples = [context.calibration[i : i + 1].numpy() for i in range(len(context.calibration))]
        try:
            quantized = nncf.quantize(
                model, nncf.Dataset(samples), subset_size=len(samples), target_device=nncf.TargetDevice.CPU
            )
        except Exception as error:
            raise BackendError(f"NNCF cannot quantize the model: {type(error).__name__}: {str(error)[:300]}") from error
        save(quantized, context.folder)
        return {"num_calibration_samples": len(samples)}

    def load(self, context: LoadContext) -> Runner:
        return compile_runner(context)
