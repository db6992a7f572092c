#!/usr/bin/env bash
# The demo, as anyone would do it by hand: photographs, blurred pairs, training, test, restoring, a page to look at.
# Everything goes into demo/; `make demo` runs this with the project's environment.
set -eu
project=$(cd "$(dirname "$0")" && pwd)
rm -rf "$project/demo"
mkdir "$project/demo"
cd "$project/demo"

python "$project/datasets_prep/skimage_photos.py" photos
python "$project/datasets_prep/make_blur.py" photos/train -o datasets/demo_train --copies 6 --seed 1
python "$project/datasets_prep/make_blur.py" photos/val -o datasets/demo_val --copies 2 --seed 2
python "$project/datasets_prep/make_blur.py" photos/test -o datasets/demo_test --copies 2 --seed 3 --files

basicsr train -opt "$project/options/train_wrcan_demo.yml"
basicsr test -opt "$project/options/test_wrcan_demo.yml"
basicsr restore datasets/demo_test_blur -o restored -w experiments/train_wrcan_demo/models/net_g_best.pth --ensemble --format png
basicsr report -opt "$project/options/test_wrcan_demo.yml" --experiment experiments/train_wrcan_demo -o report.html
echo "Look at demo/report.html; the restored photographs are in demo/restored/."
