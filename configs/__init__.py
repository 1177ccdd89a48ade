"""Hydra configuration groups (agent/, env/, tracking/, config.yaml) and what composes them."""
