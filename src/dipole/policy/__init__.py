"""The language model: loading it, adapting it, its log-probabilities, its samples."""
