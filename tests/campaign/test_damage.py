"""Files that are damaged, disks that are full, folders of odd things: a sentence each time, and nothing in silence."""

import json
import os
import random
import resource
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from campaign.forks import digests, forked, policy_of
from campaign.tally import Tally
from PIL import Image

from srgym import policies
from srgym.envs.degradation import PRESETS, degrade
from srgym.envs.folders import HRFolder
from srgym.errors import Refusal
from srgym.policies.compact import CompactPolicy
from srgym.rewards.compass import compact as compass
from srgym.rewards.finpercep import model as finpercep
from srgym.runners.loop.checkpoint import Checkpoints
from srgym.runners.measure.evaluation import read_evaluation, save_evaluation

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1800)]
Loader = Callable[[Path], Any]


def state(model: torch.nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in model.state_dict().values()]


def saved(kind: str, folder: Path, tiny_policy: CompactPolicy) -> Loader:
    """Save one of a kind, and return what loads it into something that can be compared."""
    if kind == "policy":
        tiny_policy.add_adapters(2, 2.0)
        tiny_policy.save(folder)
        return lambda place: state(policies.load(place))
    if kind == "COMPASS scorer":
        compass.CompactCompass((4, 4), 4).save(folder)
        return lambda place: state(compass.load(place))
    if kind == "FinPercep-RM":
        finpercep.FinPercepRM(hidden=4).save(folder)
        return lambda place: state(finpercep.load(place))
    if kind == "evaluation":
        rows = [("a", "p", "0", "psnr_y", 30.0 + i, True, i) for i in range(8)]
        frame = pd.DataFrame(rows, columns=["method", "photograph", "crop", "metric", "value", "valid", "seed"])
        save_evaluation(frame, {"contexts": 8, "env": {"name": "photographs"}}, folder)
        return lambda place: (lambda read: (read[0].to_csv(), read[1]))(read_evaluation(place))
    checkpoints = Checkpoints(folder, keep=2)
    for number in (1, 2):
        checkpoints.save(number, {"policy": {"a": torch.full((9,), float(number))}}, {"iteration": number})

    def newest(place: Path) -> Any:
        """The second, or the first, which is right where the second is damaged; a start afresh where both are."""
        found = Checkpoints(place).latest()
        return None if found is None else (found.tensors["policy"]["a"].tolist(), found.values)

    return newest


@pytest.mark.parametrize("kind", ["policy", "COMPASS scorer", "FinPercep-RM", "evaluation", "checkpoint"])
def test_a_flipped_bit_or_a_cut_file_is_noticed(
    kind: str, tmp_path: Path, tiny_policy: CompactPolicy, tally: Tally
) -> None:
    whole, copy, moments = tmp_path / "whole", tmp_path / "copy", random.Random(5)
    load = saved(kind, whole, tiny_policy)
    right = [load(whole)]
    if kind == "checkpoint":
        right.append(([1.0] * 9, {"iteration": 1}))
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.suffix != ".csv"]
    for how in ("a bit flipped", "cut off"):
        what = f"{kind}: {how}, then loaded"
        for trial in range(60):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            path = copy / files[trial % len(files)]
            content = bytearray(path.read_bytes())
            place = moments.randrange(len(content))
            if how == "cut off":
                content = content[:place]
            else:
                content[place] ^= 1 << moments.randrange(8)
            path.write_bytes(content)
            failure = None
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    failure = None if load(copy) in right else f"{path.name} at {place}: loaded in silence"
            except Refusal as refusal:
                failure = None if str(copy) in str(refusal) else f"{path.name}: no file is named: {refusal}"
            except Exception as error:
                failure = f"{path.name} at {place}: {type(error).__name__}: {error}"
            tally.add(what, failure)
        tally.settle(what)


