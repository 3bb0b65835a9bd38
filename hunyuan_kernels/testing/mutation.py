"""Mutation of kernels: what breaks when one synchronizing or asynchronous instruction is missing?

Each such instruction that a kernel executes is removed from its PTX, one at a time, and the mutant runs on the
simulator. A finding of the simulator or a wrong result catches it. A mutant that nothing catches is either a gap in the
checks or an instruction that is not needed.
"""

import bisect
import itertools
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hunyuan_kernels._C import simulator

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_GUARD = r"(?P<guard>@!?[%$\w]+\s+)?"
_REMOVED = (
    r"barrier|bar|mbarrier|fence|membar|wgmma|cp\.async|cp\.reduce\.async|st\.async|red\.async"
    r"|tensormap\.cp_fenceproxy|griddepcontrol"
)
_STATEMENT = re.compile(rf"{_GUARD}(?<![\w.%$])(?P<opcode>(?:{_REMOVED})\b[\w.:]*)\s*(?P<operands>[^;]*);")
_ENTRY = re.compile(r"(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$]+)")
_BRACE = re.compile(r"[{}]")
_ORDERED = re.compile(r"(?<![\w.%$])(?:ld|st|atom|red)\.(?P<order>acquire|release|acq_rel)\b(?!\.async)[^;]*;")


class Launched(Protocol):
    """A report of the simulator."""

    @property
    def kernel(self) -> str: ...
    @property
    def by_line(self) -> Mapping[int, int]: ...
    @property
    def warp_instructions(self) -> int: ...


#: Runs the kernel once, on fresh inputs, with keyword arguments for ``simulator.Gpu``; returns the reports of its
#: launches and raises AssertionError when a result is wrong.
Launch = Callable[[simulator.Module, Mapping[str, Any]], Sequence[Launched]]


@dataclass(frozen=True)
class Mutation:
    """One change of a PTX text that leaves its line numbers as they are."""

    kernel: str  #: empty: outside of kernels
    line: int
    instruction: str
    replacement: str  #: empty: removed
    text: str  #: without the change
    begin: int  #: of what is replaced in it
    end: int

    @property
    def ptx(self) -> str:
        """The changed text."""
        newlines = "\n" * self.text.count("\n", self.begin, self.end)
        return self.text[: self.begin] + self.replacement + newlines + self.text[self.end :]


#: Goes over what is to be done and shows how far it has come.
Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Mutant:
    """What became of a mutation."""

    kernel: str
    line: int
    instruction: str
    replacement: str
    finding: str | None  #: of the simulator, its first line
    wrong_result: str | None

    @property
    def caught(self) -> bool:
        return self.finding is not None or self.wrong_result is not None


def _replacement(opcode: str, operands: str) -> str | None:
    """What stands for a removed instruction, so that its result is defined; None where it is not to be removed."""
    result = operands.split(",", 1)[0].strip()
    parts = opcode.split(".")
    if parts[0] == "mbarrier":
        if "try_wait" in parts or "test_wait" in parts:
            return f"setp.eq.u32 {result}, 0, 0;"  # the wait is over at once
        if "pending_count" in parts:
            return None
        if ("arrive" in parts or "arrive_drop" in parts) and result[0] not in "_[":
            return f"mov.b64 {result}, 0;"
    if parts[0] in ("bar", "barrier") and "red" in parts:
        return f"mov.u32 {result}, 0;" if "popc" in parts else f"setp.ne.u32 {result}, 0, 0;"
    return ""


def _uncommented(ptx: str) -> str:
    """The text with spaces in the place of comments."""
    return _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), ptx)


def _with_kernels(ptx: str, kernels: Container[str]) -> str:
    """A module without its other kernels, whose lines are empty: a mutant is read in a fraction of the time."""
    parts, end = [], 0
    for entry in _ENTRY.finditer(ptx):
        if entry[1] in kernels:
            continue
        begin, depth = entry.start(), 0
        parts.append(ptx[end:begin])
        for brace in _BRACE.finditer(ptx, begin):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                end = brace.end()
                break
        parts.append("\n" * ptx.count("\n", begin, end))
    return "".join(parts) + ptx[end:]


