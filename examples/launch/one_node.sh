#!/bin/sh
# All GPUs of one machine. The same command goes on after an interruption, since the configuration says resume.
set -eu
exec torchrun --standalone --nproc_per_node "${GPUS:-8}" -m dipole train --config examples/launch/one_node.yaml
