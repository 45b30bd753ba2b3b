"""Dipole: preference optimization for language models. Collect, audit, train, evaluate, iterate."""
