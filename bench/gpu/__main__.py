import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from bench.gpu import __doc__ as documentation
from bench.gpu.conformance.target import gpu_missing
from bench.gpu.steps import plan, run_steps, table, to_json
from hunyuan_kernels.testing import machine

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=documentation, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out/gpu", metavar="DIR", help="folder of the results")
    parser.add_argument("--only", action="append", metavar="STEP", help="this step; several are allowed")
    parser.add_argument("--dry-run", action="store_true", help="print the steps")
    options = parser.parse_args()

    steps = plan()
    names = [step.name for step in steps]
    for name in options.only or []:
        if name not in names:
            print(f"bench.gpu: unknown step '{name}'; allowed: {', '.join(names)}", file=sys.stderr)
            return 2
    steps = [step for step in steps if not options.only or step.name in options.only]
    if options.dry_run:
        for step in steps:
            print(f"{step.name} (at most {step.limit:g} s): {shlex.join(step.command)}")
        return 0
    if missing := gpu_missing():
        print(f"bench.gpu: no Hopper GPU to run on: {missing}", file=sys.stderr)
        return 2

    results = run_steps(steps, options.out.resolve(), ROOT, lambda text: print(text, flush=True))
    described = {**machine.describe(), "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    options.out.joinpath("results.json").write_text(
        json.dumps({"machine": described, "steps": to_json(results)}, indent=1) + "\n", encoding="utf-8"
    )
    text = f"{described['gpu']}, torch {described['torch']}, {described['commit']}\n\n{table(results)}"
    options.out.joinpath("table.md").write_text(text, encoding="utf-8")
    print(text)
    return int(not all(result.passed for result in results))


if __name__ == "__main__":
    sys.exit(main())
