"""A real vLLM, in an environment of its own (see install.sh), serving a tiny Qwen3-VL with random weights."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from srgym.rewards.serving.server import Server


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter of vLLM's environment."""
    python = os.environ.get("SRGYM_VLLM_PYTHON")
    if not python:
        pytest.skip("SRGYM_VLLM_PYTHON doesn't name the interpreter of an environment with vLLM (install.sh makes one)")
    if not Path(python).exists():
        pytest.fail(f"SRGYM_VLLM_PYTHON names {python}, which isn't there")
    return str(Path(python).absolute())


@pytest.fixture(scope="session")
def server(vllm_python: str, tiny_qwen3vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole run, started and stopped here; three quarters of a minute."""
    small = ["--max-num-seqs", "16", "--max-num-batched-tokens", "4096"]
    with Server(
        tiny_qwen3vl,
        token="for-the-test",
        cpu=True,
        name="compass",
        images=5,
        max_model_len=4096,
        python=vllm_python,
        log=tmp_path_factory.mktemp("vllm") / "server.log",
        extra=small,
    ) as running:
        yield running
