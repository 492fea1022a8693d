"""What every test needs: no network, one thread, and a policy small enough to train inside a test."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from toys import Toys

from srgym.policies.compact import CompactPolicy


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_policy() -> CompactPolicy:
    """A compact policy of a few thousand parameters whose weights are random, and none of them zero."""
    policy = CompactPolicy(weights=None, encoder_width=8, encoder_depth=1, width=8, middle=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture
def toy(tmp_path: Path) -> Toys:
    """Policies, agents, tasks and runs of a problem whose solution is known."""
    return Toys(tmp_path)
