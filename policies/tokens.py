"""Policies that write a document of words and images, token by token: what may come where, drawing, likelihoods."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from srgym.document import TEXTS
from srgym.errors import Refusal
from srgym.policies.base import Policy
from srgym.policies.noise import Noise

__all__ = [
    "FORCED",
    "IMAGE",
    "OVER",
    "WORD",
    "AutoregressivePolicy",
    "Grammar",
    "Likelihood",
    "TokenSampling",
    "likelihood",
]

WORD, IMAGE, FORCED, OVER = range(4)
"""How a token was chosen: among words, among image tokens, by the grammar alone, or after the end."""

_FREE, _NEXT, _NONE = -1, -2, -1
_CHUNK = 2**26  # logits at once: of a large vocabulary, those of a whole batch wouldn't fit


@dataclass(frozen=True)
class TokenSampling:
    """How a document is drawn.

    What a top-k or a guidance leaves out has no likelihood, so they are for looking, not for learning: see `scored`.

    Attributes:
        temperature: of all tokens; 0 takes the likeliest.
        text_top_k, image_top_k: draw among the k likeliest words, or image tokens; 0: among all.
        guidance: logits of image tokens are l_0 + guidance (l - l_0), l_0 being those of a network that sees nothing
            but the image's own beginning (Chameleon's and PURE's way); 1 is off.
        length: tokens at most; None: as many as the policy's longest document.
    """

    temperature: float = 1.0
    text_top_k: int = 0
    image_top_k: int = 0
    guidance: float = 1.0
    length: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.text_top_k < 0 or self.image_top_k < 0 or self.guidance < 0:
            raise Refusal(f"expected a temperature, top-k and guidance of 0 or more, got {self}")
        if self.length is not None and self.length < 1:
            raise Refusal(f"expected a document of at least 1 token, got length={self.length}")

    @property
    def scored(self) -> bool:
        """Whether `log_prob`, at this temperature, is the likelihood of what is drawn."""
        return self.temperature > 0 and not self.text_top_k and not self.image_top_k and self.guidance == 1.0


class Grammar:
    """What may come where in a document, as numbered places.

    Place 0 is outside of images: any word may stand there, and no image token. An image is a run of places, each free
    for an image token or forced to one certain token. `OVER_PLACE` is after the end.

    Args:
        words, image_tokens: bool [V], what may be written outside an image, and in its free places.
        opens: by token, the image that it opens: its number, or -2 for the next one.
        templates: of each image, its places: -1 is free, all else is the token that must be there.
        end: the word that ends all.
    """

    OVER_PLACE = -1

    def __init__(
        self,
        words: Tensor,
        image_tokens: Tensor,
        opens: Mapping[int, int],
        templates: Sequence[Sequence[int]],
        end: int,
    ) -> None:
        self.words, self.image_tokens, self.end = words, image_tokens, end
        self.opens = torch.full(words.shape, _NONE)
        for token, image in opens.items():
            self.opens[token] = image
        lengths = torch.tensor([len(template) for template in templates])
        self.first = torch.cat([torch.ones(1, dtype=torch.int64), lengths.cumsum(0)[:-1] + 1])
        self.table = torch.tensor([_FREE, *(token for template in templates for token in template)])
        self.follows = torch.arange(1, len(self.table) + 1)
        self.follows[0] = 0
        self.follows[self.first + lengths - 1] = 0
        self.kinds = torch.where(self.table == _FREE, IMAGE, FORCED)
        self.kinds[0] = WORD

    @property
    def places(self) -> int:
        """How many there are, place 0 among them."""
        return len(self.table)

    def to(self, device: torch.device) -> "Grammar":
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def start(self, count: int) -> tuple[Tensor, Tensor]:
        """(place of the next token, images opened so far), int64 [N] each."""
        zero = torch.zeros(count, dtype=torch.int64, device=self.table.device)
        return zero, zero.clone()

    def advance(self, place: Tensor, images: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """What `start` gives, after one more token [N]."""
        outside = place == 0
        opened = torch.where(outside, self.opens[token], _NONE)
        last = len(self.first) - 1
        opened = torch.where(opened == _NEXT, images.clamp_max(last), opened)
        begun = torch.where(opened >= 0, self.first[opened.clamp_min(0)], 0)
        after = torch.where(outside, begun, self.follows[place.clamp_min(0)])
        over = (place == self.OVER_PLACE) | (outside & (token == self.end))
        return torch.where(over, self.OVER_PLACE, after), images + (opened >= 0)

    def walk(self, tokens: Tensor) -> Tensor:
        """The place of every token of whole documents: [N, L] to int64 [N, L]."""
        place, images = self.start(len(tokens))
        places = torch.empty_like(tokens)
        for i in range(tokens.shape[1]):
            places[:, i] = place
            place, images = self.advance(place, images, tokens[:, i])
        return places

    def modes(self, place: Tensor) -> Tensor:
        """How the token of a place is chosen: [...] to WORD, IMAGE, FORCED or OVER."""
        return torch.where(place == self.OVER_PLACE, OVER, self.kinds[place.clamp_min(0)])

    def forced(self, place: Tensor) -> Tensor:
        """The token that must stand at a place; 0 where none must."""
        return self.table[place.clamp_min(0)].clamp_min(0)

    def allowed(self, mode: Tensor) -> Tensor:
        """What may be drawn in a mode: [...] to bool [..., V]."""
        return torch.where((mode == IMAGE)[..., None], self.image_tokens, self.words)


class Likelihood(NamedTuple):
    """Of tokens, each [...] in float32 at least, 0 where nothing is drawn.

    Attributes:
        log_prob: of the token, under the very distribution that it is drawn from.
        entropy: of that distribution, without gradient.
        log_z: the logarithm of its normaliser, which a z-loss keeps near 0.
    """

    log_prob: Tensor
    entropy: Tensor
    log_z: Tensor


def likelihood(logits: Tensor, tokens: Tensor, mode: Tensor, grammar: Grammar, temperature: float = 1.0) -> Likelihood:
    """What tokens [...] are worth.

    Args:
        logits: [..., V]. mode: [...], see `Grammar.modes`.
    """
    floats = logits if logits.dtype == torch.float64 else logits.float()
    scaled = (floats / temperature).masked_fill(~grammar.allowed(mode), -torch.inf)
    log_z = scaled.logsumexp(-1)
    log_prob = scaled - log_z[..., None]
    free = mode < FORCED
    picked = log_prob.gather(-1, tokens[..., None])[..., 0]
    with torch.no_grad():
        entropy = -(log_prob.exp() * log_prob.masked_fill(log_prob == -torch.inf, 0)).sum(-1)
    return Likelihood(*(torch.where(free, value, 0.0) for value in (picked, entropy, log_z)))


class AutoregressivePolicy(Policy):
    """Writes a document: what was done to the input, what it shows, and the image, coarse, middle and fine.

    Subclasses write `encode`, `prefix`, `embed`, `network`, `logits`, `images`, `text`, `sections`, `documents`,
    `core` and `lora_targets`, and set `grammar`.

    Attributes:
        grammar: what may come where.
        longest: tokens of its longest document. reading: of what stands before one.
        reads_tokens: whether `network` takes tokens, and embeds them itself.
        temperature: of the samples that are looked at (`sampling`); 0 takes the likeliest tokens.
    """

    gives = frozenset({"text", "intermediate"})
    entries: ClassVar[Mapping[str, bool]] = {"encode": False, "log_prob": True, "sample": True}
    grammar: Grammar
    longest: int
    reading: int
    reads_tokens: bool = False
    temperature: float = 0.0

    @abstractmethod
    def prefix(self, cond: TensorDict) -> Tensor:
        """What stands before a document, as embeddings [N, P, d]."""

    @abstractmethod
    def embed(self, tokens: Tensor, place: Tensor, cond: TensorDict) -> Tensor:
        """Tokens [N, n], each with the place [N, n] of the token that follows it, as embeddings [N, n, d]."""

    @abstractmethod
    def network(
        self, inputs: Tensor, cache: Any = None, *, keep: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Embeddings [N, n, d] after those in the cache to hidden states [N, n, d].

        Args:
            keep: return a cache that holds these, too.
            mask: bool [N, all so far], which are seen; None: all.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] to [..., V], words and image tokens alike."""

    @abstractmethod
    def images(self, tokens: Tensor, place: Tensor, cond: TensorDict) -> tuple[list[Tensor], Tensor]:
        """Documents [N, L] and the places of their tokens to images coarse to fine, and which are whole, bool [N, 3].

        Each image is [N, 3, h, w] in [0, 1], and grey where it is not whole, so that a broken document is punished.
        """

    @abstractmethod
    def text(self, tokens: Tensor) -> list[str]:
        """What was written, with its tags, an image as `srgym.document.PICTURE`."""

    @abstractmethod
    def sections(self, tokens: Tensor) -> Tensor:
        """Of which of the seven sections each token is, int64 [N, L]; what is outside all is of the next one."""

    @abstractmethod
    def documents(self, hr: Tensor, texts: Sequence[Mapping[str, str]], cond: TensorDict) -> Tensor:
        """The documents that are true of images: tokens [N, longest], 0 after the end.

        Args:
            hr: [N, 3, H, W] in [0, 1].
            texts: of each, by `srgym.document.TEXTS`.

        Raises:
            ValueError: for a text that the policy has no words for, or that makes a document too long.
        """

    def sampling(self, steps: int = 6, solver: str = "euler", guidance: float = 1.0) -> TokenSampling:
        return TokenSampling(self.temperature, guidance=guidance)

    @torch.no_grad()
    def sample(self, cond: TensorDict, sampling: TokenSampling, seeds: Tensor) -> TensorDict:
        """Draw a document for each condition [N].

        Returns:
            TensorDict [N]: `cond`; `tokens`, `place` int64 and `log_prob` [N, L] (of what was drawn at the sampling's
            temperature, where that is scored; 0 at forced places); `complete` bool [N]; `sr` [N, 3, H, W], and
            `coarse` and `middle` before it.
        """
        tokens, place, log_prob = self._write(cond, sampling, seeds)
        images, whole = self.images(tokens, place, cond)
        rolled = {
            "cond": cond, "tokens": tokens, "place": place, "log_prob": log_prob, "complete": whole.all(1),
            "coarse": images[0], "middle": images[1], "sr": images[2],
        }  # fmt: skip
        return TensorDict(rolled, batch_size=[len(seeds)])

    def _write(self, cond: TensorDict, sampling: TokenSampling, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, length = len(seeds), min(sampling.length or self.longest, self.longest)
        drawn = Noise(seeds, self.device).uniform((length,), torch.float64)
        tokens = torch.zeros(count, self.longest, dtype=torch.int64, device=self.device)
        place = torch.full_like(tokens, Grammar.OVER_PLACE)
        log_prob = torch.zeros(tokens.shape, device=self.device)
        now, images = self.grammar.start(count)
        inputs, cache = self.prefix(cond), None
        unguided = _Unguided(self) if sampling.guidance != 1.0 else None
        for i in range(length):
            hidden, cache = self.network(inputs, cache, keep=True)
            logits, mode = self.logits(hidden[:, -1]), self.grammar.modes(now)
            if unguided is not None:
                logits = unguided.guide(logits, inputs, now, mode, sampling.guidance)
            token = self._pick(logits, mode, drawn[:, i], sampling)
            token = torch.where(mode == FORCED, self.grammar.forced(now), token * (mode != OVER))
            if sampling.scored:
                log_prob[:, i] = likelihood(logits, token, mode, self.grammar, sampling.temperature).log_prob
            tokens[:, i], place[:, i] = token, now
            now, images = self.grammar.advance(now, images, token)
            if not self.sharded and bool((now == Grammar.OVER_PLACE).all()):  # else all must run the same forwards
                break
            inputs = self.embed(token[:, None], now[:, None], cond)
        return tokens, place, log_prob

    def _pick(self, logits: Tensor, mode: Tensor, drawn: Tensor, sampling: TokenSampling) -> Tensor:
        """One token a row [N], by its number in [0, 1): however a batch is cut, a sample draws the same."""
        scaled = logits.double().masked_fill(~self.grammar.allowed(mode), -torch.inf)
        if sampling.temperature == 0:
            return scaled.argmax(-1)
        for kind, k in ((WORD, sampling.text_top_k), (IMAGE, sampling.image_top_k)):
            if k:
                least = scaled.topk(min(k, scaled.shape[-1]), -1).values[:, -1:]
                scaled = torch.where((mode == kind)[:, None] & (scaled < least), -torch.inf, scaled)
        heap = (scaled / sampling.temperature).softmax(-1).cumsum(-1)
        token = torch.searchsorted(heap, drawn[:, None] * heap[:, -1:], right=True)[:, 0]
        # Rounding can leave a number above the whole heap: the last token that has any probability is meant.
        last = scaled.shape[-1] - 1 - torch.isfinite(scaled).flip(-1).int().argmax(-1)
        return torch.minimum(token, last)

    def log_prob(self, tokens: Tensor, place: Tensor, cond: TensorDict, temperature: float = 1.0) -> Likelihood:
        """What documents [N, L] are worth under the active adapter.

        Args:
            tokens, place, cond: as `sample` or `Grammar.walk` gives them.
            temperature: that they were drawn at.

        Returns:
            Of every token, [N, L] each; 0 at forced places and after the end.
        """
        used = max(int((place != Grammar.OVER_PLACE).sum(1).max()), 1)
        here, at = tokens[:, :used], place[:, :used]
        inputs = torch.cat([self.prefix(cond), self.embed(here[:, :-1], at[:, 1:], cond)], 1)
        hidden = self.network(inputs)[0][:, -used:]
        mode = self.grammar.modes(at)
        cut = self.chunk(len(tokens))
        parts = [
            self._likelihood(*part, temperature=temperature, again=cut < used)
            for part in zip(*(torch.split(x, cut, 1) for x in (hidden, here, mode)), strict=True)
        ]
        rest = tokens.shape[1] - used
        return Likelihood(*(F.pad(torch.cat(columns, 1), (0, rest)) for columns in zip(*parts, strict=True)))

    def chunk(self, rows: int) -> int:
        """How many places' logits are computed at once."""
        return max(_CHUNK // (len(self.grammar.words) * rows), 1)

    def _likelihood(
        self, hidden: Tensor, tokens: Tensor, mode: Tensor, *, temperature: float, again: bool
    ) -> Likelihood:
        """`likelihood` of hidden states; `again`: its logits are computed once more for the gradient, not kept."""

        def score(hidden: Tensor) -> Likelihood:
            return likelihood(self.logits(hidden), tokens, mode, self.grammar, temperature)

        if not (again and torch.is_grad_enabled()):
            return score(hidden)
        result: Likelihood = checkpoint(score, hidden, use_reentrant=False)
        return result

    def made(self, rolled: TensorDict) -> dict[str, Any]:
        return {"text": self.text(rolled["tokens"]), "intermediate": [rolled["coarse"], rolled["middle"]]}

    def last_image(self, tokens: Tensor, place: Tensor, image: int) -> tuple[Tensor, Tensor]:
        """The documents [N, L] in which an image stands whole, int64 [M], and the tokens drawn for its last, [M, n]."""
        first = int(self.grammar.first[image])
        own = torch.arange(len(self.grammar.table), device=tokens.device)[first:]
        end = int((self.grammar.follows[first:] == 0).nonzero()[0])
        closing = place == own[end]
        rows = closing.any(1).nonzero().flatten()
        at = closing.shape[1] - 1 - closing[rows].flip(1).int().argmax(1)
        drawn = tokens[rows[:, None], at[:, None] - end + torch.arange(end + 1, device=tokens.device)]
        return rows, drawn[:, self.grammar.table[first : first + end + 1] == _FREE]

    def check_texts(self, texts: Sequence[Mapping[str, str]]) -> None:
        """Refuse texts that lack a section."""
        for each in texts:
            missing = [name for name in TEXTS if name not in each]
            if missing:
                raise Refusal(f"expected a document's texts by {', '.join(TEXTS)}, got one without '{missing[0]}'")


class _Unguided:
    """The same network without what came before the image that is being written."""

    def __init__(self, policy: AutoregressivePolicy) -> None:
        self._policy = policy
        self._cache: Any = None
        self._mask: Tensor | None = None

    def guide(self, logits: Tensor, inputs: Tensor, place: Tensor, mode: Tensor, guidance: float) -> Tensor:
        inside = place > 0
        first = torch.isin(place, self._policy.grammar.first)
        seen = torch.zeros(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        if self._mask is None:
            self._mask = seen
        else:
            self._mask = torch.cat([torch.where((first | ~inside)[:, None], False, self._mask), seen], 1)
        self._mask[:, -1] = True  # what opened the image, or, outside of one, the last token alone
        hidden, self._cache = self._policy.network(inputs, self._cache, keep=True, mask=self._mask)
        alone = self._policy.logits(hidden[:, -1])
        return torch.where((mode == IMAGE)[:, None], alone + guidance * (logits - alone), logits)
