"""The stages of labelling, one after the other, on a set that nobody else is labelling."""

from collections.abc import Callable, Sequence

import pandas as pd

from srgym.errors import Refusal
from srgym.files import locked, write_whole
from srgym.runners.judges.judge_set import JudgeSet
from srgym.runners.judges.labelling import STAGES, LabelSettings, annotate, described, label
from srgym.runners.judges.review import apply_review, review_rows, write_review

__all__ = ["check_stages", "label_set"]


def check_stages(stages: Sequence[str]) -> None:
    """Refuse a stage that there isn't."""
    strange = [stage for stage in stages if stage not in STAGES]
    if strange or not stages:
        raise Refusal(f"expected stages among {', '.join(STAGES)}, got {', '.join(map(str, strange)) or 'none'}")


def label_set(
    made: JudgeSet,
    settings: LabelSettings,
    stages: Sequence[str] = STAGES,
    tell: Callable[[str, float], None] = lambda stage, share: None,
) -> dict[str, tuple[int, int]]:
    """Run stages, in their own order whatever the order they are named in.

    Returns:
        Of each: how many answers, or rows, there are, and how many answers are missing.

    Raises:
        Unanswered: where a stage needs answers of one before it. Refusal: see `label`, and for an unknown stage.
    """
    check_stages(stages)
    done: dict[str, tuple[int, int]] = {}
    numbers: pd.DataFrame | None = None
    with locked(made.folder):
        for stage in (stage for stage in STAGES if stage in stages):
            if stage in ("anchor", "compare", "describe"):
                done[stage] = annotate(made, stage, settings, lambda share, stage=stage: tell(stage, share))  # type: ignore[misc]
            if stage in ("calibrate", "review") or (stage == "describe" and (made.folder / "labels.parquet").is_file()):
                numbers = label(made, settings) if numbers is None else numbers  # every image is decoded for them
                labels = described(made, numbers, settings)
                if stage == "review":
                    write_review(made.folder / "review.csv", review_rows(labels, settings.review, settings.conflict))
                done[stage] = _write(made, labels), done.get(stage, (0, 0))[1]
    return done


def _write(made: JudgeSet, labels: pd.DataFrame) -> int:
    kept = apply_review(made.folder / "review.csv", labels)
    write_whole(made.folder / "labels.parquet", kept.to_parquet(index=False))
    return len(kept)
