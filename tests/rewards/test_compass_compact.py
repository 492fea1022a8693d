"""The compact scorer: ranges, one scale for LR and SR, gradients, and what ships with the package."""

import pytest
import torch

from srgym.rewards.compass.compact import CompactCompass, load

LR = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SR = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_scores_are_in_range_and_rows_are_independent():
    model = CompactCompass().eval()
    fidelity, q_lr, q_sr, valid = model(LR, SR)
    assert valid.all()
    assert ((fidelity >= 0) & (fidelity <= 1)).all()
    for quality in (q_lr, q_sr):
        assert ((quality >= 1) & (quality <= 5)).all()
    for whole, alone in zip(model(LR, SR), model(LR[2:3], SR[2:3]), strict=True):
        torch.testing.assert_close(whole[2:3].float(), alone.float(), rtol=0, atol=1e-5)


def test_lr_and_sr_are_rated_by_one_network():
    from torch.nn import functional as F

    model = CompactCompass().eval()
    same = F.interpolate(LR, scale_factor=4, mode="bicubic").clamp(0, 1)
    _, q_lr, q_sr, _ = model(LR, same)
    torch.testing.assert_close(q_lr, q_sr)


def test_every_score_is_differentiable_in_sr():
    model = CompactCompass().eval()
    for part in (0, 2):
        sr = SR.clone().requires_grad_(True)
        model(LR, sr)[part].sum().backward()
        assert sr.grad is not None and sr.grad.abs().sum() > 0


def test_saved_and_loaded_is_the_same_scorer(tmp_path):
    model = CompactCompass(widths=(8, 8, 8), hidden=16).eval()
    model.save(tmp_path)
    back = load(tmp_path)
    assert not any(p.requires_grad for p in back.parameters())
    for a, b in zip(model(LR, SR), back(LR, SR), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)  # laid out otherwise in memory
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load(tmp_path / "nowhere")


def test_the_lr_image_of_a_group_is_rated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(3, 3, 8, 8, generator=generator)[[0, 0, 1, 2, 2, 0]]
    sr = torch.rand(6, 3, 32, 32, generator=generator)
    rated: list[int] = []
    rate = CompactCompass.rate

    def counted(self: CompactCompass, lr_up: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rated.append(len(image))
        return rate(self, lr_up, image)

    monkeypatch.setattr(CompactCompass, "rate", counted)
    together = model(lr, sr)
    assert rated == [6, 4]
    for i in range(6):
        for whole, alone in zip(together, model(lr[i : i + 1], sr[i : i + 1]), strict=True):
            assert torch.allclose(whole[i], alone[0], atol=1e-5)
