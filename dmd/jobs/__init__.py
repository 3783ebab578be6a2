"""How a job runs on machines: processes, signals, GPUs, SLURM, its command line and its log."""
