"""The two sides of ``vs_trl.py``, what they are given, and what is made of their measurements."""
