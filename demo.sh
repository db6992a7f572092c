#!/usr/bin/env bash
# The demo, with the commands that you would type: blur photographs and restore them with this package's weights, then
# fine-tune these weights for a minute, test them before and after, and write pages with the results.
# Everything is written to demo/; `make demo` runs this in the project's environment.
set -eu
project=$(cd "$(dirname "$0")" && pwd)
rm -rf "$project/demo"
mkdir "$project/demo"
cd "$project/demo"

python "$project/datasets_prep/skimage_photos.py" photos
python "$project/datasets_prep/make_blur.py" photos/test -o datasets/demo_test --copies 2 --seed 3 --length 6 14 --files
basicsr restore datasets/demo_test_blur/{coffee,chelsea}_*.jpg -o restored --compare look
echo "Look at demo/look/index.html: photographs as they were and restored, with a slider. Now a short training:"

python "$project/datasets_prep/make_blur.py" photos/train -o datasets/demo_train --copies 6 --seed 1 \
    --quality 15-95 --still 0.25 --zoom 0.6 2 --dim 0.8
python "$project/datasets_prep/make_blur.py" photos/val -o datasets/demo_val --copies 4 --seed 2 \
    --quality 15-95 --still 0.25
basicsr train -opt "$project/options/train_wrcan_demo.yml"

# Sharp photographs too: a careless training takes decibels off them (docs/fine-tuning.md).
python "$project/datasets_prep/make_blur.py" photos/test -o datasets/demo_still --copies 1 --seed 3 \
    --quality 90 --still 1 --noise 0
basicsr test -opt "$project/options/test_wrcan_demo.yml" --force_yml name=test_small path:pretrain_network_g=small
basicsr test -opt "$project/options/test_wrcan_demo.yml"
echo "Blurred photographs (demo_test) and sharp ones (demo_still), by the weights that the training began with:"
basicsr report -opt "$project/options/test_wrcan_demo.yml" -o before.html \
    --force_yml name=test_small path:pretrain_network_g=small
echo "The same after the training:"
basicsr report -opt "$project/options/test_wrcan_demo.yml" --experiment experiments/train_wrcan_demo -o report.html
echo "Look at demo/report.html: the training's curve, and its photographs beside the sharp ones."
