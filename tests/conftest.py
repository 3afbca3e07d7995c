"""One thread per test process, and no time limit on a property's examples.

On tiny models a second thread only waits, and waits busily when the machine is shared. There a slow example says
nothing about the property.
"""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
