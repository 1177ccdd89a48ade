"""Disks that are full or read-only, and folders that go away: nothing saved is lost.

Disks are real ones, a megabyte of memory each, where the tests may mount them.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from command_lines import QUICK, SAC, rows_without_times, summary_of

TROUBLING = [*QUICK, *SAC, "env=troubled_disks:Troubling-v0", "eval_every=1000", "log_every=10"]
TRUST = "trust=[troubled_disks]"


def train(*arguments, **limits):
    modules = os.path.join(os.path.dirname(__file__), "modules")
    paths = os.pathsep.join([modules, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "gumbelrl.train", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "TROUBLE": str("resume" not in arguments[0])},
        **limits,
    )


def events(what, folder):
    return [f"env.kwargs.events={{{what}}}", f"env.kwargs.folder={folder}"]


def mount(*arguments):
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root mounts disks")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path))
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = train(*TROUBLING, *events("", folder), f"run_dir={folder}")
    assert ended.returncode == 0, ended.stderr
    return rows_without_times(folder)


def fill(folder):
    with open(folder / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_disk_that_is_full_for_a_while(disk, undisturbed):
    folder = disk / "run"
    ended = train(*TROUBLING, *events("250: fill, 550: free", disk), f"run_dir={folder}")
    assert ended.returncode == 0
    assert ended.stderr.count("cannot write the checkpoint at 400 env steps") == 1
    assert f"the last good one is {folder / 'checkpoints' / 'step-000000200'}" in ended.stderr
    assert "rows are lost until it can be written" in ended.stderr
    assert checkpoints(folder) == ["step-000000200", "step-000000600"]
    rows = rows_without_times(folder)
    assert 25 < len(rows) < len(undisturbed) == 61  # some were lost, the others are whole
    assert all(row in undisturbed for row in rows)
    assert rows[-1] == undisturbed[-1]


def test_a_disk_that_stays_full_ends_the_run_and_keeps_what_was_saved(disk, undisturbed):
    folder = disk / "run"
    ended = train(*TROUBLING, *events("250: fill", disk), f"run_dir={folder}")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert "the last checkpoint could not be written" in last
    assert "Free space there" in last
    assert f"resume={folder}" in "".join(ended.stdout.split())
    assert checkpoints(folder) == ["step-000000200"]
    (disk / "filler").unlink()
    ended = train(f"resume={folder}", TRUST)
    assert ended.returncode == 0, ended.stderr
    assert rows_without_times(folder) == undisturbed


def test_a_full_disk_at_the_start(disk):
    (disk / "run").mkdir()
    fill(disk)
    ended = train(*TROUBLING, *events("", disk), f"run_dir={disk / 'run'}")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "No space left on device" in ended.stderr
    assert "free space" in ended.stderr.lower()


def test_a_folder_that_becomes_read_only(tmp_path, undisturbed):
    folder = tmp_path / "run"
    folder.mkdir()
    mount("--bind", str(folder), str(folder))
    subprocess.run(["umount", str(folder)], check=True)
    ended = train(*TROUBLING, *events("250: read_only", folder), f"run_dir={folder}")
    try:
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr
        assert "Read-only file system" in ended.stderr
        assert "or make it writable" in ended.stderr.splitlines()[-1]
        assert checkpoints(folder) == ["step-000000200"]
        resumed = train(f"resume={folder}", TRUST)
        assert resumed.returncode == 2
        assert resumed.stderr.count("\n") == 1
        assert f"cannot write in the run folder {folder}: Read-only file system" in resumed.stderr
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    assert train(f"resume={folder}", TRUST).returncode == 0
    assert rows_without_times(folder) == undisturbed


def test_a_folder_that_is_removed_is_made_again(tmp_path, undisturbed):
    folder = tmp_path / "run"
    ended = train(*TROUBLING, *events("250: remove", folder), f"run_dir={folder}")
    assert ended.returncode == 0
    assert f"the run folder {folder} was removed while the run goes on" in ended.stderr
    assert ended.stderr.count("was removed") == 1
    assert checkpoints(folder) == ["step-000000400", "step-000000600"]
    assert rows_without_times(folder) == [r for r in undisturbed if r["env_steps"] > 400]
    assert summary_of(folder)["complete"]
    assert json.loads((folder / "heartbeat.json").read_text())["phase"] == "finished"
    assert train(f"resume={folder}", TRUST, "total_steps=700").returncode == 0


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path):
    import resource

    folder = tmp_path / "run"

    def limited():  # no agent's file is that small
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    ended = train(*TROUBLING, *events("", folder), f"run_dir={folder}", preexec_fn=limited)
    assert ended.returncode == 2
    assert "there is none yet" in ended.stderr
    assert "the last checkpoint could not be written" in ended.stderr.splitlines()[-1]
    assert not (folder / "checkpoints").exists() or not checkpoints(folder)
    assert rows_without_times(folder)
