"""What this machine has and what this process uses."""

from __future__ import annotations

import ctypes
import os
import resource
import sys


def cpu_count() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Current resident size of this process (its peak where the system does not tell)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Highest resident size of this process so far."""
    # Not ru_maxrss where there is a choice: a process inherits that from the one that started it.
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            found = next((line for line in file if line.startswith("VmHWM:")), None)
    except OSError:
        found = None
    if found is not None:
        return int(found.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gpu_count() -> int:
    """NVIDIA GPUs that the driver offers to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
