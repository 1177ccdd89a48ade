"""The fair experiment: a grid of agents x environments x seeds, run, counted and reported; and the
search for an agent's settings, behind the same launchers.

| module | what it holds |
|---|---|
| `experiment` | configs/experiment/*.yaml, read and checked |
| `grid` | the points of an experiment, and the manifest grid.json that maps them to run folders |
| `run_job` | one grid point: begun, resumed or skipped, and what became of it |
| `launchers`, `ray_launcher` | many of them, on this machine or on a Ray cluster |
| `search_settings`, `search_space` | configs/search/*.yaml, read and checked |
| `trials` | Optuna: suggestions, pruning, and the file that keeps them |
| `search_loop` | trials asked for, run, watched and told |
| `search_results` | best.yaml, trials.csv, the end of a search |
| `grid_display` | what the user sees meanwhile |
| `wandb_grid` | what its runs share on Weights & Biases, and the run that sums them up |
"""
