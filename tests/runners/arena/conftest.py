"""A study of a few tiny images, made by functions that are known."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srgym.envs.sources import Sample, Source
from srgym.envs.task import SRTask
from srgym.runners.arena.making import make_study
from srgym.runners.arena.study import Design, Study
from srgym.runners.measure.evaluation import evaluation_record
from srgym.runners.measure.methods import Function, Method


class Photographs(Source):
    """`count` photographs of noise with `crops` crops each, number `plain` grey: HR 32 x 32, LR its means of 2 x 2."""

    scale, size, provides = 2, (16, 16), frozenset({"lr", "hr"})

    def __init__(self, count: int, crops: int, plain: int | None = None) -> None:
        self.count, self.crops, self.plain = count, crops, plain

    def __len__(self) -> int:
        return self.count * self.crops

    def __getitem__(self, index: int) -> Sample:
        hr = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        hr = torch.full_like(hr, 0.5) if index == self.plain else hr
        lr = torch.nn.functional.avg_pool2d(hr[None], 2)[0]
        return Sample(f"photo{index // self.crops}/{index % self.crops}", lr, hr)


def _shifted(by: float) -> Method:
    def function(lr: Tensor) -> Tensor:
        return (lr.repeat_interleave(2, 2).repeat_interleave(2, 3) + by).clamp(0, 1)

    return Function(function)


# The first is nearest to the truth by every fidelity measure, the last is farthest.
METHODS = {"ours": _shifted(0.0), "theirs": _shifted(0.1), "bicubic": _shifted(0.3)}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Study]:
    """Makes a study: `make(photographs=4, crops=1, methods=3, plain=None, **design)`."""

    def made(
        photographs: int = 4, crops: int = 1, methods: int = 3, plain: int | None = None, **design: object
    ) -> Study:
        task, chosen = SRTask(Photographs(photographs, crops, plain)), dict(list(METHODS.items())[:methods])
        record = evaluation_record(chosen, [])
        folder = tmp_path / f"study{len(list(tmp_path.iterdir()))}"
        return make_study(folder, task, chosen, Design(**design), range(len(task)), record=record)

    return made


_SERVER = """
import sys
from srgym.runners.arena.server import ArenaServer
from srgym.runners.arena.sittings import Sittings
from srgym.runners.arena.study import open_study
server = ArenaServer(Sittings(open_study(sys.argv[1])), port=int(sys.argv[2]))
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Serves a study in a process of its own, which may be killed: `start(study, port=0) -> process, port`."""
    started = []

    def begin(study: Study, port: int = 0) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", _SERVER, str(study.folder), str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield begin
    for process in started:
        process.kill()
        process.communicate()
