#!/usr/bin/env bash
# The recipe of the weights that ship, from nothing: the data, three parts of training, the file. An hour and a half on two
# cores, and room for 15 GB.
# Stopped and run again it goes on: from the last checkpoint, or with the data if these were not whole.
# Everything goes into small/; `make small` runs this with the project's environment.
set -eu
project=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$project/small"
cd "$project/small"
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=  # two processes, a core each, as these weights were made

if [ ! -e datasets ]; then
    rm -rf data.partial
    mkdir data.partial
    (cd data.partial && "$project/datasets_prep/small_data.sh")
    mv data.partial/datasets .
    rm -r data.partial
fi
basicsr train -opt "$project/options/train_small.yml" --auto_resume
for part in longer last; do
    torchrun --standalone --nproc_per_node=2 -m wrcan_arch train -opt "$project/options/train_small_$part.yml" --auto_resume
done
basicsr convert experiments/train_small_last/models/net_g_latest.pth -o wrcan_small.safetensors --key params_ema \
    --dtype fp16
echo "small/wrcan_small.safetensors is there; benchmarks/held_out.py -w small/wrcan_small.safetensors scores it."
