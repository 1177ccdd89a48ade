"""Whole trainings as processes: what is kept of them, and how the table counts them."""

import sys

import pytest

from benchmarks import kept_runs, wall_clock

QUICK = (
    "env=cartpole",
    "eval_every=20",
    "eval_episodes=1",
    "agent.policy_kwargs.net_arch=[8]",
    "agent.batch_size=8",
)


@pytest.mark.parametrize(("threshold", "reached"), [(1, True), (501, False)])
def test_a_run_is_timed_from_its_start(threshold, reached, monkeypatch):
    task = wall_clock.Task(QUICK, threshold, {"gumbel_sac": 40})
    monkeypatch.setitem(wall_clock.TASKS, "cartpole", task)
    row = wall_clock.run("cartpole", "gumbel_sac", 3)
    assert row["reached"] is reached
    assert row["env_steps"] == (20 if reached else 40)
    assert row["wall_seconds"] > row["train_seconds"] > 0
    assert row["processor_seconds"] > row["train_seconds"]  # importing torch alone takes longer
    assert row["command"].startswith("python train.py agent=gumbel_sac env=cartpole")
    assert row["command"].endswith(f"stop_at_return={threshold} total_steps=40 seed=3")


def test_a_failed_run_says_why():
    with pytest.raises(RuntimeError, match=r"train\.py: .*nothing"):
        kept_runs.train(["agent=nothing"])


def test_runs_that_are_kept_are_not_run_again(tmp_path, capsys):
    path = tmp_path / "kept.json"
    made = []

    def run(task, agent, seed):
        made.append((task, agent, seed))
        if seed == 1:
            raise RuntimeError("no luck")
        return {"task": task, "agent": agent, "seed": seed}

    jobs = [("a", "b", seed) for seed in range(3)]
    kept = kept_runs.complete(path, jobs, run, lambda row: "done")
    assert kept == kept_runs.read(path)
    assert [row["seed"] for row in kept] == [0, 2]
    assert "a b 1 failed: no luck" in capsys.readouterr().out
    assert kept_runs.complete(path, [*jobs, ("a", "b", 3)], run, lambda row: "", minutes=-1) == kept
    assert len(kept_runs.complete(path, [*jobs, ("a", "b", 3)], run, lambda row: "")) == 3
    assert made == [*jobs, jobs[1], ("a", "b", 3)]


def row_of(agent, seed, seconds, reached=True):
    times = dict.fromkeys(("wall_seconds", "processor_seconds", "train_seconds"), seconds)
    return {
        "task": "cartpole",
        "agent": agent,
        "seed": seed,
        "reached": reached,
        "env_steps": 1000,
        **times,
    }


def test_runs_that_never_got_there_count_as_later_than_all_others():
    kept = [
        *(row_of("ppo", seed, seconds) for seed, seconds in enumerate((9.0, 2.0, 4.0))),
        *(row_of("dqn", seed, 1.0 + seed, reached=seed == 0) for seed in range(3)),
        *(row_of("gumbel_sac", seed, 3.0 + seed, reached=seed < 2) for seed in range(3)),
    ]
    _, ours, ppo, dqn = (" ".join(line.split()) for line in wall_clock.table(kept).splitlines())
    assert "GumbelSAC 100,000 2 / 3 4.0 3.0 to never 4.0" in ours  # the second of three
    assert "SB3 PPO 100,000 3 / 3 4.0 2.0 to 9.0 4.0" in ppo
    assert "SB3 DQN 50,000 1 / 3 never 1.0 to never never" in dqn


def test_a_table_of_nothing_is_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(wall_clock, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(wall_clock, "TABLE", tmp_path / "table.txt")
    monkeypatch.setattr(sys, "argv", ["wall_clock", "--tables"])
    wall_clock.main()
    assert not list(tmp_path.iterdir())
