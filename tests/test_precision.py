"""Half precision is taken where it is a device's own, and where it is asked for."""

import pytest
import torch

from srgym import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, None)])
def test_auto_follows_the_device(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype | None) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": native})
    assert precision.autocast_dtype("auto", CPU) is dtype
    assert precision.autocast_dtype("bf16", CPU) is torch.bfloat16
    assert precision.autocast_dtype("off", CPU) is None


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="one of auto, bf16, off, got 'half'"):
        precision.autocast_dtype("half", CPU)
