"""The device code that the build embeds."""

import re

import pytest
from hunyuan_kernels._C import build_information

from hunyuan_kernels._ops import ops


def stems() -> list[str]:
    return [stem for stem in ops.device_stems().split(",") if stem]


def test_build_information_says_whether_there_is_device_code() -> None:
    cuda = build_information()["cuda"]
    assert (cuda is None) == (stems() == [])
    if cuda is not None:
        assert re.fullmatch(r"nvcc \d+\.\d+\.\d+, sm_90a", cuda)


@pytest.mark.parametrize("stem", stems())
def test_ptx_is_embedded_whole(stem: str) -> None:
    ptx = ops.device_ptx(stem)
    assert ".target sm_90a" in ptx
    assert ptx.count("{") == ptx.count("}")
    kernels = re.findall(r"\.entry (\w+)\(", ptx)
    assert kernels
    assert all(kernel.startswith(stem) for kernel in kernels)


def test_unknown_stem_names_what_there_is() -> None:
    with pytest.raises(RuntimeError, match=r"device_ptx: stem is 'nonsense', but this build has device code for: \w+"):
        ops.device_ptx("nonsense")
