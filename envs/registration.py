def register_envs() -> None:
    """Register the environments with Gymnasium."""
