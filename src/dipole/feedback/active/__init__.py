"""What to have judged next: strategies, batches with known probabilities, and what they would have saved.

``strategies`` and ``choose`` are functions of arrays; ``pool`` makes arrays of groups and groups of what was chosen;
``simulate`` replays all of it on data whose judgments are known.
"""
