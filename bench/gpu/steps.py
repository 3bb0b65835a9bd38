"""Steps in processes of their own, one after the other, each with a time limit; what became of them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

SANITIZER = "compute-sanitizer"
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
#: Lines of a failed step's log in the results.
TAIL = 15


@dataclass(frozen=True)
class Step:
    """``{out}`` in the command is the folder of results. ``needs`` is a program that has to be on PATH."""

    name: str
    command: tuple[str, ...]
    limit: float  # seconds
    needs: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    step: str
    status: str  # passed, failed, out of time, missing
    seconds: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def plan() -> list[Step]:
    """All steps, in the order in which they run: what the later ones rest on comes first."""
    python = sys.executable
    check = (python, "-m", "bench.gpu.ops", "check")
    sanitize = (SANITIZER, "--target-processes", "all", "--error-exitcode", "9", "--tool")
    # Each tensor in an allocation of its own: an access past its end is then out of bounds for the tool.
    apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step(
            "conformance",
            (python, "-m", "bench.gpu.conformance", "--require-gpu", "--json", "{out}/conformance.json"),
            1200,
        ),
        Step("ops", check, 1200),
        Step("tests", (python, "-m", "pytest", "-q", "python_tests", "--junitxml", "{out}/tests.xml"), 2400),
        *(
            Step(f"sanitizer {tool}", (*sanitize, tool, *check, "--cases", "3"), 1200, SANITIZER, apart)
            for tool in SANITIZER_TOOLS
        ),
        Step("benches", (python, "-m", "bench.gpu.ops", "bench", "--json", "{out}/benches.json"), 2400),
    ]


def run_step(step: Step, out: Path, root: Path) -> Result:
    """Runs a step and writes its log. Out of time, it ends with all that it started."""
    if step.needs and shutil.which(step.needs) is None:
        return Result(step.name, "missing", 0.0, f"{step.needs} is not on PATH")
    command = [part.replace("{out}", str(out)) for part in step.command]
    log = out / f"{step.name.replace(' ', '_')}.log"
    start = time.perf_counter()
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=root,
                env={**os.environ, **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Result(step.name, "failed", 0.0, f"{command[0]}: {error.strerror}")
        try:
            code = process.wait(timeout=step.limit)
            status = "failed" if code else "passed"
        except subprocess.TimeoutExpired:
            end_group(process)
            code, status = None, "out of time"
        except BaseException:
            end_group(process)
            raise
    seconds = time.perf_counter() - start
    if status == "passed":
        return Result(step.name, status, seconds)
    reason = f"no end after {step.limit:g} s" if code is None else f"exit code {code}"
    tail = log.read_text(errors="replace").splitlines()[-TAIL:]
    return Result(step.name, status, seconds, "\n".join([f"{reason}; the end of {log.name}:", *tail]))


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process that has not ended, and what it started: its session is its own group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_steps(
    steps: Sequence[Step], out: Path, root: Path, report: Callable[[str], None] = lambda text: None
) -> list[Result]:
    """All of them, whatever becomes of one. ``report`` gets a line before and after each."""
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for step in steps:
        report(f"{step.name}: at most {step.limit:g} s")
        results.append(run_step(step, out, root))
        report(f"{step.name}: {results[-1].status}, {results[-1].seconds:.1f} s")
    return results


def table(results: Sequence[Result]) -> str:
    """Markdown, and below it what went wrong."""
    lines = ["| step | result | seconds |", "|---|---|---:|"]
    lines += [f"| {r.step} | {r.status} | {r.seconds:.1f} |" for r in results]
    lines += [f"\n{r.step}: {r.detail}" for r in results if r.detail]
    return "\n".join(lines) + "\n"


def to_json(results: Sequence[Result]) -> list[dict[str, object]]:
    return [{**asdict(r), "passed": r.passed} for r in results]
