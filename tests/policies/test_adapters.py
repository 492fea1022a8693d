"""Adapters: nothing changes until something is learnt, switching is exact, and nothing is lost on the way to disk."""

import pytest
import torch

from srgym.policies import Sampling, derive_seeds, load
from srgym.policies.compact import CompactPolicy

LR = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SEEDS = derive_seeds(0, 0, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))


def sample(policy):
    with torch.no_grad():
        return policy.rollout({"lr": LR}, Sampling(steps=3), SEEDS)["sr"]


def shake(policy, adapter):
    from srgym.policies import adapters

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in adapters.parameters(policy.core, adapter):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_fresh_adapters_change_nothing(tiny_policy):
    before = sample(tiny_policy)
    tiny_policy.add_adapters(rank=2, alpha=4)
    for name in ("default", "old", "ema", None):
        with tiny_policy.adapter(name):
            assert torch.equal(sample(tiny_policy), before)
    assert tiny_policy.same_adapters("default", "old")
    assert tiny_policy.same_adapters("default", "ema")


def test_the_learner_is_active_and_the_only_one_that_trains(tiny_policy):
    tiny_policy.add_adapters(rank=2, alpha=4)
    trained = {name for name, p in tiny_policy.named_parameters() if p.requires_grad}
    assert trained == {f"flow.{name}" for name, _ in tiny_policy.trainable_parameters()}
    assert trained and all(".default." in name for name in trained)
    with tiny_policy.adapter("old"), tiny_policy.adapter(None):
        assert {name for name, p in tiny_policy.named_parameters() if p.requires_grad} == trained


def test_every_adapter_tensor_gets_a_gradient(tiny_policy):
    tiny_policy.add_adapters(rank=2, alpha=4)
    shake(tiny_policy, "default")
    cond = tiny_policy.encode({"lr": LR})
    x = torch.randn(2, *tiny_policy.latent_shape(cond))
    tiny_policy.velocity(x, torch.tensor([0.3, 0.8]), cond).square().sum().backward()
    for name, parameter in tiny_policy.trainable_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_switching_selects_the_adapter_and_comes_back(tiny_policy):
    base = sample(tiny_policy)
    tiny_policy.add_adapters(rank=2, alpha=4)
    shake(tiny_policy, "default")
    learnt = sample(tiny_policy)
    assert (learnt - base).abs().max() > 1e-3
    with tiny_policy.adapter("old"):
        assert torch.equal(sample(tiny_policy), base)
        with tiny_policy.adapter("default"):
            assert torch.equal(sample(tiny_policy), learnt)
        assert torch.equal(sample(tiny_policy), base)
    assert torch.equal(sample(tiny_policy), learnt)


def test_an_unknown_adapter_is_named(tiny_policy):
    tiny_policy.add_adapters(rank=2, alpha=4)
    with (
        pytest.raises(ValueError, match="no adapter 'best': the model has default, old, ema"),
        tiny_policy.adapter("best"),
    ):
        pass


@pytest.mark.parametrize("target", ["old", "ema"])
def test_sync_is_the_weighted_mean(tiny_policy, target):
    from srgym.policies import adapters

    tiny_policy.add_adapters(rank=2, alpha=4)
    before = {n: p.detach().clone() for n, p in adapters.parameters(tiny_policy.core, target)}
    shake(tiny_policy, "default")
    tiny_policy.sync("default", target, decay=0.75)
    learner = dict(tiny_policy.trainable_parameters())
    for name, parameter in adapters.parameters(tiny_policy.core, target):
        expected = 0.75 * before[name] + 0.25 * learner[name.replace(f".{target}.", ".default.")]
        torch.testing.assert_close(parameter, expected)
    tiny_policy.sync("default", target)
    assert tiny_policy.same_adapters("default", target)


def test_saved_and_loaded_is_the_same_policy_raw_and_average(tmp_path, tiny_policy):
    """alpha is not the rank here: LoRA files without their scale would load as another model."""
    tiny_policy.add_adapters(rank=2, alpha=7)
    shake(tiny_policy, "default")
    tiny_policy.sync("default", "ema", decay=0.5)
    tiny_policy.save(tmp_path)
    loaded = load(tmp_path)
    for name in ("default", "ema", "old", None):
        with tiny_policy.adapter(name), loaded.adapter(name):
            assert torch.equal(sample(loaded), sample(tiny_policy))
    assert not loaded.same_adapters("default", "ema")


def test_merged_equals_unmerged_and_transplants_by_addition(tmp_path, tiny_policy):
    tiny_policy.save(tmp_path / "base")
    tiny_policy.add_adapters(rank=2, alpha=7)
    shake(tiny_policy, "default")
    merged = load(tmp_path / "base")
    merged.add_deltas(tiny_policy.adapter_deltas("default"))
    # float32 rounding of one product against another order of it
    torch.testing.assert_close(sample(merged), sample(tiny_policy), rtol=0, atol=1e-5)


