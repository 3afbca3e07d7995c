"""One thread per test process: on tiny models a second one only waits, and waits busily when the machine is shared."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
