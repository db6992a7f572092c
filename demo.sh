#!/usr/bin/env bash
# The demo, with the commands that you would type: blur photographs and restore them with this package's weights, then
# fine-tune these weights for a minute, test them and write a page with the results.
# Everything is written to demo/; `make demo` runs this in the project's environment.
set -eu
project=$(cd "$(dirname "$0")" && pwd)
rm -rf "$project/demo"
mkdir "$project/demo"
cd "$project/demo"

python "$project/datasets_prep/skimage_photos.py" photos
python "$project/datasets_prep/make_blur.py" photos/test -o datasets/demo_test --copies 2 --seed 3 --files
basicsr restore datasets/demo_test_blur -o restored --compare look
echo "Look at demo/look/index.html: photographs as they were and restored, with a slider. Now a short training:"

python "$project/datasets_prep/make_blur.py" photos/train -o datasets/demo_train --copies 6 --seed 1
python "$project/datasets_prep/make_blur.py" photos/val -o datasets/demo_val --copies 2 --seed 2
basicsr train -opt "$project/options/train_wrcan_demo.yml"
basicsr test -opt "$project/options/test_wrcan_demo.yml"
basicsr report -opt "$project/options/test_wrcan_demo.yml" --experiment experiments/train_wrcan_demo -o report.html
echo "Look at demo/report.html: the training's curve, and its photographs beside the sharp ones."
