"""What a measurement has to say about where it was taken."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from hunyuan_kernels._ops import ops
from hunyuan_kernels._version import __version__


def processor() -> str:
    """The CPU's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the clone that this package lies in, marked when files differ from it; "unknown" outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if changes.stdout.strip() else "")


def describe() -> dict[str, str | int]:
    """Machine, versions and commit, for the head of a result file."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30,
        "system": platform.platform(terse=True),
        "instruction_set": ops.instruction_set(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hunyuan_kernels": __version__,
        "commit": commit(),
    }
