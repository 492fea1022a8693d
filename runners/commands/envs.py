"""srgym envs [env=NAME env.key=value ...]: list the sources of contexts and the Gymnasium environments.

srgym envs                                              what there is
srgym envs env=photographs env.split=test               open one and count its contexts
srgym envs env=paired_folders env.lr=LR env.hr=HR       the same for folders of your own
"""

from typing import Any

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    if arguments:
        from srgym.runners.run.config import compose, resolve

        return _open(dict(resolve(*compose(arguments)).stages[0].sections["env"]))
    from srgym.envs import sources

    rows = sources.listing()
    name_width, origin_width = (max(len(row[key]) for row in rows) for key in ("name", "origin"))
    print("sources of contexts (env=NAME):")
    for row in rows:
        print(f"  {row['name']:<{name_width}}  {row['origin']:<{origin_width}}  {row['doc']}".rstrip())
    print("\nGymnasium environments (gymnasium.make, after import srgym):")
    for name in _registered():
        print(f"  {name}")
    return 0


def _registered() -> list[str]:
    import gymnasium

    import srgym  # noqa: F401 - registers them

    return sorted(name for name, spec in gymnasium.registry.items() if spec.namespace == "srgym")


def _open(env: dict[str, Any]) -> int:
    from srgym.envs import sources

    for key in ("prompts", "descriptions"):  # the task's own
        env.pop(key, None)
    source = sources.make(env)
    size = "of several sizes" if source.size is None else f"of {source.size[0]} x {source.size[1]} pixels"
    has = ", ".join(sorted(source.provides))
    print(f"{env['name']}: {len(source):,} contexts, LR {size}, x{source.scale}, with {has}")
    return 0
