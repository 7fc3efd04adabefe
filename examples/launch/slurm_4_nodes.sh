#!/bin/bash
# Four nodes with eight GPUs under Slurm. Status: run in the tests with two launchers on one CPU and
# replacements for Slurm's commands; not run on a cluster.
# sbatch examples/launch/slurm_4_nodes.sh dino_vits16_in1k --data DATA --output RUN
# DATA and RUN must be on a file system that all nodes share. Submit the same command again to resume.
#SBATCH --job-name=selfvit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
# Two minutes before its time is over, the run is asked to save and stop.
#SBATCH --signal=TERM@120
set -euo pipefail

config="${CONFIG:-examples/launch/4_nodes_ddp.yaml}"  # or CONFIG=examples/launch/4_nodes_fsdp2.yaml
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

output=""
previous=""
for argument in "$@"; do
    if [[ "$previous" == "--output" || "$previous" == "-o" ]]; then output="$argument"; fi
    if [[ "$argument" == --output=* ]]; then output="${argument#--output=}"; fi
    previous="$argument"
done
resume=()
if [[ -f "$output/training.yaml" ]]; then resume=(--resume); fi

# One launcher per node. Each starts one process per GPU and connects to the head node.
srun --kill-on-bad-exit=1 bash -c '
    config="$1" head_node="$2"; shift 2
    exec accelerate launch --config_file "$config" \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$head_node" \
        --main_process_port "${PORT:-29500}" \
        -m selfvit.training.train "$@"
' launcher "$config" "$head_node" "$@" ${resume[@]+"${resume[@]}"}
