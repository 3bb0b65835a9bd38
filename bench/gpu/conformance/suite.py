"""All cases, and how they are run and judged on one device or two."""

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from bench.gpu.conformance import copies, exchange, wgmma
from bench.gpu.conformance.case import Case, Outputs, difference, largest_difference
from bench.gpu.conformance.target import Target

#: A case that takes longer on a GPU hangs: its own work takes milliseconds, the compilation of its PTX seconds.
PATIENCE = 60.0
#: More for the first case of a process, which loads torch and starts the driver.
STARTUP = 60.0


def all_cases() -> list[Case]:
    return [*copies.cases(), *exchange.cases(), *wgmma.cases()]


@dataclass
class Verdict:
    """Of one case. ``problems`` says of each device what is wrong; empty: everything holds."""

    case: Case
    devices: list[str]
    problems: list[str] = field(default_factory=list)
    deviation: float | None = None  #: between two devices, where bits are not defined

    def to_json(self) -> dict[str, Any]:
        return {
            "family": self.case.family,
            "case": self.case.name,
            "devices": self.devices,
            "passed": not self.problems,
            "problems": self.problems,
            "bits": self.case.undefined or "defined",
            "deviation": self.deviation,
        }


Result = Outputs | str  # what a case wrote, or the error


def run_simulated(cases: Sequence[Case], seed: int) -> Iterator[Result]:
    """In this process: the simulator finds what hangs. Races are checked."""
    for case in cases:
        try:
            yield case.run(Target.simulated(seed=seed, num_sms=8, async_latency=64, check_races=True))
        except Exception as error:
            yield f"{type(error).__name__}: {error}"


def _gpu_target() -> Target:
    return Target.gpu()


def _work(pipe: Connection, make_target: Callable[[], Target], cases: Callable[[], list[Case]]) -> None:
    """The worker's loop: the index of a case in, its result out."""
    every, target = cases(), make_target()
    while True:
        try:
            index = pipe.recv()
        except EOFError:  # nobody asks any more
            return
        try:
            result: tuple[bool, Result] = (True, every[index].run(target))
        except Exception:
            result = (False, traceback.format_exc(limit=-1).strip())
        pipe.send_bytes(pickle.dumps(result))
        if not result[0]:
            return  # a failed kernel leaves its context unusable


def run_in_worker(
    chosen: Sequence[int],
    cases: Callable[[], list[Case]] = all_cases,
    make_target: Callable[[], Target] = _gpu_target,
    patience: float = PATIENCE,
    startup: float = STARTUP,
) -> Iterator[Result]:
    """Runs cases by their numbers in a process of its own, which is replaced when a case hangs or crashes: the others
    run all the same."""
    context = multiprocessing.get_context("spawn")
    process, pipe = None, None
    for index in chosen:
        fresh = process is None
        if fresh:
            pipe, other = context.Pipe()
            process = context.Process(target=_work, args=(other, make_target, cases), daemon=True)
            process.start()
            other.close()
        pipe.send(index)
        result: Result
        try:
            if pipe.poll(patience + (startup if fresh else 0.0)):
                finished, result = pickle.loads(pipe.recv_bytes())
            else:
                finished, result = False, f"no end after {patience:g} s: it hangs"
        except EOFError:
            process.join(5)
            finished, result = False, f"the process ended with code {process.exitcode}"
        if not finished:
            process.kill()
            process.join()
            process = None
        yield result
    if process is not None:
        process.kill()
        process.join()


def judge(case: Case, results: dict[str, Result], want: Outputs) -> Verdict:
    """Each result against the oracle, and two results against one another."""
    verdict = Verdict(case, list(results))
    for device, result in results.items():
        problem = result if isinstance(result, str) else difference(case, result, want)
        if problem:
            verdict.problems.append(f"{device}: {problem}")
    written = [r for r in results.values() if not isinstance(r, str)]
    if len(written) == 2:
        if case.undefined:
            verdict.deviation = largest_difference(*written)
        elif not verdict.problems and (apart := difference(case, written[1], written[0])):
            verdict.problems.append(f"{' and '.join(results)} differ: {apart}")
    return verdict


def run_suite(chosen: Sequence[int], *, gpu: bool, simulator: bool = True, seed: int = 0) -> Iterator[Verdict]:
    cases = all_cases()
    picked = [cases[i] for i in chosen]
    sources: dict[str, Iterator[Result]] = {}
    if simulator:
        sources["simulator"] = run_simulated(picked, seed)
    if gpu:
        sources["GPU"] = run_in_worker(chosen)
    for case in picked:
        yield judge(case, {name: next(results) for name, results in sources.items()}, case.want())


def summary(verdicts: Sequence[Verdict], seconds: float) -> str:
    """A line for each family as a Markdown table, the problems, and the deviations where bits are not defined."""
    families: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        families.setdefault(verdict.case.family, []).append(verdict)
    lines = ["| family | cases | failed | on | bits |", "|---|---:|---:|---|---|"]
    for family, members in families.items():
        failed = sum(bool(v.problems) for v in members)
        defined = "compared within a bound" if members[0].case.undefined else "compared"
        lines.append(f"| {family} | {len(members)} | {failed} | {', '.join(members[0].devices)} | {defined} |")
    for verdict in verdicts:
        lines += [f"FAILED {verdict.case.family}: {verdict.case.name}: {problem}" for problem in verdict.problems]
        if verdict.deviation is not None:
            name = f"{verdict.case.family}: {verdict.case.name}"
            lines.append(f"{name}: largest difference {verdict.deviation:.3g} ({verdict.case.undefined})")
    failed = sum(bool(v.problems) for v in verdicts)
    lines.append(f"{len(verdicts)} cases, {failed} failed, {seconds:.1f} s")
    return "\n".join(lines)


def timed(verdicts: Iterator[Verdict]) -> tuple[list[Verdict], float]:
    start = time.perf_counter()
    return list(verdicts), time.perf_counter() - start
