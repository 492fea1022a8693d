"""LucidConsistency: what its projection learns, and the reward on both embedders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from srgym.rewards import make
from srgym.rewards.lucid.embedders import make_embedder
from srgym.rewards.lucid.reward import LucidConsistency, enlarged, make_projection, save_projection
from srgym.rewards.lucid.train import Looks, contrast, exchanged, figures, train_projection
from srgym.rewards.specimens import photographs


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_contrast_is_the_positives_share_of_all() -> None:
    draw = np.random.default_rng(0)
    anchor, positive, changed = draw.normal(size=(3, 4)), draw.normal(size=(3, 4)), draw.normal(size=(3, 2, 4))
    expected = []
    for i in range(3):
        like = np.exp([cos(anchor[i], positive[j]) / 0.3 for j in range(3)])
        unlike = np.exp([cos(anchor[i], changed[i, m]) / 0.3 for m in range(2)])
        expected.append(-np.log(like[i] / (like.sum() + unlike.sum())))
    found = contrast(*(torch.tensor(z) for z in (anchor, positive, changed)), temperature=0.3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("area", [0.04, 0.25])
def test_a_part_is_exchanged_and_the_rest_is_not(area: float) -> None:
    image, other = torch.zeros(3, 20, 40), torch.ones(3, 20, 40)
    places = set()
    for seed in range(5):
        mixed = exchanged(image, other, area, torch.Generator().manual_seed(seed))
        assert float(mixed.mean()) == pytest.approx(area)
        rows, columns = mixed[0].nonzero().unbind(1)
        assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        places.add((int(rows.min()), int(columns.min())))
    assert len(places) > 1 and not image.any()


def looks(count: int, seed: int) -> Looks:
    """Contents in the first 8 numbers, much of how they look in the last 8; a change adds a little other content."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, look: float = 0.0, content: float = 1.0) -> torch.Tensor:
        size = torch.tensor([content] * 8 + [look] * 8)
        return size * torch.randn(*shape, 16, generator=generator)

    content = drawn(count)
    truth = content + drawn(count, look=1.5, content=0.0)
    change = drawn(count, 2) * torch.tensor([0.6, 1.2])[:, None]
    return Looks(content[:, None] + drawn(count, 2, look=1.5, content=0.0), truth, truth[:, None] + change)


def test_the_projection_sees_past_degradations_and_notices_changes() -> None:
    held_out = looks(40, 1)
    before = figures(held_out, (0.1, 0.3))
    options = {"hidden": 32, "out": 16, "batch": 32, "temperature": 0.1, "lr": 3e-3}
    learnt = train_projection(looks(200, 0), steps=200, seed=0, **options)  # type: ignore[arg-type]
    after = figures(held_out, (0.1, 0.3), learnt)
    for name in ("paired", "above_swapped", "above_changed_0.3"):
        assert after[name] > before[name] + 0.05, name
    again = train_projection(looks(200, 0), steps=200, seed=0, **options)  # type: ignore[arg-type]
    assert torch.equal(learnt[0].weight, again[0].weight)


def test_figures_are_counts() -> None:
    """Two contents: the first's degraded look points at its own truth, the second's at the other's."""
    axis = torch.eye(3)
    found = figures(Looks(axis[[0, 0]][:, None], axis[[0, 1]], axis[[2, 0]][:, None]), (0.5,))
    assert found == {"paired": 0.5, "swapped": 0.5, "above_swapped": 0.5, "above_changed_0.5": 0.5}


def test_what_shows_the_same_is_alike_and_what_does_not_is_not() -> None:
    """On photographs that nothing was trained on, by the projection that ships."""
    reward, truth = make("lucid_consistency"), photographs(96)
    lr = F.interpolate(truth, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    own, other = reward(truth, lr=lr).total, reward(truth.roll(1, 0), lr=lr).total
    assert (own > other + 0.3).all()
    copy = reward(enlarged(lr, (96, 96)), lr=lr)
    torch.testing.assert_close(copy.total, torch.ones(4), atol=1e-5, rtol=0)
    assert (reward(truth, lr=lr).components["embedder"] < 1).all()


def test_its_gradient_reaches_the_image_and_groups_do_not_matter() -> None:
    reward, truth = make("lucid_consistency"), photographs(64)[:2]
    lr = F.interpolate(truth, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    sr = truth.repeat_interleave(2, 0).requires_grad_()
    whole = reward(sr, lr=lr.repeat_interleave(2, 0)).total
    assert reward.differentiable and reward.needs == {"lr"}
    whole.sum().backward()
    assert sr.grad is not None and float(sr.grad.abs().sum()) > 0
    torch.testing.assert_close(whole[2:3], reward(truth[1:2], lr=lr[1:2]).total, atol=1e-5, rtol=0)


@pytest.fixture
def on_qwen(tiny_qwen3vl: Path, tmp_path: Path) -> tuple[Any, Path]:
    """The real classes with random weights, and an untrained projection for them."""
    embedder = make_embedder("qwen3_vl", str(tiny_qwen3vl))
    save_projection(tmp_path / "projection", make_projection(embedder.width, 16, 8), "qwen3_vl")
    return embedder, tmp_path / "projection"


def test_a_multimodal_embedder_is_read_at_its_last_token(on_qwen: Any, tiny_qwen3vl: Path) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    embedder, _ = on_qwen
    images = (photographs(64)[:2] * 255).round() / 255
    found = embedder(images)
    assert found.shape == (2, embedder.width)
    torch.testing.assert_close(embedder(images[1:]), found[1:])
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    # The same numbers through the class that generates, one layer further up.
    whole = AutoModelForImageTextToText.from_pretrained(tiny_qwen3vl).eval()
    processor = AutoProcessor.from_pretrained(tiny_qwen3vl)
    picture = Image.fromarray((images[0] * 255).byte().permute(1, 2, 0).numpy())
    says = [
        {"role": "system", "content": "Represent the user's input."},
        {"role": "user", "content": [{"type": "image"}]},
    ]
    prompt = processor.apply_chat_template(says, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], images=[picture], return_tensors="pt")
    with torch.no_grad():
        states = whole(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found[0], states[0, -1].float(), atol=1e-5, rtol=1e-4)


def test_the_reward_on_a_multimodal_embedder(on_qwen: Any, tiny_qwen3vl: Path) -> None:
    embedder, folder = on_qwen
    reward = make("lucid_consistency", weights=str(folder), path=str(tiny_qwen3vl))
    truth = photographs(64)[:2]
    lr = F.interpolate(truth, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    found = reward(truth, lr=lr)
    seen, shown = embedder(truth), embedder(enlarged(lr, (64, 64)))
    torch.testing.assert_close(found.components["embedder"], F.cosine_similarity(shown, seen), atol=1e-5, rtol=0)
    assert not reward.differentiable and found.valid.all()


def test_what_is_missing_or_does_not_fit_is_named(on_qwen: Any, tiny_qwen3vl: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train one with"):
        LucidConsistency(weights=tmp_path)
    with pytest.raises(ValueError, match="'qwen3_vl' needs path"):
        LucidConsistency(weights=on_qwen[1])
    with pytest.raises(ValueError, match="expected an embedder of lite0, qwen3_vl, got 'clip'"):
        make_embedder("clip")
    save_projection(tmp_path / "wide", make_projection(7, 4, 4), "qwen3_vl")
    with pytest.raises(ValueError, match="trained on vectors of 7 numbers, and the embedder 'qwen3_vl' gives 64"):
        LucidConsistency(weights=tmp_path / "wide", path=str(tiny_qwen3vl))
