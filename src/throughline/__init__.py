"""Throughline: one training line for language models, from raw text to a released, served and re-trained model."""

__version__ = "0.1.0"
