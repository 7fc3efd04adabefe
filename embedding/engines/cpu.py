"""Instructions of the CPU that decide which precision is fast."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
# Names of the instructions that multiply bfloat16, on x86 and on ARM.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
SHOWN_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the names of the CPU's instructions as Linux has them; empty where unknown."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        found = subprocess.run(command, capture_output=True, text=True)
        return frozenset({"bf16"} if found.stdout.strip() == "1" else ())
    if not CPU_INFO.exists():
        return frozenset()
    for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


def multiplies_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16, which is otherwise emulated."""
    if not (torch.backends.mkldnn.is_available() and cpu_flags() & BF16_FLAGS):
        return False
    # False if ONEDNN_MAX_CPU_ISA forbids the instructions
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def describe_cpu() -> str:
    """Return the instructions that matter for speed: "avx2, avx512f, amx_bf16"."""
    return ", ".join(name for name in SHOWN_FLAGS if name in cpu_flags()) or "unknown"


__all__ = ["cpu_flags", "describe_cpu", "multiplies_bfloat16"]
