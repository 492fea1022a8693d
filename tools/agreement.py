"""How far judges that see the truth agree on one policy's samples of a context: the ceiling of any scorer that doesn't.

    python tools/agreement.py POLICY [MORE]

POLICY is a folder that a run saved, MORE one of further photographs (`tools/photographs.py`). Prints Spearman's rank
correlations among eight samples of a context, means over 32 contexts of the validation photographs, and what each judge
takes for an image.
"""

import sys
import time

import numpy as np
import torch
from scipy.stats import spearmanr

from srgym import policies, rewards
from srgym.envs import sources
from srgym.policies import Sampling, derive_seeds

JUDGES = (
    "psnr_y",
    "ssim_y",
    "structure_texture",
    "ssimulacra2",
    "flip",
    "lite0_features",
    "lite0_statistics",
    "compass",
)
CONTEXTS, SAMPLES = 32, 8


def agreement(policy: policies.FlowPolicy, source: sources.Source) -> tuple["np.ndarray", dict[str, float]]:
    """Mean rank correlations [J, J] of `JUDGES`, and milliseconds an image of each."""
    judges = {name: rewards.make(name) for name in JUDGES}
    spent, tables = dict.fromkeys(JUDGES, 0.0), []
    for i in np.linspace(0, len(source) - 1, CONTEXTS).astype(int).tolist():
        sample = source[i]
        seeds = derive_seeds(0, 0, torch.full((SAMPLES,), i), torch.arange(SAMPLES))
        with torch.no_grad():
            sr = policy.rollout({"lr": sample.lr[None]}, Sampling(), seeds)["sr"]
        lr, hr = (image.expand(SAMPLES, -1, -1, -1) for image in (sample.lr, sample.hr))
        scores = []
        for name, judge in judges.items():
            started = time.perf_counter()
            scores.append(judge(sr, lr=lr, hr=hr).total.numpy())
            spent[name] += 1000 * (time.perf_counter() - started) / (CONTEXTS * SAMPLES)
        tables.append(spearmanr(np.stack(scores, 1)).statistic)
    return np.nanmean(np.stack(tables), 0), spent


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("expected a policy's folder, and perhaps one of photographs: python tools/agreement.py POLICY [MORE]")
    shown = sources.make("photographs", split="validation", size=96, more=sys.argv[2] if len(sys.argv) == 3 else None)
    table, cost = agreement(policies.load(sys.argv[1]), shown)
    print("| | " + " | ".join(JUDGES) + " | ms |")
    print("| --- |" + " ---: |" * (len(JUDGES) + 1))
    for name, row in zip(JUDGES, table, strict=True):
        print(f"| {name} | " + " | ".join(f"{value:+.2f}" for value in row) + f" | {cost[name]:.0f} |")
