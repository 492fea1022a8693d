"""Run by the interpreter of vLLM's environment: scores images through `vllm.LLM` and prints the scores as JSON.

in_process.py MODEL IMAGES, where IMAGES is a safetensors file with `lr` and `sr`.
"""

import json
import sys

from safetensors.torch import load_file

from srgym.rewards.compass.mllm import MLLMScorer, SoftScorer
from srgym.rewards.serving.local import VLLMEngine


def main(model: str, images: str) -> None:
    held = load_file(images)
    engine = VLLMEngine(
        model,
        dtype="float32",
        enforce_eager=True,
        skip_mm_profiling=True,
        distributed_executor_backend="uni",
        max_model_len=4096,
        max_num_seqs=16,
        max_num_batched_tokens=4096,
    )
    scores = {}
    for name, scorer in (("mllm", MLLMScorer(engine)), ("soft", SoftScorer(engine))):
        scores[name] = [column.tolist() for column in scorer(held["lr"], held["sr"])]
    print("scores: " + json.dumps(scores), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
