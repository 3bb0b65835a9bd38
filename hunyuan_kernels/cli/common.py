"""What the commands share: the console, and the choice of ops."""

import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn

import typer
from rich.console import Console

from hunyuan_kernels.testing.spec import OpSpec, all_specs

#: A terminal's width where there is one; wide enough for whole lines in a file.
console = Console(width=None if sys.stdout.isatty() else 220)


def refuse(what: str, got: str, allowed: Iterable[str]) -> NoReturn:
    """Says what was got and what is allowed, and ends with exit code 2."""
    allowed = list(allowed)
    near = difflib.get_close_matches(got, allowed, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    print(f"hunyuan-kernels: unknown {what} '{got}'; allowed: {', '.join(allowed)}.{hint}", file=sys.stderr)
    raise typer.Exit(2)


def chosen_specs(names: list[str] | None) -> list[OpSpec]:
    """The specs of these names, all when there are none."""
    specs = {spec.name: spec for spec in all_specs()}
    for name in names or []:
        if name not in specs:
            refuse("op", name, specs)
    return [specs[name] for name in names] if names else list(specs.values())
