"""The peak of this process's memory over one call, on Linux with the GNU C library."""

import ctypes


def reset() -> int:
    """Give unused memory back, or a call could hide in it, and forget the peak so far; the bytes in use now."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")
    return _read("VmRSS")


def peak() -> int:
    """The most bytes in use since the last reset."""
    return _read("VmHWM")


def _read(name: str) -> int:
    with open("/proc/self/status") as stream:
        return next(1024 * int(line.split()[1]) for line in stream if line.startswith(name))
