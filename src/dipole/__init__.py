"""Dipole: preference optimization for language models. Collect, audit, train, evaluate, iterate."""

__version__ = "0.1.0"
