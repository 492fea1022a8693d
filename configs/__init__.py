"""The settings of a run, as Hydra groups: YAML only."""
