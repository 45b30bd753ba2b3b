"""The page where people compare answers: what it shows, who may see it, and its routes."""
