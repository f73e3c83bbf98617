"""Files mapped into memory, copy-on-write; with ctypes, which takes time to load, so it is imported at the first large file."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

_library = ctypes.CDLL(None, use_errno=True)
_library.mmap.restype = ctypes.c_void_p
_library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_privately(descriptor: int, size_bytes: int, path: str | os.PathLike[str]) -> memoryview:
    """Map a file copy-on-write. Not ``mmap.mmap``: before Python 3.13 it holds a descriptor until the last array is gone.

    Raises:
        OSError: it cannot be mapped.
    """
    address = _library.mmap(None, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(path))
    block = (ctypes.c_ubyte * size_bytes).from_address(address)
    # At exit arrays may outlive this module; the kernel takes the mapping back by itself.
    weakref.finalize(block, _library.munmap, address, size_bytes).atexit = False
    return memoryview(block).cast("B")
