"""Many trainings of one model, measured alike: reward against KL for every method and strength."""
