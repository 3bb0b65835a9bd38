"""The device code that the build embeds."""

import re
import struct
from collections.abc import Iterator

import pytest
from hunyuan_kernels._C import build_information

from hunyuan_kernels._ops import LIBRARY, ops


def stems() -> list[str]:
    return [stem for stem in ops.device_stems().split(",") if stem]


def test_build_information_says_whether_there_is_device_code() -> None:
    cuda = build_information()["cuda"]
    assert (cuda is None) == (stems() == [])
    if cuda is not None:
        assert re.fullmatch(r"nvcc \d+\.\d+\.\d+, sm_90a \([\w, ]+: sm_80 and newer\)", cuda)


@pytest.mark.parametrize("stem", stems())
def test_ptx_is_embedded_whole(stem: str) -> None:
    ptx = ops.device_ptx(stem)
    assert ".target sm_90a" in ptx
    assert ptx.count("{") == ptx.count("}")
    kernels = re.findall(r"\.entry (\w+)\(", ptx)
    assert kernels
    assert all(kernel.startswith(stem) for kernel in kernels)


PORTABLE = [stem for stem in ("dispatch", "quantize", "routing", "swiglu") if stem in stems()]


@pytest.mark.parametrize("stem", PORTABLE)
def test_portable_ptx_has_the_same_kernels(stem: str) -> None:
    kernels = [re.findall(r"\.entry (\w+)\(", ops.device_ptx(stem, portable)) for portable in (False, True)]
    assert kernels[0] == kernels[1]
    assert ".target sm_80" in ops.device_ptx(stem, True)


def fat_images() -> Iterator[set[tuple[str, int]]]:
    """What each fat image of the library holds: kind and architecture of its entries."""
    data, magic = LIBRARY.read_bytes(), struct.pack("<IHH", 0xBA55ED50, 1, 16)
    start = data.find(magic)
    while start >= 0:
        at, end = start + 16, start + 16 + struct.unpack_from("<Q", data, start + 8)[0]
        entries = set()
        while at < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
            entries.add(({1: "ptx", 2: "cubin"}[kind], struct.unpack_from("<I", data, at + 28)[0]))
            at += header + size
        yield entries
        start = data.find(magic, end)


def test_fat_images_serve_every_gpu_from_ampere_on() -> None:
    images = list(fat_images())
    assert len(images) == len(PORTABLE)
    for entries in images:
        assert entries >= {("cubin", 80), ("cubin", 90), ("ptx", 80), ("ptx", 90)}


def test_ptx_that_there_is_not() -> None:
    for stem in set(stems()) - set(PORTABLE):
        with pytest.raises(RuntimeError, match=f"portable is true, but '{stem}' needs sm_90a"):
            ops.device_ptx(stem, True)


def test_unknown_stem_names_what_there_is() -> None:
    with pytest.raises(RuntimeError, match=r"device_ptx: stem is 'nonsense', but this build has device code for: \w+"):
        ops.device_ptx("nonsense")
