"""What people preferred, for others: pairs to train on, and annotations to test judges with."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from srgym.envs.images import read_image, to_float
from srgym.envs.preferences import Preference, write_preferences
from srgym.errors import Refusal
from srgym.files import write_whole
from srgym.runners.arena.analysis import Ballots, read_ballots
from srgym.runners.arena.study import Study

__all__ = ["EXPORTS", "export_annotations", "export_pairs"]


def export_pairs(study: Study, out: Path, margin: float = 0.0) -> str:
    """Write the pairs that most raters agree on, as `srgym.envs.preferences` reads them.

    Args:
        out: a Parquet file by its name, else a folder.
        margin: the least lead of the winner's share of votes over the loser's; a draw is never a pair.

    Returns:
        How many, in words.
    """
    count = write_preferences(out, _pairs(study, read_ballots(study), margin))
    if not count:
        raise Refusal(f"{study.folder}: expected a pair with a lead above {margin:g}, got none")
    return f"{out}: {count} pairs, for srgym train env=preferences env.path={out} agent=dpo agent.pairs=offline"


def _pairs(study: Study, ballots: Ballots, margin: float) -> Iterator[Preference]:
    for context, name in enumerate(study.contexts):
        for one, other in itertools.permutations(study.methods, 2):
            wins, losses = (ballots.won.get(key, 0.0) for key in ((name, one, other), (name, other, one)))
            lead = (wins - losses) / (wins + losses) if wins + losses else 0.0
            if lead > 0 and lead >= margin:
                lr, win, lose = (to_float(read_image(study.image(what, context))) for what in ("lr", one, other))
                yield Preference(name, lr, win, lose, gap=lead)


def export_annotations(study: Study, out: Path, margin: float = 0.0) -> str:
    """Write one JSON object a vote, with the files that were compared."""
    lines = [json.dumps(row, ensure_ascii=False) for row in _annotations(study, read_ballots(study))]
    write_whole(out, ("\n".join(lines) + "\n").encode())
    return f"{out}: {len(lines)} annotations"


def _annotations(study: Study, ballots: Ballots) -> Iterator[Mapping[str, object]]:
    places = {name: i for i, name in enumerate(study.contexts)}
    for vote in ballots.votes:
        files = {name: str(study.image(name, places[vote["id"]]).resolve()) for name in vote["shown"]}
        yield {"rater": vote["rater"], "id": vote["id"], "kind": vote["kind"], "images": files,
               "lr": str(study.image("lr", places[vote["id"]]).resolve()), "choice": vote["choice"]}  # fmt: skip


EXPORTS: Mapping[str, Callable[[Study, Path, float], str]] = {"pairs": export_pairs, "annotations": export_annotations}
