#!/usr/bin/env bash
# Makes the bundled weights from nothing: the data, three parts of training, the weight file. This takes an hour and a
# half on two cores, and 15 GB of disk. Run again after a stop, it resumes from the last checkpoint; data that was not
# complete is made anew.
# Everything is written to small/; `make small` runs this in the project's environment.
set -eu
project=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$project/small"
cd "$project/small"
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=  # two processes with a core each, as for the bundled weights

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
