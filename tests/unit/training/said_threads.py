"""A rank that says how many threads it may start: python -m tests.unit.training.said_threads."""

import os
import sys

sys.stdout.write(f"threads {os.environ['OMP_NUM_THREADS']}\n")
