"""Half precision where a device computes in it, and float32 where it would only be imitated."""

import torch

from srgym.errors import Refusal

__all__ = ["AUTOCAST", "autocast_dtype", "has_bfloat16"]

AUTOCAST = ("auto", "bf16", "off")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself. A CPU that doesn't takes six times as long as in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()  # "bf16" is ARM's
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def autocast_dtype(setting: str, device: torch.device) -> torch.dtype | None:
    """The type that forward passes compute in under a setting; None: that of the weights.

    Args:
        setting: "bf16"; "off"; or "auto": "bf16" on a device that computes in it, else "off".

    Raises:
        ValueError: for another one.
    """
    if setting not in AUTOCAST:
        raise Refusal(f"autocast is one of {', '.join(AUTOCAST)}, got '{setting}'")
    return torch.bfloat16 if setting == "bf16" or (setting == "auto" and has_bfloat16(device)) else None
