#!/bin/sh
# From a folder of one's own images and one's own network to a bundle; see docs/own-model.md.
#
#   sh own_model.sh IMAGES SIDE CLASSES [any option of `advprune run`]
#
# Begin it in the folder that holds own_network.py. Without options it trains for long; for a first
# try give --preset subset, or few epochs: --set adversarial.epochs=2 and so on.
set -eu
images=$1 side=$2 classes=$3
shift 3
advprune=${ADVPRUNE:-advprune}

# What of the network can be pruned, before anything is trained.
$advprune models own_network:plates --image-size "$side" --classes "$classes"

# Are the images as they must be, and enough of them?
$advprune data check "$images" --image-size "$side"

# Can this network read them, and how long will it take?
$advprune plan --model own_network:plates --data "folder:$images" --image-size "$side" "$@"

# All stages, to the verdict. 10 or 11 say that it did not pass, and the report says why.
status=0
$advprune run --model own_network:plates --data "folder:$images" --image-size "$side" "$@" || status=$?
case $status in 0 | 10 | 11) ;; *) exit "$status" ;; esac

# What ships, packed; and what whoever receives it does first.
$advprune bundle runs/latest --out plates
$advprune bundle verify plates
exit "$status"
