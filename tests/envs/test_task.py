"""The core: contexts by index, and scores of images made of them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from srgym import rewards
from srgym.envs import SRTask, sources
from srgym.rewards.base import Incompatible


def closeness(sr, hr):
    """Minus the mean absolute difference."""
    return -(sr - hr).abs().flatten(1).mean(1)


def seen(sr, group, index, degradation=None, prompt=None):
    """Tells what it is given."""
    assert degradation is None or len(degradation) == len(sr)
    assert prompt is None or len(prompt) == len(sr)
    return {"total": sr.mean((1, 2, 3)), "group": group.float(), "index": index.float()}


def wordy(sr, text):
    return torch.tensor([float(len(t)) for t in text])


def prompted(sr, prompt):
    return torch.tensor([float(len(p)) for p in prompt])


@pytest.fixture
def task(source, reward):
    return SRTask(sources.make(source), rewards.make(reward))


def test_a_context_is_its_samples(task):
    context = task.context([2, 0, 2])
    assert context.index.tolist() == [2, 0, 2] and context.index.dtype == torch.int64
    assert len(context) == 3 and len(task) == len(task.source) and context.scale == task.scale == 4
    for row, index in enumerate((2, 0, 2)):
        sample = task.source[index]
        assert context.ids[row] == sample.id and torch.equal(context.lr[row], sample.lr)
        if "hr" in task.source.provides:
            assert torch.equal(context.hr[row], sample.hr)
        if "degradation" in task.source.provides:
            assert context.degradation[row] == sample.degradation
    assert (context.hr is None) == ("hr" not in task.source.provides)
    assert (context.degradation is None) == ("degradation" not in task.source.provides)
    assert context.prompt is None


def test_threads_get_what_one_gets(task):
    wanted = [task.context([i % len(task)]) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: task.context([i % len(task)]), range(12)))
    assert all(torch.equal(a.lr, b.lr) for a, b in zip(wanted, got, strict=True))


def test_prompts_are_the_sources_own_or_one_text(source, reward):
    made, scored = sources.make(source), rewards.make(reward)
    assert SRTask(made, scored, prompts=True).context([1]).prompt == [made[1].prompt]
    assert SRTask(made, scored, prompts="a photograph").context([1, 0]).prompt == ["a photograph"] * 2


def test_score_repeats_contexts_contiguously(folders):
    task = SRTask(sources.make("hr_folder", path=folders["hr"]), rewards.make(closeness))
    context = task.context([0, 3])
    steps = torch.tensor([0.0, 0.1, 0.2]).view(1, 3, 1, 1, 1)
    sr = (context.hr[:, None] - steps).flatten(0, 1)  # away from HR by 0, .1, .2, for each context
    scored = task.score(context, sr)
    torch.testing.assert_close(scored.total, -torch.tensor([0.0, 0.1, 0.2] * 2))
    assert scored.valid.all()


def test_what_rewards_are_given(folders):
    source = sources.make("hr_folder", path=folders["hr"], captions=folders["texts"])
    task = SRTask(source, rewards.make(seen), prompts=True)
    context = task.context([3, 1])
    sr = torch.rand(4, 3, 64, 64)
    scored = task.score(context, sr)
    assert scored.components["group"].tolist() == [0, 0, 1, 1]
    assert scored.components["index"].tolist() == [3, 3, 1, 1]
    assert task.score(context, sr, torch.tensor([7, 7, 5, 5])).components["group"].tolist() == [7, 7, 5, 5]


def test_a_score_does_not_depend_on_the_batch(task):
    context = task.context([0, 1])
    height, width = (side * task.scale for side in context.lr.shape[2:])
    sr = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(0))
    together = task.score(context, sr).total
    apart = torch.cat([task.score(task.context([i]), sr[2 * i : 2 * i + 2]).total for i in (0, 1)])
    torch.testing.assert_close(together, apart)


def test_an_image_without_a_score_is_invalid(task):
    context = task.context([0])
    sr = torch.rand(2, 3, *(side * task.scale for side in context.lr.shape[2:]))
    sr[1, 0, 0, 0] = torch.nan
    scored = task.score(context, sr)
    assert scored.valid.tolist() == [True, False] and torch.isnan(scored.total).tolist() == [False, True]


def test_what_the_policy_makes_can_be_scored(folders):
    source = sources.make("lr_folder", path=folders["lr"])
    with pytest.raises(Incompatible, match="reward 'wordy' needs 'text', which the source 'lr_folder' doesn't give"):
        SRTask(source, rewards.make(wordy))
    task = SRTask(source, rewards.make(wordy), policy_gives={"text"})
    scored = task.score(task.context([0]), torch.rand(2, 3, 64, 64), text=["ab", "abc"])
    assert scored.total.tolist() == [2, 3]


def test_what_cannot_work_is_refused_with_what_would(folders):
    source = sources.make("lr_folder", path=folders["lr"])
    with pytest.raises(Incompatible) as raised:
        SRTask(source, rewards.make("psnr_y"))
    for part in ("reward 'psnr_y' needs 'hr'", "the source 'lr_folder'", "it gives 'lr'", "paired_folders", "compass"):
        assert part in str(raised.value)


def test_prompts_that_are_not_there(folders):
    source = sources.make("lr_folder", path=folders["lr"])
    with pytest.raises(Incompatible, match=r"prompts=True needs a source that has prompts, and 'lr_folder' has 'lr'"):
        SRTask(source, rewards.make("random"), prompts=True)
    with pytest.raises(Incompatible, match=r"needs 'prompt', .* or prompts=True"):
        SRTask(sources.make("lr_folder", path=folders["lr"], captions=folders["texts"]), rewards.make(prompted))
    task = SRTask(source, rewards.make(prompted), prompts="four")
    assert task.score(task.context([0, 1]), torch.rand(4, 3, 64, 64)).total.tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (2, 3, 16, 16), (2, 1, 64, 64), (3, 64, 64), (0, 3, 64, 64)])
def test_images_that_do_not_fit_are_refused(folders, shape):
    task = SRTask(sources.make("lr_folder", path=folders["lr"]), rewards.make("random"))
    with pytest.raises(ValueError, match=r"K images of each of 2 contexts as \[2 \* K, 3, 64, 64\], got"):
        task.score(task.context([0, 1]), torch.rand(shape))


def test_contexts_that_make_no_batch(tmp_path, draw):
    draw(tmp_path / "a.png", 8, 8)
    draw(tmp_path / "b.png", 8, 9)
    task = SRTask(sources.make("lr_folder", path=tmp_path), rewards.make("random"))
    with pytest.raises(ValueError, match=r"got 'a/0' of 8 x 8 and 'b/0' of 8 x 9: give the source 'lr_folder' a crop"):
        task.context([0, 1])
    assert task.context([1]).lr.shape == (1, 3, 8, 9)
    with pytest.raises(ValueError, match=r"at least one context, got \[0\]"):
        task.context([])
    with pytest.raises(IndexError):
        task.context([2])
