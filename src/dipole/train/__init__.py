"""The loop: from relations and log-probabilities to optimizer steps and checkpoints."""
