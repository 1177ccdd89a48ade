"""Settings tuned for one agent on one environment: configs/tuned/<ENV-ID>.yaml.

A file has one section per agent, by its name in `gumbelrl.agents.AGENTS`:

    ppo:
      from: rl_zoo3 2.9.2 ppo.yml, for 100,000 steps     # where the values come from
      agent: {n_steps: 32, gamma: 0.98}                   # keys of the agent group
      env: {n_envs: 8}                                    # keys of the env group

They stand between the defaults and the command line. An id's "/" is "_" in the file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from gumbelrl.configs.compose import ConfigError, check_group, nearest, replace_override

TUNED_DIR = Path(__file__).parent / "tuned"
KEYS = ("from", "agent", "env")
_CHOSEN = ("_target_", "id")  # what a section belongs to, so not what it can set


@dataclass(frozen=True)
class TunedSettings:
    """One section of a file.

    Args:
        file: where it stands.
        agent_name: its name there.
        source: where the values come from, one line.
        values: keys of the `agent` and of the `env` group.
    """

    file: Path
    agent_name: str
    source: str
    values: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return f"{self._where} (agent {self.agent_name}: {self.source})"

    @property
    def _where(self) -> str:
        return f"configs/tuned/{self.file.name}"

    def overrides(self) -> list[str]:
        """The values in Hydra's grammar, to stand before those of the command line."""
        return [
            override
            for group, node in self.values.items()
            for key, value in node.items()
            for override in replace_override(f"{group}.{key}", value, in_hydra(value))
        ]

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a key or a type that the groups' targets in `config` do not take.

        Raises:
            ConfigError: names the file, the section and the key.
        """
        for group, node in self.values.items():
            chosen = {key: config[group][key] for key in _CHOSEN if key in config[group]}
            try:
                for key in _CHOSEN:
                    if key in node:
                        raise ConfigError(f"{group}.{key} cannot be tuned; the file is for one id")
                check_group(group, {**chosen, **node})
            except ConfigError as error:
                raise ConfigError(f"{self._where}, agent {self.agent_name}: {error}") from error


def find_tuned(config: Mapping[str, Any]) -> TunedSettings | None:
    """The section for the agent and environment of a configuration; None where there is none.

    An agent that backpropagates through our environment of an id finds it under either name,
    gumbelrl/CartPole-v1 and CartPole-v1.

    Raises:
        ConfigError: the file or its section is not of the form above.
    """
    from gumbelrl.configs.build import agent_class, agent_name

    agent, env = config.get("agent"), config.get("env")
    if not isinstance(agent, Mapping) or "_target_" not in agent:
        return None  # check_config says so
    if not isinstance(env, Mapping) or not isinstance(env.get("id"), str):
        return None
    name, ids = agent_name(str(agent["_target_"])), [env["id"]]
    if getattr(agent_class(agent), "needs_on_device_env", False):
        ids.append(env["id"].removeprefix("gumbelrl/"))
    for id in ids:
        file = TUNED_DIR / f"{id.replace('/', '_').replace(':', '_')}.yaml"
        sections = read_tuned(file) if file.is_file() else {}
        if name in sections:
            return sections[name]
    return None


def read_tuned(file: Path) -> dict[str, TunedSettings]:
    """The sections of a file by agent.

    Raises:
        ConfigError: not of the form above; names the file, the section and the key.
    """
    where = f"configs/tuned/{file.name}"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold one section per agent")
    return {str(name): _section(file, str(name), node) for name, node in content.items()}


def _section(file: Path, name: str, node: Any) -> TunedSettings:
    where = f"configs/tuned/{file.name}, agent {name}"
    if not isinstance(node, dict):
        raise ConfigError(f"{where}: needs the keys {', '.join(KEYS)}")
    for key in node:
        if key not in KEYS:
            raise ConfigError(
                f"{where}: no key {key!r}{nearest(str(key), KEYS)} Allowed: {', '.join(KEYS)}"
            )
    source = node.get("from")
    if not isinstance(source, str) or not source.strip() or "\n" in source.strip():
        raise ConfigError(f"{where}: `from` must say in one line where the values come from")
    values = {group: node.get(group) or {} for group in ("agent", "env")}
    for group, settings in values.items():
        if not isinstance(settings, dict):
            raise ConfigError(f"{where}: {group} must be a mapping, got {settings!r}")
    return TunedSettings(file, name, source.strip(), values)


def in_hydra(value: Any) -> str:
    """Plain data in Hydra's override grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{in_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(in_hydra, value)) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
