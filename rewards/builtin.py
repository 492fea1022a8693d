"""Where the library's own rewards are: imported when asked for, and described by their own `register_reward`."""

__all__ = ["BUILTIN"]

BUILTIN = {
    "psnr_y": "srgym.rewards.fidelity:psnr_y",
    "psnr_chroma": "srgym.rewards.fidelity:psnr_chroma",
    "ssim_y": "srgym.rewards.fidelity:ssim_y",
    "ms_ssim": "srgym.rewards.fidelity:ms_ssim",
    "attribute_aware": "srgym.rewards.attribute_aware:AttributeAware",
    "structure_texture": "srgym.rewards.structure_texture:structure_texture",
    "dists": "srgym.rewards.perceptual:DISTS",
    "lpips": "srgym.rewards.perceptual:LPIPS",
    "lite0_features": "srgym.rewards.deep_features:Lite0Features",
    "lite0_statistics": "srgym.rewards.deep_features:Lite0Statistics",
    "ssimulacra2": "srgym.rewards.judges:SSIMULACRA2",
    "flip": "srgym.rewards.judges:FLIP",
    "compass": "srgym.rewards.compass.formula:Compass",
    "finpercep": "srgym.rewards.finpercep.reward:FinPercep",
    "realsr_r1": "srgym.rewards.realsr_r1.reward:RealSRR1",
    "lucid_consistency": "srgym.rewards.lucid.reward:LucidConsistency",
    "refreward": "srgym.rewards.refreward:RefReward",
    "random": "srgym.rewards.toys:Random",
    "random_network": "srgym.rewards.toys:RandomNetwork",
    "shuffled": "srgym.rewards.toys:Shuffled",
    "niqe": "srgym.rewards.iqa:NIQE",
    "musiq": "srgym.rewards.iqa:MUSIQ",
    "maniqa": "srgym.rewards.iqa:MANIQA",
    "clipiqa": "srgym.rewards.iqa:CLIPIQA",
    "topiq_nr": "srgym.rewards.iqa:TOPIQ",
    "liqe": "srgym.rewards.iqa:LIQE",
}
