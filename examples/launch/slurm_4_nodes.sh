#!/bin/bash
# Four nodes of eight GPUs under Slurm. Status: run in the tests with two launchers of one machine, on
# its CPU, by stand-ins for Slurm's commands; not run on a cluster.
# sbatch examples/launch/slurm_4_nodes.sh dino_vits16_in1k --data DATA --output OUT
# DATA and OUT must be on a file system that all nodes share. Submit the same line again to go on.
#SBATCH --job-name=selfvit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
# two minutes before the end of its time the run is asked to save and stop
#SBATCH --signal=TERM@120
set -euo pipefail

config="${CONFIG:-examples/launch/4_nodes_ddp.yaml}"  # or CONFIG=examples/launch/4_nodes_fsdp2.yaml
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

output=""
previous=""
for argument in "$@"; do
    if [[ "$previous" == "--output" ]]; then output="$argument"; fi
    if [[ "$argument" == --output=* ]]; then output="${argument#--output=}"; fi
    previous="$argument"
done
resume=()
if [[ -f "$output/training.yaml" ]]; then resume=(--resume true); fi

# One launcher a node; each starts a process for each GPU and meets the others at the head node.
srun --kill-on-bad-exit=1 bash -c '
    config="$1" head_node="$2"; shift 2
    exec accelerate launch --config_file "$config" \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$head_node" \
        --main_process_port "${PORT:-29500}" \
        -m selfvit.training.train "$@"
' launcher "$config" "$head_node" "$@" ${resume[@]+"${resume[@]}"}
