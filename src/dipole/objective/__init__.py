"""What is minimised: pure functions of log-probabilities, one value a relation."""
