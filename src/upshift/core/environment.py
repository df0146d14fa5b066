"""What this machine is: the facts that every measurement carries with it.

Nothing here changes from one run to the next on a machine that stays the same: see `core.slowdowns` and
`core.load` for what does.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upshift.core import cgroup

PACKAGES = ("upshift", "torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf")

_ROOT = Path("/")

_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)  # fmt: skip
"""Instruction sets that the kernels of torch, oneDNN, OpenVINO and ONNX Runtime choose by."""

_SETTINGS = (
    *("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY"),
    *("OMP_SCHEDULE", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_LIBRARY"),
    *("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_NUM_THREADS"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY"),
    *("LD_PRELOAD", "MALLOC_CONF", "MALLOC_ARENA_MAX", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"),
)  # fmt: skip
"""Environment variables that change how fast torch computes."""


def num_usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use: its affinity, cut by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup.quota_cores(root)
    return cores if quota is None else min(cores, max(1, int(quota)))


def num_usable_threads() -> int:
    """Threads for computing: the usable cores, two hardware threads of one core as one, cut by `OMP_NUM_THREADS`.

    It is what torch takes by itself, whatever was set in this process since.
    """
    threads = min(num_usable_cores(), _num_physical_cores())
    # A list is for nested parallelism; its first number is that of the outermost.
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(threads, int(named)) if named.isdecimal() and int(named) > 0 else threads


def _num_physical_cores() -> int:
    """Cores that this process may run on; as many as hardware threads where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return num_usable_cores()
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def memory_bytes(root: Path = _ROOT) -> int:
    """Main memory in bytes that this process may use: the machine's, cut by the cgroup's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup.memory_limit_bytes(root)
    return total if limit is None else min(total, limit)


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Main memory in bytes that can be taken now without swapping, or being killed for it."""
    available = memory_bytes(root) // 2
    for name, value in _named_values(root / "proc/meminfo"):
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            available = min(int(value.split()[0]) * 1024, memory_bytes(root))
    left = cgroup.memory_left_bytes(root)
    return available if left is None else min(available, left)


def cpu_model(root: Path = _ROOT) -> str:
    """The processor's name as the operating system tells it."""
    names = dict(_named_values(root / "proc/cpuinfo"))
    return names.get("model name") or platform.processor() or platform.machine()


def _cpu_id(root: Path) -> str:
    """The processor's numbers: virtual machines give the same name to processors of different generations."""
    wanted = (
        *("vendor_id", "cpu family", "model", "stepping"),
        *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),
    )
    values = dict(_named_values(root / "proc/cpuinfo"))
    return " ".join(values[name] for name in wanted if name in values)


def _cpu_flags(root: Path) -> list[str]:
    values = dict(_named_values(root / "proc/cpuinfo"))
    present = set(values.get("flags", values.get("Features", "")).split())
    return [flag for flag in _FLAGS if flag in present]


def _named_values(path: Path) -> Iterator[tuple[str, str]]:
    """The "name : value" lines of a file, the first line of a name last, so that it decides in a `dict`."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in reversed(lines):
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def describe(root: Path = _ROOT) -> dict[str, Any]:
    """The environment of a measurement: hardware, operating system, libraries and what is set for them.

    Args:
        root: Where `proc` and `sys` are.
    """
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_model(root),
        "cpu_id": _cpu_id(root),
        "cpu_flags": _cpu_flags(root),
        "num_cores": num_usable_cores(root),
        "memory_bytes": memory_bytes(root),
        "accelerator": _accelerator(root),
        "num_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
        "kernels": _kernels(),
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def _accelerator(root: Path) -> dict[str, Any] | None:
    """Name, memory and driver of the accelerator that torch uses; None without one."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "driver": _gpu_driver(root),
            "runtime": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    if torch.accelerator.is_available():
        return {"name": str(torch.accelerator.current_accelerator())}
    return None


def _gpu_driver(root: Path) -> str | None:
    """The version of the kernel's driver for NVIDIA or AMD GPUs; None where the system does not tell."""
    for name in ("proc/driver/nvidia/version", "sys/module/amdgpu/version"):
        try:
            text = (root / name).read_text(errors="replace")
        except OSError:
            continue
        if match := re.search(r"\d+(?:\.\d+)+", text):
            return match[0]
    return None


def _kernels() -> dict[str, str]:
    """What torch computes with on the CPU: BLAS, oneDNN, threads, and the instructions that it chose."""
    import torch

    text = torch.__config__.show() + torch.__config__.parallel_info()
    patterns = {
        "blas": r"BLAS_INFO=(\w+)",
        "mkl": r"Math Kernel Library Version ([\d.]+)",
        "onednn": r"MKL-DNN v(\S+)",
        "openmp": r"OpenMP (\d+)",
        "threads": r"ATen parallel backend: (.+)",
        "capability": r"CPU capability usage: (\S+)",
    }
    found = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    return {name: match[1] for name, match in found.items() if match}


def fingerprint(description: Mapping[str, Any]) -> str:
    """A short hash of an environment: equal where measurements can be compared.

    Left out of it are the number of threads just now, which plans set, the kernel's version, and all but the
    GiB of the memory, of which the system keeps a little more or less for itself at each start.

    Args:
        description: What `describe` gave, here or on another machine; whatever else it is gets a hash too.
    """
    parts = {name: value for name, value in description.items() if name not in ("num_threads", "system")}
    memory = parts.get("memory_bytes")
    if isinstance(memory, int | float) and memory == memory and abs(memory) < 2**63:
        parts["memory_bytes"] = round(memory / 2**30)
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
