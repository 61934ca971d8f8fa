"""What is told while an instance starts, and what of the logs is shown where it does not."""

import sys
import textwrap
import time
from pathlib import Path

import pytest

from common.errors import InvalidInput, NotReady
from jobs.instance import instance as instances
from jobs.instance import waiting
from tests.jobs.instance.test_instance import overrides


def driver(tmp_path: Path, code: str, *, limit_s: float = 20.0, ray_runs: bool = True) -> list[str]:
    """Run the code as the driver; returns what was said."""
    said: list[str] = []
    waiting.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        tmp_path / "deploy.log",
        waiting.Told(said.append),
        time.monotonic() + limit_s,
        lambda: ray_runs,
        cwd=tmp_path,
        env={},
        ray_logs=tmp_path / "logs",
    )
    return said


def test_what_is_waited_for_is_told_once_each(tmp_path: Path) -> None:
    code = """
        import time
        for part in ("the HTTP proxy", "the model", "the model", "the shards"):
            print("noise"); print("waiting for: " + part, flush=True); time.sleep(0.6)
    """
    said = driver(tmp_path, code)
    assert [line.partition(" (")[0] for line in said] == [
        "waiting for: the HTTP proxy",
        "waiting for: the model",
        "waiting for: the shards",
    ]


def test_too_short_a_limit_names_the_part_and_shows_its_log(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "serve"
    logs.mkdir(parents=True)
    (logs / "replica_sharpwave_EngineReplica_ab.log").write_text("reading weights 3 of 9\n")
    (logs / "replica_sharpwave_Api_ab.log").write_text("all is well here\n")
    code = 'import time; print("waiting for: the model, the embedder", flush=True); time.sleep(60)'
    started = time.monotonic()
    with pytest.raises(NotReady, match="still waiting for the model, the embedder") as caught:
        driver(tmp_path, code, limit_s=2.0)
    assert "reading weights 3 of 9" in str(caught.value) and "all is well" not in str(caught.value)
    assert time.monotonic() - started < 20


def test_a_ray_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "raylet.out").write_text("Check failed: no memory\n")
    with pytest.raises(NotReady, match=r"Ray ended meanwhile[\s\S]*no memory"):
        driver(tmp_path, "import time; time.sleep(60)", ray_runs=False)


def fake_ray(folder: Path, says: str) -> Path:
    """A `ray` command that writes a raylet's log and ends, and counts its starts in a file."""
    script = folder / "bin" / "ray"
    script.parent.mkdir()
    script.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        while [ "$1" != --temp-dir ]; do shift; done
        mkdir -p "$2/session_latest/logs"
        echo "{says}" > "$2/session_latest/logs/raylet.out"
        echo started >> "{folder}/starts"
        echo "{says}"
        exit 1
        """)
    )
    script.chmod(0o755)
    return script.parent / "python"


@pytest.mark.parametrize(
    ("says", "starts"),
    [
        ("Check failed: Timed out waiting for file /x/runtime_env_agent_port", 2),
        ("The raylet exited immediately because one Ray agent failed, agent_name = dashboard_agent", 2),
        ("no space left on device", 1),
    ],
)
def test_ray_is_started_once_more_where_its_agents_were_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, starts: int
) -> None:
    monkeypatch.setattr(instances.sys, "executable", str(fake_ray(tmp_path, says)))
    said: list[str] = []
    with pytest.raises(NotReady, match=says[-20:]):
        instances.up(overrides(tmp_path / "store"), say=said.append)
    assert (tmp_path / "starts").read_text().count("started") == starts
    assert sum("once more" in line for line in said) == starts - 1
    assert instances.read(tmp_path / "store") is None


def test_a_folder_that_cannot_be_written_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "store", Path("/proc/store")):
        with pytest.raises(InvalidInput, match=rf"store.dir = '{folder}': cannot be written to") as caught:
            instances.up(overrides(folder))
        assert caught.value.param == "store.dir"
