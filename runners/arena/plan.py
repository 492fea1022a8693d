"""How many photographs and raters a study needs."""

import itertools
from collections.abc import Sequence

import numpy as np

from srgym.errors import Refusal
from srgym.runners.arena.analysis import Ballots, read_ballots
from srgym.runners.arena.study import open_study
from srgym.runners.measure.statistics import Components, detection_power, units_needed, variance_components

__all__ = ["plan_text", "spreads", "vote_components"]


def vote_components(share: float, photograph_sd: float, rater_sd: float) -> Components:
    """Variances of one vote, won or lost, that is won with a probability of `share`.

    Args:
        photograph_sd: of the share over photographs. rater_sd: of the share over raters.

    Raises:
        Refusal: for spreads that no share of votes can have.
    """
    whole, known = share * (1 - share), photograph_sd**2 + rater_sd**2
    if known >= whole:
        raise Refusal(
            f"expected spreads whose squares sum to less than share (1 - share) = {whole:.3f}, got {known:.3f}"
        )
    return Components(rater_sd**2, photograph_sd**2, whole - known)


def spreads(ballots: Ballots) -> tuple[float, float]:
    """The standard deviations of the share of votes over photographs and over raters, means over pairs of methods.

    Raises:
        Refusal: for fewer than 2 raters or photographs that all voted on.
    """
    found = []
    for i, j in itertools.combinations(range(len(ballots.methods)), 2):
        won, lost = ballots.wins[:, :, i, j], ballots.wins[:, :, j, i]
        met = won + lost
        shares = np.divide(won, met, out=np.full_like(won, np.nan), where=met > 0)
        whole = np.isfinite(shares).all(0)
        if len(ballots.raters) < 2 or whole.sum() < 2:
            raise Refusal("expected a pilot of at least 2 raters and 2 photographs on which all of them voted")
        found.append(variance_components(shares[:, whole]))
    photograph, rater = (np.mean([getattr(c, key) for c in found]) for key in ("photograph", "seed"))
    return float(np.sqrt(photograph)), float(np.sqrt(rater))


def plan_text(
    share: float,
    raters: Sequence[int],
    photographs: Sequence[int],
    photograph_sd: float,
    rater_sd: float,
    power: float,
    study: str | None,
) -> str:
    """A table of the power of studies to tell a share of preferences from one half, and the least that reach `power`.

    Args:
        share: of the votes that the better of two methods gets. power: that a study should have.
        study: a pilot, whose spreads are taken; None: `photograph_sd` and `rater_sd`.
    """
    if share == 0.5:
        raise Refusal("share=0.5 is no difference, and no study shows it: expected another share")
    if study is not None:
        photograph_sd, rater_sd = spreads(read_ballots(open_study(study)))
    components = vote_components(share, photograph_sd, rater_sd)
    lines = [
        f"Power of a 95% interval to tell a share of {share:g} from one half, each rater voting once a photograph.",
        f"Spread of the share over photographs {photograph_sd:.2f}, over raters {rater_sd:.2f}"
        + (f" (of {study})." if study else " (assumed: measure them in a pilot, study=STUDY)."),
        "",
        "raters   " + "".join(f"{count:>8}" for count in photographs) + "  photographs",
    ]
    effect = share - 0.5
    for count in raters:
        cells = [detection_power(effect, components, count, p) if count != 2 and p > 1 else np.nan for p in photographs]
        lines.append(f"{count:<9}" + "".join("       -" if np.isnan(cell) else f"{cell:8.2f}" for cell in cells))
    lines.append("")
    for count in (count for count in raters if count != 2):
        needed, _ = units_needed(effect, components, count, 2, power=power)
        lines.append(f"{count} raters: {needed or 'more than 1000'} photographs for a power of {power:g}")
    lines += ["", "Two raters show a direction and no interval; of one rater the interval is over photographs alone."]
    return "\n".join(lines)
