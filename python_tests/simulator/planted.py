"""Kernels with planted faults: `faults/FAMILY.ptx` holds a correct kernel and, in comments, how each fault changes it.

`INSTRUCTION  // not with: a, b`     is missing from the kernels with fault a or b
`// with a: INSTRUCTION`             is an instruction of the kernel with fault a alone
`INSTRUCTION  // named by: a`        is what the simulator must name when it finds fault a (one of them)

A faulty kernel has the line numbers of the correct one.
"""

import re
from pathlib import Path

FAULTS = Path(__file__).resolve().parent / "faults"


def _marked(line: str, mark: str) -> list[str]:
    found = re.search(rf"// {mark}: ([\w, ]+)", line)
    return re.split(r", *", found[1].strip()) if found else []


def source(family: str, fault: str | None = None) -> str:
    """PTX of the correct kernel, or of the one with a fault."""
    lines = (FAULTS / f"{family}.ptx").read_text().splitlines()
    for i, line in enumerate(lines):
        if fault and line.strip().startswith(f"// with {fault}:"):
            lines[i] = line.split(":", 1)[1]
        elif fault in _marked(line, "not with"):
            lines[i] = ""
    return "\n".join(lines) + "\n"


def faults(family: str) -> list[str]:
    """Names of the faults that a file describes."""
    text = (FAULTS / f"{family}.ptx").read_text()
    names = [name for line in text.splitlines() for name in _marked(line, "not with")]
    return list(dict.fromkeys(names + re.findall(r"// with (\w+):", text)))


def named_lines(family: str, fault: str) -> list[int]:
    """Numbers of the lines of which the finding must name one."""
    lines = (FAULTS / f"{family}.ptx").read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if fault in _marked(line, "named by")]
