"""The fair experiment: a grid of agents x environments x seeds, run, counted and reported.

| module | what it holds |
|---|---|
| `experiment` | configs/experiment/*.yaml, read and checked |
| `grid` | the points of an experiment, and the manifest grid.json that maps them to run folders |
| `run_job` | one grid point: begun, resumed or skipped, and what became of it |
| `launchers`, `ray_launcher` | many of them, on this machine or on a Ray cluster |
| `grid_display` | what the user sees meanwhile |
| `wandb_grid` | what its runs share on Weights & Biases, and the run that sums them up |
"""
