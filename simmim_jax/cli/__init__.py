"""The `simmim` command: argument parsing and printing, nothing else."""
