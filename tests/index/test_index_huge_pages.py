"""Large memory comes to lie in huge pages with all that is in it; what was there before stays as it is."""

import ctypes
import mmap
import platform
import re
import sys
from pathlib import Path

import pytest

from twotower.index.huge_pages import LEAST, PAGE, in_huge_pages

SMAPS = Path("/proc/self/smaps")
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_linux = pytest.mark.skipif(
    sys.platform != "linux"
    or tuple(map(int, platform.release().split(".")[:2])) < (6, 1)
    or not SETTING.is_file()
    or "[never]" in SETTING.read_text(),
    reason="Linux 6.1 can do it, unless it is told not to",
)


def huge_bytes(start: int) -> int:
    """What of the mapping around an address lies in huge pages."""
    for told in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) .*?^AnonHugePages: +(\d+) kB", SMAPS.read_text(), re.M | re.S):
        if int(told[1], 16) <= start < int(told[2], 16):
            return 1024 * int(told[3])
    raise AssertionError(f"{start:#x} is not mapped")


def taken(size: int) -> tuple[mmap.mmap, int]:
    """Memory of the process's own with something in it, and where it begins."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for place in range(0, size, 4096):
        memory[place] = place // 4096 % 251
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


@needs_linux
def test_memory_from_before_stays_as_it_is() -> None:
    memory, start = taken(4 * LEAST)
    before = huge_bytes(start)
    with in_huge_pages():
        pass
    assert huge_bytes(start) == before
    assert len(memory) == 4 * LEAST


@needs_linux
def test_large_memory_lies_in_huge_pages_and_holds_what_it_held() -> None:
    with in_huge_pages():
        memory, start = taken(4 * LEAST)
    assert huge_bytes(start) >= 4 * LEAST - 2 * PAGE
    assert all(memory[place] == place // 4096 % 251 for place in range(0, 4 * LEAST, 4096))
