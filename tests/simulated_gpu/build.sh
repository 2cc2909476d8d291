#!/usr/bin/env bash
# Put torch's CUDA build and the simulated CUDA runtime into a virtual environment, with what this
# project needs besides torch. README.md beside this file says what can be done with it.
#
#   build.sh VENV      make VENV, or bring it up to date
#
# TORCH is torch's version (2.11.0). WHEELS is a folder to keep its wheel in, of some 530 MB; without it
# pip's own cache does.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:?usage: build.sh VENV}
torch=${TORCH:-2.11.0}

for tool in gcc nm readelf; do
  command -v "$tool" >/dev/null || { echo "build.sh: $tool is missing: install gcc and binutils" >&2; exit 1; }
done
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
python=$venv/bin/python
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }

# The wheel for CUDA without the packages of NVIDIA's libraries, which are what is simulated.
have=$("$python" -c 'import torch.version as v; print(v.__version__.partition("+")[0], v.cuda is not None)' 2>/dev/null || true)
if [ "$have" != "$torch True" ]; then
  if [ -n "${WHEELS:-}" ]; then
    mkdir -p "$WHEELS"
    pip download --no-deps --dest "$WHEELS" --find-links "$WHEELS" "torch==$torch"
    pip install --no-deps --no-index --find-links "$WHEELS" "torch==$torch"
  else
    pip install --no-deps "torch==$torch"
  fi
fi

# What torch and this project need of Python. pip complains that torch lacks what was left out.
"$python" "$here/requirements.py" "$here/../../pyproject.toml" >"$venv/requirements.txt"
pip install --requirement "$venv/requirements.txt" 2> >(grep -v "dependency resolver\|which is not installed" >&2 || true)

site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" "$here/generate.py" "$site/torch/lib" "$site/nvidia/cu13/lib" # where torch's RPATH looks
"$python" -c 'import torch; print("torch", torch.__version__, "on", torch.cuda.get_device_name(0))'
