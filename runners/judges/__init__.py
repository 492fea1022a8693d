"""Making judges: their data, training, measuring and distilling."""
