"""What people install: a wheel that needs torch alone, and a source archive that holds everything to build it."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys, torch, hunyuan_kernels as hk
assert not [m for m in ("typer", "rich", "matplotlib", "pytest", "pybind11") if m in sys.modules]
x, gate = torch.randn(40, 64).bfloat16(), torch.randn(8, 64)
experts = hk.Experts(torch.randn(8, 32, 64).bfloat16(), torch.randn(8, 64, 16).bfloat16())
y = hk.moe(x, gate, experts, capacity=6, seed=0)
assert y.shape == x.shape and y.isfinite().all()
print(hk.__file__)
"""


def setup(*arguments, work):
    """Runs setup.py with everything that it writes in ``work``; compiled files are reused where they are current."""
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", work, "build", "--build-base", work]
    environment = os.environ | {"HUNYUAN_KERNELS_BUILD_DIR": str(ROOT / "build" / sysconfig.get_platform())}
    done = subprocess.run(
        [str(part) for part in (*command, *arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def distributions_of(name, found=None):
    """The installed distribution ``name`` and those it requires, without extras."""
    found = {} if found is None else found
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return found  # for another platform or Python
    if name not in found:
        found[name] = distribution
        for requirement in distribution.requires or []:
            if "extra ==" not in requirement:
                distributions_of(re.match(r"[\w.-]+", requirement)[0], found)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    work = tmp_path_factory.mktemp("wheel")
    setup("bdist_wheel", "--dist-dir", work / "dist", work=work)
    (path,) = (work / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A virtual environment that holds torch, what torch requires, and the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in distributions_of("torch").values():
        top = {Path(file).parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
        for entry in top:
            if not (packages / entry).exists():
                (packages / entry).symlink_to(distribution.locate_file(entry))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    return folder


def run(*command):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(command, cwd="/", env=clean, capture_output=True, text=True)


def test_wheel_works_with_torch_alone(environment):
    done = run(environment / "bin/python", "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert str(environment) in done.stdout


def test_command_line_says_what_it_lacks(environment):
    for command in ([environment / "bin/hunyuan-kernels"], [environment / "bin/python", "-m", "hunyuan_kernels"]):
        done = run(*command, "doctor")
        assert done.returncode == 1
        # torch may warn first, of a numpy that it can do without
        assert re.search(
            r"^hunyuan-kernels: (typer|rich) is missing: pip install 'hunyuan-kernels\[cli\]'\n\Z", done.stderr, re.M
        )
        assert "Traceback" not in done.stderr


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "hunyuan_kernels/libhunyuan_kernels.so" in names
    assert [n for n in names if re.match(r"hunyuan_kernels/_C\.", n)]
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"hunyuan_kernels"}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "hunyuan_kernels").rglob("*.py")}
    assert {n for n in names if n.endswith(".py")} == sources


def test_library_needs_no_python_and_no_cuda():
    headers = subprocess.run(
        ["readelf", "-d", ROOT / "hunyuan_kernels/libhunyuan_kernels.so"], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", headers)
    assert needed
    assert not [n for n in needed if re.search(r"python|cuda|nvrtc|c10|torch_python", n)]
    assert "RPATH" not in headers
    assert "RUNPATH" not in headers


def test_source_archive_builds_a_wheel(tmp_path):
    """Only its contents are checked: compiling them again takes minutes."""
    setup("sdist", "--dist-dir", tmp_path / "dist", work=tmp_path)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "csrc", "hunyuan_kernels", "CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode != 0:
        pytest.skip(f"not a git checkout, so there is no list of files to compare with: {tracked.stderr.strip()}")
    assert set(tracked.stdout.split()) - held == set()
