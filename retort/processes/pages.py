"""The pages of files, such as libraries, that a process has in its memory.

A fork begins without most of them, although it has the same libraries: the kernel maps each again
when it is read (`vma_needs_copy` in its mm/memory.c). So the resident memory of a fork is too small
by what its libraries were read for before.
"""

import ctypes
import errno
import os
import re
from pathlib import Path

# Since Linux 5.14; and the bit of a page in /proc/PID/pagemap that says that it is there.
MADV_POPULATE_READ, PRESENT = 22, 63
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PAGEMAP_BYTES = 8
Range = tuple[int, int]  # an address, and a number of bytes


def of_files() -> list[Range]:
    """Returns where pages of files are in the memory of this process. Those that are not read for
    long may leave it.

    Raises `OSError` where the system does not tell, or no fork of this process could have them.
    """
    found: list[Range] = []
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        for line in Path("/proc/self/maps").read_bytes().splitlines():
            where, allowed, _, _, inode, *_ = line.split()
            if inode == b"0" or allowed[:1] != b"r":
                continue
            first, end = (int(address, 16) // PAGE_BYTES for address in where.split(b"-"))
            size = PAGEMAP_BYTES * (end - first)
            entries = memoryview(os.pread(pagemap, size, PAGEMAP_BYTES * first)).cast("Q")
            for run in re.finditer(b"\1+", bytes(entry >> PRESENT for entry in entries)):
                number = run.end() - run.start()
                found.append((PAGE_BYTES * (first + run.start()), PAGE_BYTES * number))
    finally:
        os.close(pagemap)
    if not found or populate(found[:1]):
        raise OSError(errno.ENOSYS, "pages cannot be mapped before they are read")
    return found


def populate(ranges: list[Range]) -> int:
    """Maps pages into this process as if it had read them; returns in how many ranges not."""
    madvise = ctypes.CDLL(None).madvise
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    return sum(madvise(pointer(a), size(n), MADV_POPULATE_READ) != 0 for a, n in ranges)
