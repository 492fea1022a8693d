"""What a training of 8B will need: known sizes, and what a shipped configuration of FSDP2 names."""

from pathlib import Path

import pytest

pytest.importorskip("trl")

from srgym.runners.commands.cli import main
from srgym.runners.judges.planning import bytes_per_gpu, model_sizes, plan
from srgym.runners.judges.tiny import write_tiny
from srgym.runners.judges.trainer import Lora, TrainSettings

GIB = 2**30


def test_the_8b_model_has_its_published_size_and_needs_16_bytes_a_parameter_on_all_gpus_together():
    sizes = model_sizes(None, rank=64)
    assert sizes.whole / 1e9 == pytest.approx(8.767, abs=5e-4)
    assert sizes.vision / 1e9 == pytest.approx(0.58, abs=5e-3)
    full = TrainSettings("8b", autocast=True, gradient_checkpointing=True, microbatch=1)
    for gpus, gib in ((1, 131), (8, 16.3)):
        found = bytes_per_gpu(sizes, full, gpus, 1100)
        assert found["weights, gradients, moments"] / GIB == pytest.approx(gib, rel=0.01)
    lora = TrainSettings("8b", tuning="lora", dtype="bfloat16", lora=Lora(rank=64))
    found = bytes_per_gpu(sizes, lora, 8, 1100)
    assert (found["frozen weights"] + found["LoRA"]) / GIB == pytest.approx(19, rel=0.01)
    # One sequence's logits in float32, and their gradient.
    assert bytes_per_gpu(sizes, full, 8, 1100)["logits"] == 2 * 4 * 1100 * 151936


def test_a_model_that_is_here_is_counted_by_its_own_configuration(tmp_path):
    from safetensors.torch import load_file

    folder = write_tiny(tmp_path, width=64, layers=2)
    held = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert model_sizes(folder, rank=4).whole == held
    told = plan(TrainSettings(str(folder), batch=8, epochs=2, max_pixels=64 * 64), folder, 40, 1)
    assert "10 steps of 8 rows" in told


@pytest.mark.parametrize(("config", "said"), [
    ("compass_8b", "28800 rows, 2285 tokens each at most, 3600 steps of 64 rows"),
    ("refreward_8b", "18000 rows, 2201 tokens each at most"),
])  # fmt: skip
def test_the_shipped_configurations_say_what_they_need(config, said, capsys):
    assert main(["judge", "train", f"config={config}", "--dry-run", "gpus=8"]) == 0
    told = capsys.readouterr().out
    assert said in told
    assert "GiB on each of 8 GPU(s): weights, gradients, moments 16.3" in told
    assert "missing here: expected a model's folder with a config.json at 'models/Qwen3-VL-8B-Instruct'" in told


def test_the_layers_that_fsdp_wraps_are_the_models_and_accelerate_reads_the_file():
    from accelerate.commands.config.config_args import load_config_from_file
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    path = Path(__file__).parents[3] / "configs" / "accelerate" / "fsdp2_8.yaml"
    config = load_config_from_file(str(path))
    assert (config.num_processes, config.fsdp_config["fsdp_version"]) == (8, 2)
    for name in config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(","):
        assert hasattr(modeling_qwen3_vl, name)
