"""Mutants of our kernels that nothing catches because nothing is wrong with them, each with its reason.

``hunyuan-kernels check OP --simulate --mutate`` fails on survivors that are not listed here, and on entries whose
mutants it catches; ``docs/kernels/<stem>.md`` repeats the reasons of a stem.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hunyuan_kernels.testing.mutation import Mutant


@dataclass(frozen=True)
class Harmless:
    """Mutants of kernels that are right without an instruction."""

    kernels: str  #: a regular expression that matches the whole name
    instruction: str  #: a regular expression that matches the whole instruction, white space as single spaces
    count: int  #: how many of the instructions that match are harmless, in each kernel that executes any
    reason: str

    def matches(self, mutant: Mutant) -> bool:
        return bool(re.fullmatch(self.kernels, mutant.kernel) and re.fullmatch(self.instruction, mutant.instruction))


HARMLESS = (
    Harmless(
        r".*",
        r"griddepcontrol\.launch_dependents;",
        1,
        "the next launch of the stream begins later; it waits for this one anyway before it touches memory",
    ),
    Harmless(
        r"(grouped_gemm_few_rows|fp8_gemm_weight_only).*",
        r"bar\.warp\.sync -1;",
        1,
        "before the cluster's barrier, which the simulator takes to bring a warp together by itself",
    ),
    Harmless(
        r"grouped_gemm_.*_multicast",
        r"bar\.warp\.sync -1;",
        2,
        "before the cluster's two barriers, which the simulator takes to bring a warp together by themselves",
    ),
    Harmless(
        r"grouped_gemm_wgrad.*",
        r"wgmma\.fence\.sync\.aligned;",
        1,
        "at the end of a group: products of the same shape, each waited for, follow each other without other accesses",
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What the mutants of some kernels say about kernels, checks and explanations."""

    reasons: dict[Mutant, str]  #: of the survivors that are explained
    unexplained: list[Mutant]
    stale: list[str]  #: explanations that do not hold, as texts


def judge(mutants: Sequence[Mutant], harmless: Iterable[Harmless] = HARMLESS) -> Verdict:
    """Survivors beside their explanations. An explanation is stale for a kernel that executes what it speaks of, when
    other than ``count`` of those mutants survive."""
    survivors = [mutant for mutant in mutants if not mutant.caught]
    reasons: dict[Mutant, str] = {}
    stale = []
    for entry in harmless:
        for kernel in sorted({mutant.kernel for mutant in mutants if entry.matches(mutant)}):
            left = [m for m in survivors if m.kernel == kernel and entry.matches(m)]
            if len(left) == entry.count:
                reasons.update(dict.fromkeys(left, entry.reason))
            else:
                stale.append(
                    f"{kernel}: {entry.count} of the mutants without {entry.instruction} are explained as harmless "
                    f"({entry.reason}), {len(left)} survive"
                )
    return Verdict(reasons, [mutant for mutant in survivors if mutant not in reasons], stale)