def test_a_transplant_that_does_not_fit_names_the_tensor(tiny_policy):
    tiny_policy.add_adapters(rank=2, alpha=7)
    other = CompactPolicy(weights=None, encoder_width=8, encoder_depth=1, width=12, middle=8)
    with pytest.raises(ValueError, match=r"'enter\.weight': expected a delta of \(12, 18, 3, 3\), got \(8, 18, 3, 3\)"):
        other.add_deltas(tiny_policy.adapter_deltas())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank: expected at least 1, got 0"),
        ({"alpha": 0}, "lora.alpha: expected above 0, got 0"),
        ({"targets": ("nope",)}, "'nope'"),
    ],
)
def test_wrong_lora_settings_are_sentences(tiny_policy, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_policy.add_adapters(**{"rank": 2, "alpha": 4, **settings})


def test_adapters_are_added_once(tiny_policy):
    tiny_policy.add_adapters(rank=2)
    with pytest.raises(ValueError, match="added once"):
        tiny_policy.add_adapters(rank=2)


def test_a_snapshot_is_an_adapter_of_its_own_that_is_switched_synced_and_saved(tiny_policy, tmp_path):
    tiny_policy.add_adapters(rank=2, alpha=4)
    shake(tiny_policy, "default")
    tiny_policy.add_snapshot("anchor")
    assert tiny_policy.same_adapters("default", "anchor")
    with tiny_policy.adapter("anchor"):
        at_first = sample(tiny_policy)
    shake(tiny_policy, "default")
    assert not tiny_policy.same_adapters("default", "anchor")
    assert {name.rpartition(".lora_")[2] for name, _ in tiny_policy.trainable_parameters()} == {
        "A.default.weight", "B.default.weight"
    }  # fmt: skip
    tiny_policy.save(tmp_path)
    again = load(tmp_path)
    with again.adapter("anchor"):
        assert torch.equal(sample(again), at_first)
    tiny_policy.sync("default", "anchor")
    assert tiny_policy.same_adapters("default", "anchor")
    sentence = "no adapter 'ancor': the model has default, old, ema, anchor"
    with pytest.raises(ValueError, match=sentence), tiny_policy.adapter("ancor"):
        pass


def test_a_snapshot_of_nothing_leaves_the_policy_as_it_was(tiny_policy):
    tiny_policy.add_adapters(rank=2, alpha=4)
    sentence = "no adapter 'ancor': the model has default, old, ema$"
    for _ in range(2):
        with pytest.raises(ValueError, match=sentence):
            tiny_policy.add_snapshot("anchor", source="ancor")
        with pytest.raises(ValueError, match=sentence):
            tiny_policy.adapter_deltas("ancor")


def test_a_checkpoint_holds_snapshots(tiny_policy):
    from copy import deepcopy

    from srgym.runners.loop.state import load_policy_state, policy_state

    tiny_policy.add_adapters(rank=2, alpha=4)
    without, fresh = deepcopy(tiny_policy), deepcopy(tiny_policy)
    tiny_policy.add_snapshot("anchor")
    shake(tiny_policy, "anchor")
    fresh.add_snapshot("anchor")
    load_policy_state(fresh, policy_state(tiny_policy))
    with tiny_policy.adapter("anchor"), fresh.adapter("anchor"):
        assert torch.equal(sample(fresh), sample(tiny_policy))
    assert not fresh.same_adapters("default", "anchor")
    with pytest.raises(ValueError, match=r"has besides '.*\.anchor\.weight'"):
        load_policy_state(without, policy_state(tiny_policy))


def test_a_policy_without_adapters_keeps_no_snapshot(tiny_policy):
    with pytest.raises(ValueError, match="has no adapters to keep 'anchor' among"):
        tiny_policy.add_snapshot("anchor")


def test_identical_adapters_are_identical_files(tiny_policy, tmp_path):
    tiny_policy.add_adapters(rank=2, alpha=4)
    for name in "ab":
        tiny_policy.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_finished_policy_predicts_by_its_average(tiny_policy):
    tiny_policy.add_adapters(rank=2, alpha=4)
    shake(tiny_policy, "default")
    shake(tiny_policy, "ema")
    shake(tiny_policy, "ema")

    def under(name):
        with tiny_policy.adapter(name):
            seeds = derive_seeds(0, 0, torch.arange(2), stream="predict")
            with torch.no_grad():
                return tiny_policy.rollout({"lr": LR}, Sampling(steps=6), seeds)["sr"]

    assert torch.equal(tiny_policy.predict(LR), under("ema"))
    for name in ("default", None):
        assert torch.equal(tiny_policy.predict(LR, adapter=name), under(name))
    assert not torch.equal(under("ema"), under("default"))


def test_a_state_on_the_way_may_be_taken_up_again(tiny_policy):
    """From the recorded third state, two solvers that need no memory end where the whole rollout ended."""
    cond = tiny_policy.encode({"lr": LR[:1]})
    seeds = SEEDS[:1]
    with torch.no_grad():
        whole = tiny_policy.sample(cond, Sampling(steps=5, record=True), seeds)
        rest = tiny_policy.sample(cond, Sampling(steps=5, record=True), seeds, x=whole["latents"][:, 3], start=3)
        assert torch.equal(rest["x0"], whole["x0"])
        assert torch.equal(rest["latents"], whole["latents"][:, 3:])
        assert torch.equal(rest["t"], whole["t"][:, 3:])
        # Two samples that begin from one noise under other seeds are the same under an ODE, and not under an SDE.
        x = whole["latents"][:, 0].repeat(2, 1, 1, 1)
        ode = tiny_policy.sample(cond[[0, 0]], Sampling(steps=2), SEEDS[:2], x=x)["x0"]
        sde = tiny_policy.sample(cond[[0, 0]], Sampling(steps=2, solver="sde", noise_level=0.5), SEEDS[:2], x=x)["x0"]
        assert torch.equal(ode[0], ode[1])
        assert not torch.equal(sde[0], sde[1])


def test_a_snapshot_has_no_storage_where_the_model_has_none(toy):
    """So that the cost of an agent that keeps one is foretold."""
    from srgym.policies import adapters

    with torch.device("meta"):
        policy = toy.policy()
    policy.add_snapshot("reference")
    policy.sync("default", "reference")
    assert {p.device.type for _, p in adapters.parameters(policy.core, "reference")} == {"meta"}
