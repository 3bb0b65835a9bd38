"""``python -m hunyuan_kernels`` and the script ``hunyuan-kernels``: the command line, if what it needs is there."""

import sys


def main() -> None:
    """Runs the command line, or says which package it lacks."""
    try:
        from hunyuan_kernels.cli.main import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"hunyuan-kernels: {error.name} is missing: pip install 'hunyuan-kernels[cli]'")
    app()


if __name__ == "__main__":
    main()
