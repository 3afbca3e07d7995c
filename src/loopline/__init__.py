"""Loopline: the whole training line of a language model, raw text to a released, served and re-trained model."""

import os

# Read once, when torch loads. Threads that spin at barriers lose most of a core as soon as anything else runs beside
# them: with one other training process on two cores, waiting passively was six times faster, alone equally fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