def test_a_runs_damaged_records_are_noticed_or_harmless(tmp_path: Path, tally: Tally) -> None:
    what, moments = "config.json and run.json of a run: a bit flipped or cut off, then gone on with", random.Random(6)
    whole, copy = policy_of(tmp_path / "whole"), tmp_path / "copy"
    expected = digests(whole, ["stages/*/policy/*"])
    for trial in range(60):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        path = copy / ("config.json", "run.json")[trial % 2]
        content = bytearray(path.read_bytes())
        place = moments.randrange(len(content))
        content[place] ^= 1 << moments.randrange(8)
        path.write_bytes(content[:place] if trial % 4 > 1 else content)
        code, _ = forked(["train", "experiment=smoke", "logger=csv", f"out={copy}"], copy)
        same = digests(copy, ["stages/*/policy/*"]) == expected
        right = code == 2 or (code == 0 and same)
        tally.add(what, None if right else f"{path.name} at {place}: {code}, files equal: {same}")
    tally.settle(what)


def _limited(room: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


def test_a_full_disk_gets_a_sentence(tmp_path: Path, tally: Tally) -> None:
    """A limit on the size of files answers what a full disk does, in another number, and nothing has to be mounted."""
    run = policy_of(tmp_path / "run")
    commands = {
        "train": ["train", "experiment=smoke", f"out={tmp_path / 'out'}"],
        "merge": ["merge", f"into={run}/stages/cold_start/policy", f"lora={run}/stages/reinforce/policy",
                  f"out={tmp_path / 'out'}"],
        "evaluate": ["evaluate", f"policy={run}", "limit=1", "env.size=32", "metrics=[psnr_y]",
                     f"out={tmp_path / 'out'}"],
        "upscale": ["upscale", str(picture(tmp_path / "a.png", 24)), f"policy={run}", f"out={tmp_path / 'out'}"],
    }  # fmt: skip
    for name, command in commands.items():
        what = f"{name} on a full disk"
        for room in (300, 600, 1000, 3000, 7000, 10_000, 14_000, 20_000, 50_000, 10**7):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            said = tmp_path / "said"
            code, _ = forked(command, tmp_path / "out", before=lambda room=room: _limited(room), said=said)
            text = said.read_text()
            last = text.strip().splitlines()[-1] if text.strip() else ""
            sentence = code == 1 and last.startswith("srgym: ") and "File too large" in last and str(tmp_path) in last
            right = code == 0 or (sentence and "Traceback" not in text)
            tally.add(what, None if right else f"room for {room}: {code}: {text[-300:]}")
        tally.settle(what)


# Images


def picture(path: Path, side: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((torch.rand(side, side, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()).save(
        path
    )
    return path


def _odd(folder: Path) -> Iterator[str]:
    """Make one odd thing after the other in a folder; yields what it is."""
    whole = picture(folder.parent / "whole.png").read_bytes()
    path = folder / "odd.png"
    yield from _made(path, "a link to nothing", lambda: path.symlink_to(folder / "nowhere"))
    yield from _made(path, "a link to itself", lambda: path.symlink_to(path))
    yield from _made(path, "a pipe", lambda: os.mkfifo(path))
    yield from _made(path, "a device", lambda: path.symlink_to("/dev/zero"))
    yield from _made(path, "an empty file", path.touch)
    yield from _made(path, "text", lambda: path.write_text("no image"))
    yield from _made(path, "half of an image", lambda: path.write_bytes(whole[: len(whole) // 2]))
    yield from _made(path, "an image's header", lambda: path.write_bytes(whole[:40]))
    yield from _made(path, "zeros", lambda: path.write_bytes(bytes(4096)))
    yield from _made(path, "an image of 32-bit floats", lambda: Image.new("F", (64, 64)).save(path, "TIFF"))
    yield from _made(path, "an image of one pixel", lambda: Image.new("RGB", (1, 1)).save(path))
    yield from _made(path, "a link to a folder", lambda: path.symlink_to(folder.parent))
    yield from _made(path, "an empty folder", path.mkdir)

    def listening() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))

    yield from _made(path, "a socket", listening)
    if os.geteuid():
        yield from _made(path, "a file without permission", lambda: (path.write_bytes(whole), path.chmod(0)))


def _made(path: Path, what: str, make: Callable[[], object]) -> Iterator[str]:
    make()
    yield what
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def test_odd_images_are_named_and_the_rest_is_used(tmp_path: Path, tally: Tally) -> None:
    folder, run = tmp_path / "set", policy_of(tmp_path / "run")
    picture(folder / "good.png")
    nothing = {"a link to a folder", "an empty folder"}  # there is no image, odd or not
    for odd in _odd(folder):
        what = "an odd image in a folder: on_bad_image=skip, upscale FOLDER, evaluate"
        failure = None
        try:
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                source = HRFolder(folder, scale=4, size=32, on_bad_image="skip")
            if "good" not in source.images or (odd not in nothing and "odd" not in source.skipped):
                failure = f"{odd}: {source.images}, skipped {source.skipped}"
        except Exception as error:
            failure = f"{odd}: {type(error).__name__}: {error}"
        tally.add(what, failure)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        said = tmp_path / "said"
        code, _ = forked(
            ["upscale", str(folder), f"policy={run}", f"out={tmp_path / 'out'}"], tmp_path / "out", said=said
        )
        made, text = (tmp_path / "out" / "good.png").is_file(), said.read_text()
        named = code == 0 or "odd.png" in text
        right = made and named and code in (0, 2) and "Traceback" not in text
        tally.add(what, None if right else f"upscale with {odd}: {code}, {text[-200:]}")
        command = ["evaluate", f"policy={run}", "env=hr_folder", f"env.path={folder}", "env.size=32", "limit=1",
                   "env.on_bad_image=skip", "metrics=[psnr_y]", "pictures=0", f"out={tmp_path / 'scores'}"]  # fmt: skip
        code, _ = forked(command, tmp_path / "scores", said=said)
        tally.add(what, None if code == 0 else f"evaluate with {odd}: {code}, {said.read_text()[-200:]}")
    tally.settle(what)


def test_images_of_every_size_are_upscaled(tmp_path: Path, tally: Tally) -> None:
    what, run = "images of odd sizes, strips among them, upscaled by tiles", policy_of(tmp_path / "run")
    sizes = [(h, w) for h in (1, 2, 3, 7, 15, 16, 17, 31) for w in (1, 5, 47, 48, 49, 65, 97)]
    folder = tmp_path / "in"
    folder.mkdir()
    for h, w in sizes:
        Image.new("RGB", (w, h), (90, 120, 30)).save(folder / f"{h}x{w}.png")
        Image.new("RGB", (h, w), (90, 120, 30)).save(folder / f"t{h}x{w}.png")
    for sampling in ("mean", "sample"):
        out = tmp_path / sampling
        forked(["upscale", str(folder), f"policy={run}", "tile=48", "overlap=16", f"sampling={sampling}", "steps=1",
                f"out={out}"], out)  # fmt: skip
        for h, w in sizes:
            for name, size in ((f"{h}x{w}.png", (4 * w, 4 * h)), (f"t{h}x{w}.png", (4 * h, 4 * w))):
                made = (out / name).is_file() and Image.open(out / name).size == size
                tally.add(what, None if made else f"{sampling} {name}")
    tally.settle(what)


def test_degradations_keep_their_promises(tally: Tally) -> None:
    what, draws = "degradation: 8-bit, in range, the same by record, by batch, and by 1 or 2 threads", random.Random(8)
    before = torch.get_num_threads()
    for trial in range(300):
        preset, scale = list(PRESETS)[trial % len(PRESETS)], draws.choice((2, 3, 4))
        height, width = (scale * draws.randint(4, 90) for _ in range(2))
        hr = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(trial))
        seeds, made = [trial, trial + 1], []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                made.append(degrade(hr, preset, seed=seeds, scale=scale))
        finally:
            torch.set_num_threads(before)
        (lr, records), (other, _) = made
        alone, _ = degrade(hr[1:], preset, seed=seeds[1:], scale=scale)
        wrong = [name for name, right in {
            "range": bool(lr.isfinite().all() and lr.min() >= 0 and lr.max() <= 1),
            "8 bit": torch.allclose(lr * 255, (lr * 255).round(), atol=1e-4),
            "size": lr.shape == (2, 3, height // scale, width // scale),
            "threads": torch.equal(lr, other), "batch": torch.equal(lr[1:], alone),
            "record": json.loads(json.dumps(records)) == records,
        }.items() if not right]  # fmt: skip
        tally.add(what, f"{preset} x{scale} {height} x {width}: {wrong}" if wrong else None)
    tally.settle(what)
