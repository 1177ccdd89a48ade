"""Every command and every Python block of README and docs works as it stands there.

Commands of a page are typed one after the other, in one folder and one process; runs are composed
as they stand and then made at a size of a second (`typed_commands`). A block that begins with
`# name.py` or `# name.yaml` is that file. A command that no rule covers fails.
"""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import gymnasium
import pytest
import torch
import yaml
from documents import PAGES, ROOT, anchors, block_commands, blocks, inline_commands, links
from gumbelrl.configs.compose import compose
from typed_commands import Typist, extra_of, reason_not_to_run

# What a page's Python takes for given.
GIVEN = {
    "agents.md": """
from gumbelrl.agents import GumbelSAC
env = "CartPole-v1"
agent = GumbelSAC("MlpPolicy", env, buffer_size=1_000)
agent.learn(100)
""",
    "tracking.md": """
from gumbelrl.agents import GumbelSAC
agent = GumbelSAC("MlpPolicy", "CartPole-v1")
agent.learn(8)
""",
    "estimators.md": """
import torch
logits = torch.randn(4, 8, requires_grad=True)
mask = torch.ones(4, 8, dtype=torch.bool)
generator = torch.Generator().manual_seed(0)
f = lambda one_hot: one_hot.square().sum(-1) * one_hot[..., 0]
""",
    "environments.md": """
import torch
logits = torch.zeros(1024, 160, requires_grad=True)
from gumbelrl.gumbel import FactoredCategorical, make_estimator
one_hot = make_estimator("st_gumbel").rsample(FactoredCategorical(logits, (5,) * 32))
""",
}
# Files that a page takes for given.
FILES = {
    "README.md": {
        "my_module.py": """
import gymnasium
gymnasium.register("MyEnv-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=30)
"""
    }
}
# Sizes in Python blocks: what is long there -> what is typed here.
SHORTER = (
    (re.compile(r"\.learn\((?:total_timesteps=)?[\d_]+"), ".learn(64"),
    (re.compile(r"n_eval_episodes=\d+"), "n_eval_episodes=1"),
)
INDEX = ROOT / "docs" / "README.md"
NAMES = [page.name if page.parent == ROOT else f"docs/{page.name}" for page in PAGES]

pytest.importorskip("matplotlib", reason="compare.py's report needs it")


def extras_commands():
    for page in PAGES:
        typed = [c for b in blocks(page) if b.language == "bash" for c in block_commands(b)]
        for command in dict.fromkeys([*typed, *inline_commands(page)]):
            if extra_of(command):
                yield pytest.param(command, id=f"{page.name}: {command.split('  ')[0].strip()}")


@pytest.fixture
def typist(tmp_path, monkeypatch):
    """In a folder of its own; modules and environments that a page defines do not stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    threads, ids = torch.get_num_threads(), set(gymnasium.registry)
    modules = set(sys.modules)
    yield Typist()
    torch.set_num_threads(threads)
    for id in set(gymnasium.registry) - ids:
        if "/" not in id or not id.startswith("gumbelrl/"):
            del gymnasium.registry[id]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def execute(block, page, namespace):
    """Run a Python block in the page's namespace."""
    code = block.text
    for long, short in SHORTER:
        code = long.sub(short, code)
    # Line numbers of a traceback are those of the page.
    exec(compile("\n" * (block.line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_works_from_its_first_line_to_its_last(page, typist, capsys):
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module  # so that classes of the page can be found by name
    namespace = module.__dict__
    for name, text in FILES.get(page.name if page.parent == ROOT else "", {}).items():
        Path(name).write_text(text)
    exec(GIVEN.get(page.name, ""), namespace)
    try:
        for block in blocks(page):
            where = f"{page.name}, line {block.line}"
            if block.file is not None:
                Path(block.file).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file).write_text(block.text + "\n")
            if block.language == "python" and block.file is None:
                execute(block, page, namespace)
            elif block.language == "python":
                compile(block.text, where, "exec")
            elif block.language in ("yaml", "json"):
                yaml.safe_load(block.text) if block.language == "yaml" else json.loads(block.text)
            elif block.language == "bash":
                for command in block_commands(block):
                    type_it(typist, command, where, capsys)
            else:
                assert block.language == "", f"{where}: no test reads {block.language} blocks"
        for command in inline_commands(page):
            type_it(typist, command, page.name, capsys)
    finally:
        del sys.modules[module.__name__]


def type_it(typist, command, where, capsys):
    if extra_of(command) or reason_not_to_run(command):
        return  # the former are tested below
    try:
        typist.type(command)
    except (AssertionError, SystemExit) as error:
        said = capsys.readouterr().err.strip().splitlines()[-5:]
        pytest.fail("\n".join([f"{where}: {command}", str(error), *said]))


@pytest.mark.parametrize("command", list(extras_commands()))
def test_commands_of_extras(command, typist):
    extra, module = extra_of(command)
    words = command.partition("#")[0].split()
    if words[1] == "train.py":
        compose(words[2:])
    elif extra == "ray":
        local = [word for word in words if word != "launcher=ray"]
        Typist().type(" ".join([*local, "dry_run=true"]))
        pytest.skip("the grid is expanded; a cluster is started by tests/comparison alone")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"composed; to run it needs gumbelrl[{extra}]")
    typist.type(command)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target} has no such heading"


def test_every_page_is_reached_from_the_index():
    index = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in links(INDEX)}
    assert {page for page in PAGES if page not in (INDEX, ROOT / "README.md")} <= index


@pytest.mark.parametrize(
    "command",
    [
        "python train.py agent=gumbel_sca",
        "python -m benchmarks.speed --round 4 --nonsense",
        "python -m benchmarks.nothing",
        "pytest tests/gumbel/test_estimators.py -k no_such_test",
        "make nothing",
        "rm -r runs",
    ],
)
def test_what_does_not_work_is_found(command, typist, capsys):
    with pytest.raises((pytest.fail.Exception, ModuleNotFoundError, ValueError)):
        type_it(typist, command, "a page", capsys)
