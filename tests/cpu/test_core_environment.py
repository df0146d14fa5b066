"""The facts about a machine, and the fingerprint that measurements are compared by."""

import subprocess
import sys
from pathlib import Path

import pytest

from upshift.core import environment
from upshift.core.environment import describe, fingerprint, num_usable_cores, num_usable_threads


@pytest.mark.parametrize("named", ["", "0", "-2", "many", "100000", "1.5"])
def test_threads_are_at_most_the_usable_cores_whatever_else_is_named(monkeypatch, named):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone = num_usable_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    assert 1 <= num_usable_threads() == alone <= num_usable_cores()


@pytest.mark.parametrize("named", ["1", " 1 ", "1,4"])
def test_threads_are_cut_by_the_usual_variable(monkeypatch, named):
    monkeypatch.setenv("OMP_NUM_THREADS", named)
    assert num_usable_threads() == 1


@pytest.mark.skipif(not Path("/sys/devices/system/cpu/cpu0/topology").exists(), reason="the system does not tell")
def test_hardware_threads_of_one_core_count_once(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").read_text().strip()
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {int(cpu) for cpu in siblings.replace("-", ",").split(",")})
    assert num_usable_threads() == 1


# --- the fingerprint -------------------------------------------------------------------------------------

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1
cpu MHz\t\t: 2596.122
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1
cpu MHz\t\t: 3110.001
flags\t\t: fpu sse2
"""

ELSEWHERE = """
import json, sys, torch
from pathlib import Path
from upshift.core.environment import describe, fingerprint
print(fingerprint(describe(Path(sys.argv[1]))))
torch.set_num_threads(3)
print(fingerprint(json.loads(json.dumps(describe(Path(sys.argv[1]))))))
"""


def machine(root: Path, cpuinfo: str = CPUINFO) -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(cpuinfo)
    return root


def described(root: Path, cpuinfo: str = CPUINFO) -> str:
    return fingerprint(describe(machine(root, cpuinfo)))


def test_the_fingerprint_is_the_same_in_every_process_whatever_threads_a_plan_sets(tmp_path):
    command = [sys.executable, "-c", ELSEWHERE, str(machine(tmp_path))]
    found = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)]
    assert {print_ for prints in found for print_ in prints} == {fingerprint(describe(tmp_path))}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "KMP_AFFINITY", "ATEN_CPU_CAPABILITY", "LD_PRELOAD"])
def test_settings_of_the_libraries_change_the_fingerprint(tmp_path, monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    without = described(tmp_path)
    monkeypatch.setenv(name, "2")
    with_two = described(tmp_path)
    monkeypatch.setenv(name, "3")
    assert len({without, with_two, described(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("AMD EPYC", "AMD EPYC 9654"),
        ("stepping\t: 1", "stepping\t: 2"),
        ("avx512_vnni", ""),
        ("family\t: 26", "family\t: 25"),
    ],
)
def test_another_processor_changes_the_fingerprint(tmp_path, old, new):
    before = described(tmp_path)
    assert described(tmp_path, CPUINFO.replace(old, new)) != before


@pytest.mark.parametrize(("old", "new"), [("2596.122", "1200.000"), ("fpu sse2\n", "fpu sse2 rdpid\n")])
def test_what_changes_from_run_to_run_does_not_change_the_fingerprint(tmp_path, old, new):
    before = described(tmp_path)
    assert described(tmp_path, CPUINFO.replace(old, new)) == before


def test_fewer_cores_or_less_memory_of_a_container_change_the_fingerprint(tmp_path):
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    found = {described(tmp_path)}
    (group / "memory.max").write_text(str(2**30))
    found.add(described(tmp_path))
    (group / "memory.max").write_text(str(2**30 - 4096))
    assert described(tmp_path) in found and len(found) == 2
    if num_usable_cores() > 1:
        (group / "cpu.max").write_text("100000 100000")
        assert described(tmp_path) not in found


FACTS = {
    "cpu": "AMD EPYC",
    "num_cores": 2,
    "memory_bytes": 25276510208,
    "num_threads": 2,
    "system": "Linux 6.1 x86_64",
    "accelerator": {"name": "H200", "memory_bytes": 150754820096, "driver": "550.54.14"},
    "packages": {"torch": "2.13.0+cpu"},
    "kernels": {"blas": "mkl"},
}


@pytest.mark.parametrize(
    "change",
    [
        {"accelerator": None},
        {"accelerator": {**FACTS["accelerator"], "driver": "560.28.03"}},
        {"packages": {"torch": "2.13.1+cpu"}},
        {"kernels": {"blas": "openblas"}},
    ],
)
def test_another_gpu_driver_or_library_changes_the_fingerprint(change):
    assert fingerprint(FACTS | change) != fingerprint(FACTS)


@pytest.mark.parametrize("change", [{"num_threads": 1}, {"system": "Linux 6.2 x86_64"}, {"memory_bytes": 25276506112}])
def test_threads_of_a_plan_and_a_new_kernel_do_not(change):
    assert fingerprint(FACTS | change) == fingerprint(FACTS)


@pytest.mark.parametrize("value", [None, "much", -1, 1e400, float("nan"), 10**400, [], {"deep": [1]}])
def test_a_hand_written_environment_gets_a_fingerprint_of_its_own(value):
    assert fingerprint({"memory_bytes": value}) != fingerprint(FACTS)


@pytest.mark.parametrize(
    ("name", "text", "version"),
    [
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\n",
            "550.54.14",
        ),
        (
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Rel",
            "570.86.15",
        ),
        ("sys/module/amdgpu/version", "6.12.12\n", "6.12.12"),
        ("sys/module/amdgpu/version", "unknown\n", None),
    ],
)
def test_the_driver_of_a_gpu_is_the_kernels(tmp_path, name, text, version):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    assert environment._gpu_driver(tmp_path) == version


def test_an_arm_processor_without_a_name_is_told_by_its_numbers(tmp_path):
    text = "processor : 0\nFeatures : fp asimd i8mm bf16 sve\nCPU implementer : 0x41\nCPU part : 0xd4f\n"
    facts = describe(machine(tmp_path, text))
    assert facts["cpu_id"] == "0x41 0xd4f" and facts["cpu_flags"] == ["asimd", "i8mm", "bf16", "sve"]
    assert facts["cpu"] and fingerprint(facts) != described(tmp_path, text.replace("0xd4f", "0xd0c"))


def test_a_machine_without_proc_is_described(tmp_path):
    facts = describe(tmp_path)
    assert facts["cpu"] and facts["cpu_flags"] == [] and facts["memory_bytes"] > 0 and facts["kernels"]
