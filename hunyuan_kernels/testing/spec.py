"""What tests, benchmarks and the command line know of an op: an :class:`OpSpec` in ``testing/specs/<stem>.py``."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from hunyuan_kernels.testing.compare import Comparison

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One call: a label for people, and a function from a seed to the op's keyword arguments."""

    label: str
    make: Callable[[int], Arguments]
    sms: int = 8  #: of the simulated GPU on which mutants run it
    within: Callable[[], AbstractContextManager[None]] = nullcontext  #: in which mutants run it: options of plans


@dataclass(frozen=True)
class Work:
    """What the shapes demand: each input read once and each output written once."""

    flops: float
    bytes: float
    tokens: float = 0.0  #: of a model that the call makes or takes; 0 for ops


@dataclass(frozen=True)
class OpSpec:
    """An op with its specification, its cases and what people use today.

    ``function`` and ``reference`` take the same keyword arguments. ``compare`` gets them, what ``function`` returned
    and what ``reference`` returned, and judges every output (one :class:`Comparison` each). ``cases`` are small and
    awkward, for correctness; ``bench_cases(preset)`` are real sizes, ``preset`` being one of :data:`PRESETS` or None
    for sizes that suit any machine: the first of those is small enough for a report on all ops in a minute.
    ``baselines`` map a name to a function with the same arguments: what a good PyTorch user would write today; one
    raises NotImplementedError for a case that PyTorch has nothing for. Names that start with ``naive`` or ``ours`` are
    shown but not judged by. ``peers`` are the same from other libraries, by provider (``testing/providers.py``).
    ``sample`` cuts a call and its result down to some columns or rows, for sizes whose reference would take minutes.
    ``on_cuda`` says whether the CUDA kernels take a case that the CPU takes: they refuse some dtypes.
    ``plan`` gives what the host decides for a case on a GPU with so many SMs, as an object that prints itself.
    """

    name: str
    stem: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    compare: Callable[[Arguments, Any, Any], list[Comparison]]
    cases: Callable[[], list[Case]]
    bench_cases: Callable[[str | None], list[Case]]
    work: Callable[[Arguments], Work]
    baselines: dict[str, Callable[..., Any]] = field(default_factory=dict)
    peers: dict[str, dict[str, Callable[..., Any]]] = field(default_factory=dict)
    sample: Callable[[Arguments, Any], tuple[Arguments, Any]] | None = None
    on_cuda: Callable[[Arguments], bool] = lambda arguments: True
    plan: Callable[[Arguments, int], object] | None = None

    def compared_with(self, against: Iterable[str]) -> dict[str, Callable[..., Any]]:
        """The baselines of these providers; those of torch are :attr:`baselines`."""
        return {
            name: function
            for provider in against
            for name, function in (self.baselines if provider == "torch" else self.peers.get(provider, {})).items()
        }

    def cuda_cases(self) -> list[Case]:
        """The cases that the CUDA kernels take."""
        return [case for case in self.cases() if self.on_cuda(case.make(0))]


def verify(spec: OpSpec, case: Case, seed: int = 0, *, sampled: bool = False) -> list[Comparison]:
    """Runs one case and compares every output with the reference, or with ``sampled`` the spec's sample of them.

    The op gets inputs of its own, so that what it changes in place cannot reach the reference.
    """
    got = spec.function(**case.make(seed))
    arguments = case.make(seed)
    if sampled and spec.sample is not None:
        arguments, got = spec.sample(arguments, got)
    return spec.compare(arguments, got, spec.reference(**arguments))


PRESETS = ("hunyuan-large", "hunyuan-a13b")


def all_specs() -> Iterator[OpSpec]:
    """Every op of the package, stem by stem in alphabetical order."""
    from hunyuan_kernels.testing import specs

    for module in sorted(m.name for m in pkgutil.iter_modules(specs.__path__)):
        yield from importlib.import_module(f"{specs.__name__}.{module}").SPECS
