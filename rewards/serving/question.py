"""A question to a vision-language model, and its reply: the same for every engine that answers."""

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from srgym.errors import Refusal
from srgym.files import to_png

__all__ = ["BadAnswer", "Question", "Reply", "encode_images"]


class BadAnswer(Refusal):
    """A model's answer holds no usable score. It's asked again, or the sample is invalid: a score is never made up."""


@dataclass(frozen=True)
class Question:
    """One user turn about some images.

    Attributes:
        text: what is asked.
        images: PNG files, shown before the text in this order.
        seed: of the sampling; unused at temperature 0.
        max_tokens: the longest answer.
        temperature: of the sampling; 0 takes the likeliest token.
        stop: decoding ends before any of these strings.
        pattern: a regular expression (literals, groups, digits and digit ranges) that the whole answer is made to
            match, by engines that can constrain their decoding.
        choices: the answer is one of these single tokens, and the reply carries the log-probability of each.
    """

    text: str
    images: tuple[bytes, ...] = ()
    seed: int = 0
    max_tokens: int = 256
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    pattern: str | None = None
    choices: tuple[str, ...] = ()

    def again(self, attempt: int, *, hotter: bool) -> "Question":
        """The same question with another seed; `hotter` leaves temperature 0, which would give the same bad answer."""
        digest = hashlib.blake2b(f"{self.seed}:{attempt}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "big") & 0x7FFFFFFF
        return replace(self, seed=seed, temperature=max(self.temperature, 0.7) if hotter else self.temperature)

    def messages(self) -> list[dict[str, Any]]:
        """The question as OpenAI chat messages, its images as data URLs."""
        urls = ("data:image/png;base64," + base64.b64encode(image).decode("ascii") for image in self.images)
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.text}]}]


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: the answer, without the stop string that ended it.
        stopped: whether one of the question's stop strings ended it (and not its own end, or the token limit).
        logprobs: of the first token: token text to natural log-probability.
    """

    text: str
    stopped: bool = False
    logprobs: Mapping[str, float] = field(default_factory=dict)

    def expectation(self, choices: tuple[str, ...]) -> float:
        """The mean of choices that are numbers, under their probabilities renormalised to sum to 1.

        Raises:
            BadAnswer: if the probability of any choice is missing.
        """
        missing = [choice for choice in choices if not math.isfinite(self.logprobs.get(choice, math.nan))]
        if missing:
            raise BadAnswer(f"expected log-probabilities of {', '.join(choices)}, got none of {', '.join(missing)}")
        top = max(self.logprobs[choice] for choice in choices)
        weights = {choice: math.exp(self.logprobs[choice] - top) for choice in choices}
        return sum(float(choice) * weight for choice, weight in weights.items()) / sum(weights.values())


def encode_images(images: Tensor) -> list[bytes]:
    """Images [B, 3, H, W] as PNG files; equal neighbours (a group's LR image, repeated) are encoded once."""
    files: list[bytes] = []
    for i, image in enumerate(images):
        # The fastest level: a rollout's images are encoded once and read once, on the same machine or rack.
        same = i and torch.equal(image, images[i - 1])
        files.append(files[-1] if same else to_png(image, compress_level=1))
    return files
