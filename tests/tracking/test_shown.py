"""What the user sees: progress and the table at the end."""

import io
import os
import subprocess
from typing import Any

import pytest
from gumbelrl.tracking import (
    EvaluationCallback,
    ProgressCallback,
    end_table,
    environment_versions,
    git_commit,
)
from rich.console import Console
from stable_baselines3 import DQN

SUMMARY = {
    "agent": "gumbel_sac",
    "env": "CartPole-v1",
    "seed": 3,
    "env_steps": 23000,
    "wall_seconds": 46.0,
    "eval": {"episodes": 100, "return_mean": 498.123, "return_std": 4.5},
    "stop_at_return": 475,
    "reached": {"env_steps": 22000, "train_seconds": 40.04},
}


def shown(table: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def learn(envs: Any, progress: ProgressCallback, *others: Any, steps: int = 300) -> None:
    agent = DQN(
        "MlpPolicy", envs(1, 0), learning_starts=8, policy_kwargs={"net_arch": [8]}, device="cpu"
    )
    agent.learn(steps, callback=[*others, progress])


def test_without_a_terminal_there_is_a_line_per_evaluation_and_few_others(envs):
    console = Console(file=io.StringIO(), width=40)
    evaluation = EvaluationCallback(envs, eval_every=100, seed=0, screen_episodes=2)
    learn(envs, ProgressCallback(evaluation=evaluation, console=console), evaluation)
    lines = console.file.getvalue().splitlines()
    assert [line.split(" ")[0] for line in lines if "eval" in line] == [
        "100/300",
        "200/300",
        "300/300",
    ]
    assert all("steps/s" in line and "(2 episodes)" in line and "left" in line for line in lines)
    assert "\x1b" not in console.file.getvalue()


def test_on_a_terminal_there_is_a_bar_that_goes_away(envs):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    progress = ProgressCallback(console=console)
    learn(envs, progress)
    progress.close()
    text = console.file.getvalue()
    assert "300/300 steps" in text
    assert "100%" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is given back


def test_a_step_between_two_updates_draws_nothing(envs, monkeypatch):
    drawn = []
    monkeypatch.setattr(ProgressCallback, "_show", lambda self, now: drawn.append(now))
    progress = ProgressCallback(console=Console(file=io.StringIO()))
    progress._due = float("inf")
    progress._on_training_start = lambda: None  # type: ignore[method-assign]
    learn(envs, progress)
    assert drawn == []


def test_the_table_of_a_run_that_ended():
    text = shown(
        end_table(
            SUMMARY,
            run_dir="runs/[a] b",
            best_checkpoint="runs/[a] b/checkpoints/best-000022000",
            tracking=[("upload to W&B", "wandb sync runs/x")],
        )
    )
    for part in (
        "gumbel_sac · CartPole-v1 · seed 3",
        "498.12 ± 4.50 (mean ± std of 100 episodes)",
        "at 22,000 steps, after 40.0 s of training",
        "23,000",
        "46.0 s",
        "500",
        "python evaluate.py run='runs/[a] b'",
        "wandb sync runs/x",
    ):
        assert part in text
    assert "resume" not in text


def test_the_table_of_a_run_that_was_interrupted():
    text = shown(
        end_table(
            {**SUMMARY, "eval": None, "reached": None},
            run_dir="runs/x",
            interrupted=True,
            last_checkpoint="runs/x/checkpoints/step-000020000",
        )
    )
    for part in ("interrupted", "step-000020000", "python train.py resume=runs/x", "│ no "):
        assert part in text
    failed = shown(
        end_table(
            {**SUMMARY, "failure": "RuntimeError: x"},
            run_dir="runs/x",
            last_checkpoint="runs/x/checkpoints/step-000020000",
            programs=("gumbelrl-train", "gumbelrl-evaluate"),
        )
    )
    for part in ("failed", "gumbelrl-train resume=runs/x", "gumbelrl-evaluate run=runs/x"):
        assert part in failed
    early = shown(end_table({"agent": "a"}, run_dir="runs/x", interrupted=True))
    assert "none was written yet" in early
    assert "resume=runs/x" in early  # it begins anew there


def test_versions_are_those_installed():
    import gymnasium
    import torch

    versions = environment_versions()
    assert versions["gymnasium"] == gymnasium.__version__
    assert versions["torch"] == torch.__version__
    assert {"python", "stable-baselines3", "wandb", "gumbelrl"} <= set(versions)


def test_the_commit_says_when_the_tree_differs_from_it(tmp_path):
    assert git_commit(tmp_path) is None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    assert git_commit(tmp_path) is None  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert git_commit(tmp_path) == head
    index = (tmp_path / ".git" / "index").read_bytes()
    os.utime(tmp_path / "a", (0, 0))  # git would take note of that, and lock the index for it
    assert git_commit(tmp_path) == head
    assert (tmp_path / ".git" / "index").read_bytes() == index
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{head}-dirty"


def test_progress_names_a_wrong_total():
    with pytest.raises(ValueError, match="total_steps must be >= 1 env step, got 0"):
        ProgressCallback(0)


def test_no_commit_of_a_repository_that_merely_surrounds_the_package(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    from gumbelrl.tracking import git_source

    monkeypatch.setattr(git_source, "__file__", str(tmp_path / "site-packages" / "git_source.py"))
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://secret@example.org:8443/a.git?token=secret", "https://example.org:8443/a.git"),
        ("https://secret:x-oauth-basic@example.org/a.git", "https://example.org/a.git"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        (None, None),
    ],
)
def test_the_address_of_the_remote_holds_no_secret(url, shown, tmp_path):
    from gumbelrl.tracking.git_source import git_remote

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    if url:
        subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", url], check=True)
    assert git_remote(tmp_path) == shown
