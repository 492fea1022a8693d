"""What people preferred, for others: pairs to train on, and annotations to test judges with."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srgym.envs.images import read_image, to_float
from srgym.envs.preferences import Preference, write_preferences
from srgym.errors import Refusal
from srgym.files import write_whole
from srgym.runners.arena.analysis import Ballots, read_ballots
from srgym.runners.arena.study import Study
from srgym.sealed import file_hash

__all__ = ["export_annotations", "export_pairs"]


def export_pairs(study: Study, out: Path, margin: float = 0.0) -> str:
    """Write the pairs that most raters agree on, as `srgym.envs.preferences` reads them.

    Args:
        out: a Parquet file by its name, else a folder.
        margin: the least lead of the winner's share of votes over the loser's; a draw is never a pair.

    Returns:
        How many, in words.
    """
    pairs = list(_pairs(study, read_ballots(study), margin))
    if not pairs:
        raise Refusal(f"{study.folder}: expected a pair of images of which one leads by {margin:g} or more, got none")
    count = write_preferences(out, pairs)
    return f"{out}: {count} pairs, for srgym train env=preferences env.path={out} agent=dpo agent.pairs=offline"


def _pairs(study: Study, ballots: Ballots, margin: float) -> Iterator[Preference]:
    for context, name in enumerate(study.contexts):
        for one, other in itertools.permutations(study.methods, 2):
            wins, losses = (ballots.won.get(key, 0.0) for key in ((name, one, other), (name, other, one)))
            lead = (wins - losses) / (wins + losses) if wins + losses else 0.0
            if lead > 0 and lead >= margin:
                lr, win, lose = (to_float(read_image(study.image(what, context))) for what in ("lr", one, other))
                yield Preference(name, lr, win, lose, gap=lead)


def export_annotations(study: Study, out: Path) -> str:
    """Write one JSON object a line and vote, repeats too, of the raters that are counted: who (`rater`), on what
    (`id`), whether it is a `vote` or a `repeat` (`kind`), the SHA-256 of the PNG of the input (`lr`) and of each image
    by its method, from left to right (`images`), the method that was chosen or null for a tie (`choice`), and how long
    it took (`seconds`). The hashes are those of a judge's set whose candidates are the study's files.
    """
    lines = [json.dumps(row, ensure_ascii=False) for row in _annotations(study, read_ballots(study))]
    write_whole(out, ("\n".join(lines) + "\n").encode())
    return f"{out}: {len(lines)} annotations"


def _annotations(study: Study, ballots: Ballots) -> Iterator[dict[str, Any]]:
    places = {name: i for i, name in enumerate(study.contexts)}
    for vote in ballots.votes:
        context = places[vote["id"]]
        images = {name: file_hash(study.image(name, context)) for name in vote["shown"]}
        kept = {key: vote[key] for key in ("rater", "id", "kind", "choice", "seconds")}
        yield {**kept, "lr": file_hash(study.image("lr", context)), "images": images}
