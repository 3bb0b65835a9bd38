"""What a user reads when the built library is missing or older than the Python files beside it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hunyuan_kernels
from hunyuan_kernels._ops import qualified

PACKAGE = Path(hunyuan_kernels.__file__).parent


def test_an_operator_that_the_library_lacks_says_to_build_again():
    with pytest.raises(ImportError, match=r"has no operator 'no_such_op': .* Build again \(\./dev setup"):
        qualified("no_such_op")


def test_a_package_without_its_library_says_how_to_get_it(tmp_path):
    shutil.copytree(
        PACKAGE, tmp_path / "hunyuan_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__", "model", "demo")
    )
    done = subprocess.run(
        [sys.executable, "-c", "import hunyuan_kernels"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "libhunyuan_kernels.so is missing: the package is not built. From a clone run ./dev setup" in done.stderr
