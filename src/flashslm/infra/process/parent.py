"""A step's process ends with the launcher that started it, however that ends."""

import ctypes
import os
import signal
import sys

PARENT_PID = "FLASHSLM_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel SIGKILL this process when its parent ends (Linux only; elsewhere nothing happens).

    The kernel watches the thread that started this process, so that thread must wait for it. A parent that ended
    before this call is noticed by its pid, which the parent left in $FLASHSLM_PARENT_PID; without that variable
    nothing was asked for, and nothing happens. The variable is removed: it is not about this process's children.
    """
    expected = os.environ.pop(PARENT_PID, "")
    if not expected or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(expected):
        os.kill(os.getpid(), signal.SIGKILL)
