"""Environments: making any Gymnasium environment by id, vectorised and checked."""

from gumbelrl.envs.make import (
    FiniteCheck,
    MakeEnvError,
    NonFiniteError,
    make_env,
    make_vec_env,
    nearest_ids,
)

__all__ = [
    "FiniteCheck",
    "MakeEnvError",
    "NonFiniteError",
    "make_env",
    "make_vec_env",
    "nearest_ids",
]
