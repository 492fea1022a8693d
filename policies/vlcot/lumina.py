"""VLCoT on a multimodal language model of Lumina-mGPT's kind: RealSR-R1's policy (arXiv 2506.16796), and PURE's.

transformers' Chameleon, whose vocabulary has image tokens too, and LlamaGen's VQ-8 to read and write images with. Its
own `forward` isn't used: it takes all image tokens' logits away, so that through it no image can be written, and none
has a likelihood. Its body and its head are called instead.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F

from srgym.document import IMAGES, PICTURE, SECTIONS
from srgym.errors import Refusal
from srgym.policies.tokens import AutoregressivePolicy, Grammar
from srgym.policies.vlcot.chameleon import Parts, load_weights, recompute
from srgym.policies.vlcot.codec import pyramid
from srgym.policies.vlcot.vq8 import PATCH

__all__ = ["QUESTION", "Layout", "LuminaVLCoT"]

QUESTION = (
    "This photograph is of low resolution, and something was done to it. Restore it in steps. Say first what was done "
    "to it, then what it shows, and paint a small version of it; look closer, say what you see now, and paint a larger "
    "one; then the finest details, and the whole. Answer as "
) + "".join(f"<{name}>...</{name}>" for name in SECTIONS)
"""What is asked, before the photograph."""

_UNIT = 32  # pixels of a grid: an image names its sides by them


@dataclass(frozen=True)
class Layout:
    """How images stand among words, by the numbers of tokens; the defaults are Lumina-mGPT's.

    An image is `soi`, its height and width in grids (`grid` is the token of 0), its rows, each ended by `newline`, and
    `eoi`. `end` ends the question and the answer. `codes` are the runs (first, how many) that image codes lie in.
    """

    soi: int = 8197
    eoi: int = 8196
    newline: int = 8803
    grid: int = 8804
    end: int = 8710
    pad: int = 1
    codes: Sequence[Sequence[int]] = ((4, 8192), (65536, 8192))

    def ids(self) -> Tensor:
        """The token of each code."""
        return torch.cat([torch.arange(first, first + count) for first, count in self.codes])


class LuminaVLCoT(AutoregressivePolicy):
    """Chameleon with VQ-8.

    Args:
        path: the model's folder, with its tokenizer: transformers' Chameleon, or Lumina-mGPT's and PURE's, whose norms
            are stored once a shard.
        vq: LlamaGen's VQ-8, see `VQ8`.
        pipe: `Parts` in place of both.
        side: of HR in pixels, a multiple of 128.
        scale: how many times larger HR is.
        question: what is asked; None: `QUESTION`.
        answer: tokens of a document at most; None: those of its three images, and 1,400.
        dtype: of the weights, "bfloat16", "float16" or "float32".
        checkpointing: recompute layers in the backward pass.
        temperature: of the samples that are looked at.
        layout: where another model's differs, see `Layout`.

    Raises:
        ValueError: for settings out of range. FileNotFoundError: for a folder or file that isn't there.
        Damaged: for a model that isn't Chameleon, naming the first tensor that differs.
    """

    name = "lumina_vlcot"
    reads_tokens = True
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __init__(
        self,
        path: str | None = None,
        vq: str | None = None,
        *,
        pipe: Parts | None = None,
        side: int = 512,
        scale: int = 4,
        question: str | None = None,
        answer: int | None = None,
        dtype: str = "bfloat16",
        checkpointing: bool = True,
        temperature: float = 0.9,
        layout: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pipe is None and (path is None or vq is None):
            raise Refusal("lumina_vlcot: expected path (a model's folder) and vq (LlamaGen's vq_ds8_c2i.pt)")
        if side < 128 or side % 128 or scale < 1 or side % scale:
            raise Refusal(f"lumina_vlcot: expected side as a multiple of 128 and of the scale, got {side} and {scale}")
        if temperature < 0 or (answer is not None and answer < 1):
            raise Refusal(f"expected a temperature of 0 or more and an answer of 1 token or more, got {temperature}")
        self._options: dict[str, Any] = {
            "side": side, "scale": scale, "question": question, "answer": answer, "dtype": dtype,
            "checkpointing": checkpointing, "temperature": temperature, "layout": dict(layout or {}),
        }  # fmt: skip
        places = (None if place is None else str(Path(place).expanduser().resolve()) for place in (path, vq))
        self.path, self.vq_path = places
        self.side, self.scale, self.temperature = side, scale, temperature
        self.window = (side // scale, side // scale)
        self.layout = Layout(**(layout or {}))
        self.tokenizer, self.model, self.vq = pipe or Parts.open(str(self.path), str(self.vq_path), dtype)
        self.model.model.eval()
        if checkpointing:
            recompute(self.model.model)
        self._sizes = (side // 4, side // 2, side)
        self._codes = self.layout.ids()
        if len(self._codes) != self.vq.codes:
            raise Refusal(
                f"lumina_vlcot: layout names {len(self._codes)} image tokens, and {vq or 'its vq'} has {self.vq.codes}"
            )
        self.grammar = self._grammar()
        self.longest = answer or self.grammar.places + 1400
        self._question = self._asked(QUESTION if question is None else question)
        self.reading = len(self._question) + len(self._template(side)) + 2

    # Tokens

    def _template(self, size: int) -> list[int]:
        """The places of an image, after its first token."""
        layout, cells = self.layout, size // PATCH
        return [layout.grid + size // _UNIT] * 2 + [*[-1] * cells, layout.newline] * cells + [layout.eoi]

    def _grammar(self) -> Grammar:
        layout, total = self.layout, self.model.lm_head.out_features
        is_image = torch.zeros(total, dtype=torch.bool)
        is_image[self._codes] = True
        is_word = ~is_image
        grids = range(layout.grid, layout.grid + self.side // _UNIT + 1)
        specials = set(self.tokenizer.all_special_ids) | {layout.pad, layout.eoi, layout.newline, *grids}
        is_word[[token for token in specials if token < total]] = False
        is_word[[layout.soi, layout.end]] = True
        return Grammar(is_word, is_image, {layout.soi: -2}, [self._template(size) for size in self._sizes], layout.end)

    def _asked(self, question: str) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [*([] if bos is None else [bos]), *self._words(question)]

    def _words(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def _block(self, images: Tensor) -> Tensor:
        """Images [N, 3, s, s] as tokens [N, n]."""
        template = torch.tensor([self.layout.soi, *self._template(images.shape[-1])], device=images.device)
        block = template.expand(len(images), -1).clone()
        block[:, template == -1] = self._codes.to(images.device)[self.vq.encode(images)]
        return block

    # What the network sees

    @property
    def core(self) -> nn.Module:
        body: nn.Module = self.model.model
        return body

    def _apply(self, fn: Any, recurse: bool = True) -> "LuminaVLCoT":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.grammar.to(self.model.lm_head.weight.device)
        return self

    @torch.no_grad()
    def encode(self, obs: Mapping[str, Any]) -> TensorDict:
        """`prompt`: the question, and the LR image, bicubically enlarged to HR's size, as tokens.

        Raises:
            ValueError: for LR images of another size.
        """
        lr, own = obs["lr"].to(self.device), self.side // self.scale
        if tuple(lr.shape[-2:]) != (own, own):
            raise Refusal(
                f"lumina_vlcot takes LR images of {own} x {own}, got {lr.shape[-2]} x {lr.shape[-1]}: set "
                f"env.size={self.side}, or srgym upscale, which cuts them into tiles"
            )
        large = F.interpolate(lr, size=(self.side, self.side), mode="bicubic", align_corners=False).clamp(0, 1)
        asked = torch.tensor(self._question, device=self.device).expand(len(lr), -1)
        end = torch.full((len(lr), 1), self.layout.end, device=self.device)
        prompt = torch.cat([asked, torch.cat([self._block(image) for image in torch.split(large, 1)]), end], 1)
        return TensorDict({"prompt": prompt}, batch_size=[len(lr)])

    def prefix(self, cond: TensorDict) -> Tensor:
        prompt: Tensor = cond["prompt"]
        return prompt

    def embed(self, tokens: Tensor, place: Tensor, cond: TensorDict) -> Tensor:
        """Tokens themselves: the body embeds them, which may be split between processes."""
        return tokens

    def network(
        self, inputs: Tensor, cache: Any = None, *, keep: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        body = self.model.model
        recomputed = not keep and torch.is_grad_enabled() and self._options["checkpointing"]
        if body.training != recomputed:
            body.train(recomputed)  # transformers recomputes in training alone, and then keeps no cache; nothing else
        out = body(input_ids=inputs, past_key_values=cache, use_cache=keep, attention_mask=mask)
        return out.last_hidden_state, out.past_key_values

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.model.lm_head(hidden)
        return out

    # Documents

    def images(self, tokens: Tensor, place: Tensor, cond: TensorDict) -> tuple[list[Tensor], Tensor]:
        made, whole = [], torch.zeros(len(tokens), len(IMAGES), dtype=torch.bool, device=tokens.device)
        code = torch.zeros(len(self.grammar.words), dtype=torch.int64, device=tokens.device)
        code[self._codes.to(tokens.device)] = torch.arange(len(self._codes), device=tokens.device)
        for i, size in enumerate(self._sizes):
            rows, drawn = self.last_image(tokens, place, i)
            image = torch.full((len(tokens), 3, size, size), 0.5, device=tokens.device)
            for row, codes in zip(rows.tolist(), code[drawn], strict=True):
                image[row] = self.vq.decode(codes[None], size, size)[0]
            whole[rows, i] = True
            made.append(image)
        return made, whole

    def _pieces(self, row: Sequence[int]) -> list[str]:
        """What each token of a document adds to its text, up to the end."""
        pieces = []
        for token in row:
            if token == self.layout.end:
                break
            spoken = token != self.layout.soi and bool(self.grammar.words[token])
            pieces.append(self.tokenizer.decode([token]) if spoken else PICTURE if token == self.layout.soi else "")
        return pieces

    def text(self, tokens: Tensor) -> list[str]:
        texts = []
        for row in tokens.tolist():
            document = row[: row.index(self.layout.end)] if self.layout.end in row else row
            runs: list[list[int]] = [[]]  # words are decoded together: a letter may be of several tokens
            for token in document:
                if token == self.layout.soi:
                    runs.append([])
                elif bool(self.grammar.words[token]):
                    runs[-1].append(token)
            texts.append(PICTURE.join(self.tokenizer.decode(run) for run in runs))
        return texts

    def sections(self, tokens: Tensor) -> Tensor:
        section = torch.zeros_like(tokens)
        for row, document in enumerate(tokens.tolist()):
            said, now, place = "", 0, -1
            for place, piece in enumerate(self._pieces(document)):
                section[row, place] = now
                said += piece
                if now < len(SECTIONS) - 1 and f"</{SECTIONS[now]}>" in said:
                    said, now = "", now + 1
            section[row, place + 1 :] = now
        return section

    @torch.no_grad()
    def documents(self, hr: Tensor, texts: Sequence[Mapping[str, str]], cond: TensorDict) -> Tensor:
        self.check_texts(texts)
        blocks = {name: self._block(image) for name, image in zip(IMAGES, pyramid(hr.to(self.device)), strict=True)}
        tokens = torch.zeros(len(hr), self.longest, dtype=torch.int64, device=self.device)
        for row, written in enumerate(texts):
            document: list[int] = []
            for name in SECTIONS:
                if name in IMAGES:
                    block = blocks[name][row].tolist()
                    document += [*self._words(f"<{name}>"), *block, *self._words(f"</{name}>\n")]
                else:
                    document += self._words(f"<{name}>{written[name]}</{name}>\n")
            document.append(self.layout.end)
            if len(document) > self.longest:
                raise Refusal(
                    f"expected a document of at most {self.longest} tokens, got {len(document)}: raise policy.answer"
                )
            tokens[row, : len(document)] = torch.tensor(document)
        return tokens

    # On disk

    @property
    def config(self) -> dict[str, Any]:
        if self.path is None:
            raise Refusal("policy 'lumina_vlcot' was built on parts: expected path and vq, to name its base")
        return {"path": self.path, "vq": self.vq_path, **self._options}

    def save_base(self, folder: Path) -> None:
        """The model, where it is no longer the one at `path`: trained in full."""
        if not self.has_adapters:
            from huggingface_hub import save_torch_state_dict

            target = folder / "model"
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(str(self.path)) / "config.json", target / "config.json")
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
            save_torch_state_dict(state, target)

    def load_base(self, folder: Path) -> None:
        if (folder / "model").is_dir():
            load_weights(self.model, folder / "model")
