#!/usr/bin/env bash
# Makes the data of the bundled weights (options/train_small.yml) in the current folder, from dead leaves that it draws
# and the photographs in scikit-image's wheel. coffee and chelsea are in photos/test, which is not used here.
# `make small` runs this first.
set -eu
prep=$(cd "$(dirname "$0")" && pwd)

python "$prep/skimage_photos.py" photos
python "$prep/dead_leaves.py" leaves --count 400 --size 384 --seed 1

# Half of all pairs are for the paper's task, quality 25, the rest for the general one. In a quarter of all pairs
# nothing moves, so that the network learns to leave good photographs alone. Enlarged views are soft without motion
# blur: most photographs are softer than dead leaves, and their softness is not blur to remove.
view=(--grid 15 --zoom 0.6 2 --dim 0.8)
make_pairs() { # $1: folder of pictures; $2: exposures of each for the general task
    python "$prep/make_blur.py" "$1" -o "$(basename "$1")_paper" --copies $((2 * $2)) --seed 1 "${view[@]}" \
        --length 0.5 18
    python "$prep/make_blur.py" "$1" -o "$(basename "$1")_general" --copies "$2" --seed 2 "${view[@]}" --length 0 14 \
        --quality 15-95
    python "$prep/make_blur.py" "$1" -o "$(basename "$1")_still" --copies "$2" --seed 3 "${view[@]}" --length 0 0 \
        --noise 0.5 --quality 40-100
}
make_pairs leaves 1
make_pairs photos/train 24
python "$prep/join_stores.py" {leaves,train}_{paper,general,still} -o datasets/small_train --store raw

# train_small_longer.yml also trains on what a good camera records of a still scene.
python "$prep/make_blur.py" photos/train -o train_good --copies 24 --seed 5 "${view[@]}" --length 0 0 --noise 0.5 \
    --quality 80-100
python "$prep/join_stores.py" {leaves,train}_{paper,general,still} train_good -o datasets/small_longer_train --store raw

# train_small_last.yml also trains on pictures out of focus in places, as most photographs are: soft, and to stay so.
view+=(--soft 3)
python "$prep/make_blur.py" leaves -o leaves_soft --copies 1 --seed 6 "${view[@]}" --length 0.5 18
python "$prep/make_blur.py" photos/train -o train_soft --copies 24 --seed 6 "${view[@]}" --length 0.5 18
python "$prep/make_blur.py" photos/train -o still_soft --copies 12 --seed 7 "${view[@]}" --length 0 0 --noise 0.5 \
    --quality 40-100
python "$prep/join_stores.py" {leaves,train}_{paper,general,still,soft} train_good still_soft -o datasets/small_last_train \
    --store raw

python "$prep/dead_leaves.py" leaves_val --count 6 --size 320 --seed 2
python "$prep/make_blur.py" photos/val leaves_val -o datasets/small_val --copies 2 --seed 4 --grid 15
