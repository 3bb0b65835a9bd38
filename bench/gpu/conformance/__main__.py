import argparse
import json
import sys
from pathlib import Path

import torch

from bench.gpu.conformance import __doc__ as documentation
from bench.gpu.conformance.suite import all_cases, run_suite, summary, timed
from bench.gpu.conformance.target import gpu_missing
from hunyuan_kernels.testing import machine


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu.conformance", description=documentation, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--family", action="append", help="families whose name contains this; several are allowed")
    parser.add_argument("--case", help="cases whose name contains this")
    parser.add_argument("--require-gpu", action="store_true", help="fail where there is no GPU")
    parser.add_argument("--simulator-only", action="store_true", help="leave the GPU alone")
    parser.add_argument("--seed", type=int, default=0, help="of the simulator's schedule")
    parser.add_argument("--json", type=Path, metavar="FILE", help="verdicts into a file")
    parser.add_argument("--list", action="store_true", help="print families and cases")
    options = parser.parse_args()

    cases = all_cases()
    chosen = [
        i
        for i, case in enumerate(cases)
        if (not options.family or any(f in case.family for f in options.family))
        and (not options.case or options.case in case.name)
    ]
    if not chosen:
        families = ", ".join(dict.fromkeys(case.family for case in cases))
        print(f"conformance: no case matches; families: {families}", file=sys.stderr)
        return 2
    if options.list:
        for i in chosen:
            print(f"{cases[i].family}: {cases[i].name}")
        return 0
    missing = "not asked for" if options.simulator_only else gpu_missing()
    if missing:
        print(f"GPU: not run: {missing}")
        if options.require_gpu:
            return 1
    else:
        print(f"GPU: {torch.cuda.get_device_name()}")
    verdicts, seconds = timed(run_suite(chosen, gpu=not missing, seed=options.seed))
    print(summary(verdicts, seconds))
    if options.json:
        described = {"machine": machine.describe(), "gpu": missing or torch.cuda.get_device_name(), "seconds": seconds}
        results = [verdict.to_json() for verdict in verdicts]
        options.json.write_text(json.dumps({**described, "results": results}, indent=1) + "\n", encoding="utf-8")
    return int(any(verdict.problems for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
