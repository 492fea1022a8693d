"""Measuring: methods on contexts by metrics, intervals over what came out, the papers' own tables."""
