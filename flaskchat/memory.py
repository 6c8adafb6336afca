"""Memory that was freed, given back to the system.

The C library keeps what is freed below something that is still used: after a rush a worker may hold as much of it again
as it needs, for good. Linux with glibc; elsewhere nothing is done.
"""

from __future__ import annotations


def give_back() -> None:
    """Takes some 10 ms for 100 MB that are free, in which no other thread is given memory. See malloc_trim(3)."""
    try:
        import ctypes  # which not every Python has

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError):
        pass
