"""srgym describe env=... out=FILE [key=value ...]: have a served multimodal model describe images, in three rounds.

srgym describe env=hr_folder env.path=IMAGES engine=http://127.0.0.1:8001 out=descriptions.jsonl

What it writes is what env.descriptions=FILE reads: captions for the documents of a policy that writes, and tags for the
reward of its understanding. Stopped, it goes on where it was.

  engine    a server's address (srgym serve judge --model PATH); default http://127.0.0.1:8001
  out       the file, JSON lines; what it holds isn't asked again
  prompts   a JSON file of questions in place of ours: rough, middle, final, tags
  batch     images in flight at once; default 8
  limit     at most so many images
"""

import sys

from srgym.errors import Refusal
from srgym.runners.run.overrides import take_values

__all__ = ["run"]

_DEFAULTS = {"engine": "http://127.0.0.1:8001", "out": None, "prompts": None, "batch": 8, "limit": None}
_KINDS = {"engine": str, "out": str | None, "prompts": str | None, "batch": int, "limit": int | None}


def run(arguments: list[str]) -> int:
    from srgym.runners.run.config import compose, resolve

    own, rest = take_values(arguments, _DEFAULTS, ("env",), _KINDS)
    if own["out"] is None:
        raise Refusal("expected out=FILE: where the descriptions go")
    env = dict(resolve(*compose(rest)).stages[0].sections["env"])
    for key in ("prompts", "descriptions"):  # the task's own
        env.pop(key, None)
    from srgym.envs import sources
    from srgym.envs.describing import describe_source, read_prompts
    from srgym.rewards.serving.engines import make_engine

    prompts, source = read_prompts(own["prompts"]), sources.make(env)
    engine = make_engine(own["engine"], model="judge")
    written, without = describe_source(
        source, engine, own["out"], prompts=prompts, batch=own["batch"], limit=own["limit"], progress=_progress
    )
    print(f"done: {written} descriptions written to {own['out']}")
    if without:
        print(f"{without} images had no usable answer; the same command asks for them again")
    return 0


def _progress(share: float) -> None:
    if sys.stderr.isatty():
        print(f"\rdescribing: {share:4.0%}", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)
