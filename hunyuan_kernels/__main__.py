"""``python -m hunyuan_kernels``: the command line."""

import sys

try:
    from hunyuan_kernels.cli.main import main
except ModuleNotFoundError as error:
    if error.name not in ("typer", "rich"):
        raise
    sys.exit(f"hunyuan-kernels: {error.name} is missing: pip install 'hunyuan-kernels[cli]'")

main()
