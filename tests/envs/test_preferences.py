import io

import pytest
import torch
from PIL import Image
from tensordict import TensorDict

from srgym.envs.preferences import Preference, Preferences, write_preferences
from srgym.runners.preferences import pairs_of


def pair(seed, size=4, scale=2, **known):
    """A pair whose pixels are 8-bit values, so that writing loses nothing."""
    g = torch.Generator().manual_seed(seed)
    lr, win, lose = (
        torch.randint(256, (3, side, side + 2 * side // size), generator=g) / 255
        for side in (size, scale * size, scale * size)
    )
    return Preference(known.pop("id", f"photo/{seed}"), lr, win, lose, **known)


PAIRS = [pair(0, prompt='a cat, "quoted"', gap=0.25), pair(1), pair(2, id="photo/0", gap=1e-3)]


@pytest.fixture(params=["folder", "pairs.parquet"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_what_is_written_is_read(path):
    assert write_preferences(path, iter(PAIRS)) == 3
    data = Preferences(path)
    assert len(data) == 3 and data.scale == 2 and data.size == (4, 6)
    assert data.provides == {"lr", "preference", "prompt"}
    for number, written in enumerate(PAIRS):
        read = data.pair(number)
        for part in ("lr", "win", "lose"):
            torch.testing.assert_close(getattr(read, part), getattr(written, part), rtol=0, atol=1e-7)
        assert (read.id, read.prompt, read.gap) == (written.id, written.prompt, written.gap)
        sample = data[number]
        assert torch.equal(sample.lr, read.lr) and sample.hr is None and sample.id == written.id


def test_pairs_by_index_may_repeat(path):
    write_preferences(path, PAIRS)
    found = Preferences(path).pairs(torch.tensor([2, 0, 2]))
    assert found.batch_size == torch.Size([3])
    torch.testing.assert_close(found["win"][0], PAIRS[2].win, rtol=0, atol=1e-7)
    torch.testing.assert_close(found["lose"][1], PAIRS[0].lose, rtol=0, atol=1e-7)
    assert torch.equal(found["win"][0], found["win"][2])


def test_nothing_is_overwritten(path):
    write_preferences(path, PAIRS[:1])
    with pytest.raises(ValueError, match="there already"):
        write_preferences(path, PAIRS)
    assert len(Preferences(path)) == 1


def test_a_folder_needs_no_table(tmp_path):
    write_preferences(tmp_path, PAIRS)
    (tmp_path / "pairs.csv").unlink()
    data = Preferences(tmp_path)
    assert data.pair(1).id == "000001" and data.pair(0).prompt is None and data.provides == {"lr", "preference"}


def test_an_incomplete_pair_is_named(tmp_path):
    write_preferences(tmp_path, PAIRS)
    (tmp_path / "loser" / "000001.png").unlink()
    with pytest.raises(ValueError, match=r"'000001' has no image in loser"):
        Preferences(tmp_path)


def test_sizes_that_do_not_fit_are_named(path):
    wrong = Preference("x", PAIRS[0].lr, PAIRS[0].win, PAIRS[0].lose[:, :6])
    write_preferences(path, [PAIRS[1], wrong])
    with pytest.raises(ValueError, match=r"winner and a loser of one size.*loser \(6, 12\)"):
        Preferences(path)


def test_one_scale_for_all(path):
    write_preferences(path, [pair(0), pair(1, scale=3)])
    with pytest.raises(ValueError, match="expected one scale for all pairs, got 2 and.*3"):
        Preferences(path)


def test_a_scale_that_is_not_the_pairs_is_refused(path):
    write_preferences(path, PAIRS)
    assert Preferences(path, scale=2).scale == 2
    with pytest.raises(ValueError, match="expected pairs of scale 4, got pairs of scale 2"):
        Preferences(path, scale=4)


def test_splits_keep_a_photographs_pairs_together(path):
    write_preferences(path, [pair(seed, id=f"photo{seed // 2}/{seed}") for seed in range(20)])
    parts = [
        {data.pair(i).id.split("/")[0] for i in range(len(data))}
        for data in (Preferences(path, split=split) for split in ("train", "validation", "test"))
    ]
    assert sorted(photograph for part in parts for photograph in part) == sorted(f"photo{n}" for n in range(10))
    assert [len(part) for part in parts] == [8, 1, 1]


def test_contexts_of_different_sizes_have_no_common_size(path):
    write_preferences(path, [pair(0), pair(1, size=6)])
    assert Preferences(path).size is None


def test_parquet_of_image_structs_is_read(tmp_path):
    """The layout of datasets whose image columns are {bytes, path}, without the optional columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def encoded(image):
        stream = io.BytesIO()
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(stream, format="PNG")
        return {"bytes": stream.getvalue(), "path": "x.png"}

    parts = zip(("context", "winner", "loser"), (PAIRS[0].lr, PAIRS[0].win, PAIRS[0].lose), strict=True)
    pq.write_table(pa.Table.from_pylist([{name: encoded(image) for name, image in parts}]), tmp_path / "p.parquet")
    read = Preferences(tmp_path / "p.parquet").pair(0)
    torch.testing.assert_close(read.win, PAIRS[0].win, rtol=0, atol=1e-7)
    assert read.id == "row 0" and read.gap is None


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected preferences at"):
        Preferences(tmp_path / "nowhere")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"text\.parquet: expected a Parquet file"):
        Preferences(tmp_path / "text.parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"context": [b"x"], "winner": [b"x"]}), tmp_path / "short.parquet")
    with pytest.raises(ValueError, match=r"expected the columns context, winner, loser, got context, winner"):
        Preferences(tmp_path / "short.parquet")
    pq.write_table(pa.table({k: [b"x"] for k in ("context", "winner", "loser")}), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"row 0: expected the bytes of an image"):
        Preferences(tmp_path / "bad.parquet")


def test_pairs_of_a_rollout_are_its_best_against_its_worst():
    score = torch.tensor([0.2, 0.9, 0.5, 0.4, 0.1, 0.3])
    sr = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 8, 8) / 10
    rollout = TensorDict(
        {
            "lr": torch.rand(2, 3, 4, 4).repeat_interleave(3, 0), "sr": sr, "reward": score,
            "group": torch.tensor([0, 0, 0, 1, 1, 1]), "valid": torch.tensor([True] * 5 + [False]),
        },
        batch_size=[6],
    )  # fmt: skip
    pairs = pairs_of(rollout, 3, ["a/0", "b/0"], prompts=["one", "two"])
    assert [(p.id, p.prompt) for p in pairs] == [("a/0", "one"), ("b/0", "two")]
    assert pairs[0].gap == pytest.approx(0.7) and pairs[1].gap == pytest.approx(0.3)
    assert pairs[0].win[0, 0, 0].item() == pytest.approx(0.1) and pairs[0].lose[0, 0, 0].item() == 0.0
    assert len(pairs_of(rollout, 3, ["a/0", "b/0"], min_gap=0.5)) == 1


def test_it_is_a_source_that_offline_dpo_accepts(path, tiny_policy):
    from srgym.agents import DPO
    from srgym.envs.sources import make
    from srgym.rewards.base import Incompatible

    write_preferences(path, [pair(0, scale=4), pair(1, scale=4)])
    source = make("srgym.envs.preferences:Preferences", path=str(path))
    tiny_policy.add_adapters(rank=2, alpha=2.0)
    agent = DPO(tiny_policy, pairs="offline", provides=source.provides)
    lr = torch.stack([source[i].lr for i in range(2)])
    batch = source.pairs(torch.arange(2))
    batch["cond"], batch["seed"] = tiny_policy.encode({"lr": lr}).detach(), torch.arange(2)
    agent.loss(agent.prepare(batch))["loss_policy"].backward()
    assert any(p.grad.abs().sum() > 0 for _, p in tiny_policy.trainable_parameters())
    with pytest.raises(Incompatible, match=r"pairs='offline' needs a preference dataset"):
        DPO(tiny_policy, pairs="offline", provides={"lr", "hr"})


def test_offline_dpo_is_trained_by_the_runner(tmp_path):
    """The command of the module's documentation, on three pairs."""
    from srgym.runners import make_runner

    write_preferences(tmp_path / "pairs", [pair(seed, scale=4) for seed in range(3)])
    run = make_runner(
        "env=preferences", f"env.path={tmp_path / 'pairs'}", "agent=dpo", "agent.pairs=offline", "reward=random",
        "heldout=null", "policy.weights=null", "policy.encoder_width=8", "policy.encoder_depth=1", "policy.width=8",
        "policy.middle=8", "lora.rank=2", "runner.iterations=2", "runner.contexts=2", "logger=csv",
        "runner.threads=1", f"out={tmp_path / 'run'}",
    )  # fmt: skip
    cost = run.learn()["main"]
    assert cost["updates"] == 2
    assert "agent/pairs" in (tmp_path / "run" / "stages" / "main" / "metrics.csv").read_text()
