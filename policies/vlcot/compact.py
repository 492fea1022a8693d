"""The compact VLCoT: writes what was done to an image, what it shows, and the image itself, on a CPU.

What LR says by itself is not written: the encoder of the compact flow policy predicts the mean of HR, and image tokens
code what that mean lacks. A small causal transformer (transformers' Qwen3) writes the document; before each place of an
image it is shown what the encoder found there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.document import IMAGES, SECTIONS
from srgym.errors import MissingFile, Refusal
from srgym.policies.compact import CompactPolicy, bicubic
from srgym.policies.tokens import IMAGE, AutoregressivePolicy, Grammar
from srgym.policies.vlcot.codec import PATCH, ResidualCodec, pyramid
from srgym.policies.vlcot.words import END, START, Vocabulary
from srgym.sealed import check_shapes, read_tensors, write_tensors

__all__ = ["CompactVLCoT"]

_WEIGHTS = Path(__file__).parents[1] / "weights" / "compact_vlcot"
_FEATURES = 64 + 18 + 3  # of the encoder, of its spread, of its mean, a pixel of a quarter of HR's size
_STEM = 48
LEVELS = ("coarse", "middle", "fine")
_ANSWERED = ("degradation", "rough_understand")  # the sections whose sentences a reward looks at
_WEIGHTS_OF_SIZES = (3.0, 1.5, 1.0)


class _Seen(nn.Module):
    """What the transformer is shown of LR: rows before the document, and one for each place of an image."""

    def __init__(self, width: int, cells: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (6, _STEM, _STEM):
            layers += [nn.Conv2d(channels, _STEM, 3, padding=1), nn.SiLU()]
        self.whole = nn.Sequential(*layers)
        self.told = nn.Linear(2 * _STEM, width)
        self.coarse = nn.Linear(_FEATURES, width)
        self.patch = nn.Conv2d(4 * _FEATURES, width, 1)
        self.cells = tuple(cells)

    def forward(self, lr: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """LR [G, 3, h, w] and features [G, c, H/4, W/4] to (prefix [G, 17, d], guide [G, patches, d])."""
        centred = lr - 0.5
        high = 5 * (centred - F.avg_pool2d(F.pad(centred, (1, 1, 1, 1), mode="reflect"), 3, 1))
        seen = self.whole(torch.cat([centred, high], 1))
        # Means and spreads over the whole image of its high frequencies: what a degradation is told by.
        spread = (seen.var((2, 3), correction=0) + 1e-6).sqrt()
        told = self.told(torch.cat([seen.mean((2, 3)), spread], 1))
        grid = F.adaptive_avg_pool2d(features, 4).flatten(2).transpose(1, 2)
        prefix = torch.cat([told[:, None], self.coarse(grid)], 1)
        patches = [
            self.patch(F.pixel_unshuffle(F.adaptive_avg_pool2d(features, 2 * side), 2)).flatten(2).transpose(1, 2)
            for side in self.cells
        ]
        return prefix, torch.cat(patches, 1)


class CompactVLCoT(AutoregressivePolicy):
    """About 3.5 M parameters, for HR images of one size.

    Args:
        weights: "base" for those that ship with the package, None for random ones on the compact policy's encoder, or a
            folder that `save` wrote.
        side: of HR in pixels, a multiple of 32.
        scale: how many times larger HR is, 1, 2 or 4.
        levels, depth: of the tokens, see `ResidualCodec`. codec_width: its channels.
        width, layers, heads: of the transformer.
        temperature: of the samples that are looked at; 0 takes the likeliest tokens.
        seed: of the random weights.

    Raises:
        ValueError: for an argument out of its range. FileNotFoundError: for weights that aren't there.
    """

    name = "compact_vlcot"
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __init__(
        self,
        weights: str | None = "base",
        side: int = 64,
        scale: int = 4,
        levels: Sequence[int] = (8, 8, 8),
        depth: int = 1,
        codec_width: int = 64,
        width: int = 192,
        layers: int = 4,
        heads: int = 4,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if side < 32 or side % 32 or scale not in (1, 2, 4):
            raise Refusal(f"compact_vlcot: expected side as a multiple of 32 and scale 1, 2 or 4, got {side}, {scale}")
        if not levels or min(levels) < 2 or min(depth, codec_width, width, layers, heads) < 1 or width % (2 * heads):
            raise Refusal(
                f"compact_vlcot: expected levels of 2 or more, counts of 1 or more and width as a multiple of 2 heads, "
                f"got levels {list(levels)}, depth {depth}, width {width}, heads {heads}"
            )
        if temperature < 0:
            raise Refusal(f"compact_vlcot: expected a temperature of 0 or more, got {temperature}")
        from transformers import Qwen3Config, Qwen3Model

        self.scale, self.temperature, self.side = scale, temperature, side
        self.window = (side // scale, side // scale)
        self._shape = {
            "side": side, "scale": scale, "levels": list(levels), "depth": depth, "codec_width": codec_width,
            "width": width, "layers": layers, "heads": heads,
        }  # fmt: skip
        self.vocabulary = Vocabulary()
        self._sizes = tuple(side // down for down in (4, 2, 1))
        cells = tuple(size // PATCH for size in self._sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Its flow isn't used: what is known is the mean.
            known = "base" if weights is None and torch.get_default_device().type != "meta" else None
            self.encoder = CompactPolicy(scale, known).encoder.requires_grad_(False)
            self.codec = ResidualCodec(levels, depth, codec_width)
            self.seen = _Seen(width, cells)
            total = len(self.vocabulary) + self.codec.codes
            self.tokens, self.head = nn.Embedding(total, width), nn.Linear(width, total, bias=False)
            for layer in (self.tokens, self.head):
                nn.init.normal_(layer.weight, std=0.02)
            self.writer = Qwen3Model(
                Qwen3Config(
                    vocab_size=1, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
                    num_attention_heads=heads, num_key_value_heads=heads, head_dim=width // heads,
                    max_position_embeddings=4096, attn_implementation="sdpa",
                )
            )  # fmt: skip
            self.grammar = self._grammar(total, cells)
            self.place = nn.Embedding(self.grammar.places, width)
            nn.init.normal_(self.place.weight, std=0.02)
        # The patch that a place is in, counted through the three images from 1; 0 for words and closing tags.
        free = (self.grammar.modes(torch.arange(self.grammar.places)) == IMAGE).long()
        self.register_buffer("patch", free * ((free.cumsum(0) - 1) // depth + 1), persistent=False)
        self.longest, self.reading = self.grammar.places + 64, 18
        if weights is not None:
            self.load_base(_WEIGHTS if weights == "base" else Path(weights))

    def _grammar(self, total: int, cells: Sequence[int]) -> Grammar:
        vocabulary, depth = self.vocabulary, self.codec.depth
        is_image = torch.arange(total) >= len(vocabulary)
        is_word = ~is_image
        is_word[: vocabulary.index[END]] = False  # there is nothing to read in a pad or a start
        opens = {vocabulary.images[name][0]: i for i, name in enumerate(IMAGES)}
        templates = [
            [-1] * (cell * cell * depth) + [vocabulary.images[name][1]]
            for name, cell in zip(IMAGES, cells, strict=True)
        ]
        return Grammar(is_word, is_image, opens, templates, vocabulary.index[END])

    def _apply(self, fn: Any, recurse: bool = True) -> "CompactVLCoT":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.grammar.to(next(self.place.parameters()).device)
        return self

    @property
    def core(self) -> nn.Module:
        writer: nn.Module = self.writer
        return writer

    # What the network sees

    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        """`prefix` and `guide`, what the transformer is shown; `mean`, the image that tokens change.

        Raises:
            ValueError: for LR images of another size.
        """
        lr = obs["lr"]
        own = self.side // self.scale
        if tuple(lr.shape[-2:]) != (own, own):
            raise Refusal(
                f"compact_vlcot takes LR images of {own} x {own}, got {lr.shape[-2]} x "
                f"{lr.shape[-1]}: set env.size={self.side}, or srgym upscale, which cuts them into tiles"
            )
        with torch.no_grad():
            mean, features = self._known(lr)
        prefix, patches = self.seen(lr, features)
        guide = torch.cat([torch.zeros_like(patches[:, :1]), patches], 1)
        return TensorDict({"prefix": prefix, "guide": guide, "mean": mean}, batch_size=[len(lr)])

    def _known(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        image = bicubic(lr, self.scale)
        features, residual, log_spread = self.encoder(F.pixel_unshuffle(image, 4) - 0.5)
        mean = (image + F.pixel_shuffle(residual, 4).float()).clamp(0, 1)
        spread = log_spread.float().clamp(-6, 0) / 6
        return mean, torch.cat([features.float() / 4, spread, F.avg_pool2d(mean, 4) - 0.5], 1)

    @torch.no_grad()
    def predict_mean(self, lr: Tensor) -> Tensor:
        """What is known without a token: LR [B, 3, h, w] to [B, 3, H, W]."""
        return self._known(lr.to(self.device))[0].to(lr.device)

    def prefix(self, cond: TensorDict) -> Tensor:
        start = torch.full((len(cond), 1), self.vocabulary.index[START], device=self.device)
        return torch.cat([cond["prefix"], self.embed(start, torch.zeros_like(start), cond)], 1)

    def embed(self, tokens: Tensor, place: Tensor, cond: TensorDict) -> Tensor:
        at = place.clamp_min(0)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        guide: Tensor = cond["guide"][rows, self.get_buffer("patch")[at]]
        embedded: Tensor = self.tokens(tokens) + self.place(at) + guide
        return embedded

    def network(
        self, inputs: Tensor, cache: Any = None, *, keep: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        out = self.writer(inputs_embeds=inputs, past_key_values=cache, use_cache=keep, attention_mask=mask)
        return out.last_hidden_state, out.past_key_values

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.head(hidden)
        return out

    # Documents

    def images(self, tokens: Tensor, place: Tensor, cond: TensorDict) -> tuple[list[Tensor], Tensor]:
        known = pyramid(cond["mean"])
        made, whole = [], torch.zeros(len(tokens), len(IMAGES), dtype=torch.bool, device=tokens.device)
        for i, size in enumerate(self._sizes):
            rows, drawn = self.last_image(tokens, place, i)
            image = torch.full((len(tokens), 3, size, size), 0.5, device=tokens.device)
            if len(rows):
                codes = drawn - len(self.vocabulary)
                image[rows] = self.codec.decode(codes, known[i][rows], i).to(image.dtype)
                whole[rows, i] = True
            made.append(image)
        return made, whole

    def text(self, tokens: Tensor) -> list[str]:
        return [self.vocabulary.write(row) for row in tokens.tolist()]

    def sections(self, tokens: Tensor) -> Tensor:
        closing = torch.zeros(len(self.grammar.words), dtype=torch.int64, device=tokens.device)
        closing[[self.vocabulary.index[f"</{name}>"] for name in SECTIONS]] = 1
        closed = closing[tokens]
        return (closed.cumsum(1) - closed).clamp_max(len(SECTIONS) - 1)

    def codec_loss(self, hr: Tensor, cond: TensorDict) -> TensorDict:
        """How far images are from themselves through their tokens, at three sizes: HR [N, 3, H, W] to `loss_*`."""
        terms = {}
        for i, (image, known) in enumerate(zip(pyramid(hr), pyramid(cond["mean"]), strict=True)):
            error = self.codec.reconstruct(image, known, i) - image
            slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
            # The smaller an image, the nearer is what is known.
            loss = 20 * error.square().mean() + error.abs().mean() + 0.5 * slopes
            terms[f"loss_{LEVELS[i]}"] = _WEIGHTS_OF_SIZES[i] * loss
        return TensorDict(terms)

    @torch.no_grad()
    def documents(self, hr: Tensor, texts: Sequence[Mapping[str, str]], cond: TensorDict) -> Tensor:
        self.check_texts(texts)
        known = pyramid(cond["mean"])
        codes = [self.codec.encode(image, known[i], i).tolist() for i, image in enumerate(pyramid(hr))]
        index, words = self.vocabulary.index, len(self.vocabulary)
        tokens = torch.zeros(len(hr), self.longest, dtype=torch.int64)
        for row, written in enumerate(texts):
            document: list[int] = []
            for name in SECTIONS:
                content = (
                    [words + code for code in codes[IMAGES.index(name)][row]]
                    if name in IMAGES
                    else self.vocabulary.read(written[name])
                )
                document += [index[f"<{name}>"], *content, index[f"</{name}>"]]
            document.append(index[END])
            if len(document) > self.longest:
                raise Refusal(f"expected a document of at most {self.longest} tokens, got {len(document)}")
            tokens[row, : len(document)] = torch.tensor(document)
        return tokens.to(hr.device)

    @torch.no_grad()
    def answers(self, rolled: TensorDict, hr: Tensor, texts: Sequence[Mapping[str, str]]) -> TensorDict:
        """What each token of a rollout [N] answers for alone, and how well it did.

        A sentence of the degradation and of the rough understanding: whether it is true. A token of the final image: by
        how much less its patch differs from HR than the image does on average, of that average.

        Returns:
            `key` int64 [N, L], what it answers for (-1: nothing), and `value` [N, L].
        """
        tokens = rolled["tokens"]
        key, value = torch.full_like(tokens, -1), torch.zeros(tokens.shape, device=tokens.device)
        section = self.sections(tokens)
        for row, written in enumerate(texts):
            for name in _ANSWERED:
                truth = {*self.vocabulary.read(written[name])}
                for at in (section[row] == SECTIONS.index(name)).nonzero().flatten().tolist():
                    token = int(tokens[row, at])
                    if token in self.vocabulary.rows:
                        key[row, at], value[row, at] = self.vocabulary.rows[token], float(token in truth)
        error = F.avg_pool2d((rolled["sr"] - hr).square().mean(1, keepdim=True), PATCH).flatten(1)
        better = 1 - error / error.mean(1, keepdim=True).clamp_min(1e-6)
        patch = self.get_buffer("patch")[rolled["place"].clamp_min(0)] - 1
        first = int(self.get_buffer("patch").max()) - better.shape[1]  # patches of the images before
        final = (patch >= first) & rolled["complete"][:, None]
        at = (patch - first).clamp_min(0)
        key = torch.where(final, len(self.vocabulary.rows) + at, key)
        return TensorDict({"key": key, "value": torch.where(final, better.gather(1, at), value)}, [len(tokens)])

    # On disk

    @property
    def config(self) -> dict[str, Any]:
        return {"weights": None, "temperature": self.temperature, **self._shape}

    def _own(self) -> dict[str, Tensor]:
        return {name.replace(".base_layer.", "."): p for name, p in self.state_dict().items() if ".lora_" not in name}

    def save_base(self, folder: Path) -> None:
        write_tensors(folder / "model.safetensors", self._own())

    def load_base(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        if not path.is_file():
            raise MissingFile(f"expected compact_vlcot's weights at {path}, found no such file")
        stored = read_tensors(path)
        check_shapes(path, stored, self.state_dict())
        self.load_state_dict(stored)
