"""The lock of those who time kernels and of those who would disturb them.

Pinning memory of the host, nearly a second per GB, takes a lock of the driver's (a comment of torch's
CachingHostAllocator.cpp): a launch that waits for it makes its kernel seem slow.
"""

import threading

TIMING = threading.RLock()
