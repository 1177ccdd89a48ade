"""Hydra configuration groups: agent/, env/, tracking/ and the root config.yaml."""
