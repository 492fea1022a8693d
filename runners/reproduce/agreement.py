"""Whether training could tell two rewards apart: how far their group advantages agree."""

from torch import Tensor

__all__ = ["advantages"]


def advantages(of: Tensor, over: Tensor) -> Tensor:
    """The correlation of two rewards' advantages in each group.

    An advantage is a score less its group's mean, over its group's standard deviation, so two rewards whose advantages
    correlate by 1 teach an agent the same thing. A group in which a reward doesn't vary has none: NaN.

    Args:
        of, over: [G, K], scores of the same samples.

    Returns:
        [G] in [-1, 1].
    """
    a, b = (score.double() - score.double().mean(1, keepdim=True) for score in (of, over))
    norm = (a.square().sum(1) * b.square().sum(1)).sqrt()
    correlation: Tensor = (a * b).sum(1) / norm.where(norm > 0, norm.new_tensor(float("nan")))
    return correlation
