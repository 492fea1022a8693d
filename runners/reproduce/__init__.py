"""Reproducing: the papers' claims in miniature, as cells of comparisons, each with a verdict."""
