#!/bin/sh
# bench/onnx.py on a GPU machine that reaches no network and takes at most 64 MiB at a time. Not run so far: no such
# machine was at hand when this was written.
#
#   sh bench/onnx_gpu.sh pack          here: the wheels, cut into .gpu/piece.00, piece.01, .. of 40 MiB
#   sh bench/onnx_gpu.sh keep          there, once with each piece (and .gpu/sums) carried: it is kept in $KEEP
#   sh bench/onnx_gpu.sh run [ARGS]    there: join, install into $KEEP/site, check, measure; results go to $OUT
#
# The 255 MB wheel of onnxruntime-gpu is for CUDA 13 and Python 3.12; CUDA's and cuDNN's libraries are those that torch
# brought; torch, onnx and onnxscript are taken to be there. Carry one piece a call, on one machine: what `keep` stored
# is gone with it. ODEDIFF_COMMIT names the commit where there is no git.
set -eu
KEEP=${KEEP:-/tmp/onnx_gpu}
OUT=${OUT:-$KEEP/results}
WHEELS=${WHEELS:-onnxruntime-gpu==1.31.0 diffusers==0.42.1 importlib-metadata}

case "${1:-}" in
pack)
    rm -rf .gpu && mkdir -p .gpu/wheels
    for name in $WHEELS; do
        python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
            --dest .gpu/wheels "$name"
    done
    tar -C .gpu -cf - wheels | split -b 40M -d - .gpu/piece.
    (cd .gpu && sha256sum piece.* > sums)
    rm -r .gpu/wheels
    ls -l .gpu
    ;;
keep)
    mkdir -p "$KEEP"
    cp .gpu/piece.* .gpu/sums "$KEEP"
    ls -l "$KEEP"
    ;;
run)
    shift
    (cd "$KEEP" && sha256sum --check --quiet sums && cat piece.* | tar -xf -)
    python3 -m pip install --quiet --no-index --no-deps --upgrade --target "$KEEP/site" "$KEEP"/wheels/*.whl
    mkdir -p "$OUT"
    export PYTHONPATH="$KEEP/site:$PWD"
    python3 -c 'import torch, onnxruntime as o; print(torch.__version__, o.__version__, o.get_available_providers())'
    python3 bench/onnx.py --provider cuda --out "$OUT" "$@"
    ;;
*)
    sed -n '2,12p' "$0"
    exit 2
    ;;
esac