def mutations(ptx: str, executed_lines: Iterable[int] | None = None) -> Iterator[Mutation]:
    """Every removal of one synchronizing or asynchronous instruction, and every acquire or release made relaxed.

    Args:
        ptx: text of a module
        executed_lines: lines of instructions that were executed; None takes all
    """
    text = _uncommented(ptx)
    executed = None if executed_lines is None else set(executed_lines)
    changes: list[tuple[int, int, str, str]] = []
    for match in _STATEMENT.finditer(text):
        replacement = _replacement(match["opcode"], match["operands"])
        if replacement is not None:
            guard = match["guard"] or ""
            changes.append((match.start(), match.end(), match[0], guard + replacement if replacement else ""))
    for match in _ORDERED.finditer(text):
        begin, end = match.span("order")
        changes.append((begin, end, match[0], "relaxed"))
    entries = list(_ENTRY.finditer(text))
    starts = [entry.start() for entry in entries]
    for begin, end, instruction, replacement in sorted(changes):
        line = text.count("\n", 0, begin) + 1
        if executed is not None and line not in executed:
            continue
        kernel = bisect.bisect(starts, begin)
        yield Mutation(
            entries[kernel - 1][1] if kernel else "",
            line,
            " ".join(instruction.split()),
            replacement,
            text,
            begin,
            end,
        )


def run_mutants(
    ptx: str,
    launches: Sequence[Launch],
    settings: Sequence[Mapping[str, Any]],
    *,
    progress: Progress = iter,
) -> list[Mutant]:
    """Runs every mutant of a module's kernels, by each launch that executes the instruction and under each setting,
    until one catches it.

    Args:
        ptx: text of the module; only instructions that a launch executes are mutated
        launches: each runs kernels of the module and compares their results; the shortest are tried first
        settings: keyword arguments of ``simulator.Gpu``, tried in this order
        progress: goes over the mutations

    Raises:
        simulator.SimError, AssertionError: a kernel as it is fails already.
    """
    executed: list[set[int]] = []
    kernels: list[set[str]] = []
    instructions: list[int] = []
    module = simulator.Module(ptx)
    for launch in launches:
        reports = [report for setting in settings for report in launch(module, setting)]
        executed.append(set().union(*(report.by_line for report in reports)))
        kernels.append({report.kernel for report in reports})
        instructions.append(sum(report.warp_instructions for report in reports))
    shortest_first = sorted(range(len(launches)), key=instructions.__getitem__)
    # A mutant that waits in vain for what never comes, or runs astray, is soon given up.
    most = max(instructions, default=0)
    limits = {"livelock_instructions": 4 * most + 100_000, "max_instructions": 20 * most + 1_000_000}
    attempts = [{**setting, **limits} for setting in settings]
    text = _uncommented(ptx)
    # The mutations that the same launches execute: those of one kernel, as a rule.
    groups: dict[tuple[int, ...], list[int]] = {}
    for line in {mutation.line for mutation in mutations(text, set().union(*executed))}:
        groups.setdefault(tuple(i for i in shortest_first if line in executed[i]), []).append(line)
    chosen = []
    for able, lines in groups.items():
        small = _with_kernels(text, set().union(*(kernels[i] for i in able)))
        chosen += [(mutation, [launches[i] for i in able]) for mutation in mutations(small, lines)]
    chosen.sort(key=lambda each: each[0].line)
    return [_run_mutant(mutation, able, attempts) for mutation, able in progress(chosen)]


def _run_mutant(mutation: Mutation, launches: Iterable[Launch], settings: Sequence[Mapping[str, Any]]) -> Mutant:
    finding = wrong_result = None
    module = simulator.Module(mutation.ptx)
    for launch, setting in itertools.product(launches, settings):
        try:
            launch(module, setting)
        except simulator.SimError as error:
            finding = str(error).splitlines()[0]
            break
        except AssertionError as error:
            wrong_result = (str(error).splitlines() or ["wrong result"])[0]
            break
    return Mutant(mutation.kernel, mutation.line, mutation.instruction, mutation.replacement, finding, wrong_result)
