"""The log of an evaluation: whole lines, one configuration, nothing counted twice."""

from pathlib import Path
from typing import Any

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks.record import CONFIG, SAMPLES, Config, Log, Sample, read_config, read_samples

CONFIGURED: dict[str, Any] = {
    "kvcomm": "0",
    "suite": "mine",
    "graph": "chain",
    "graph_digest": "a",
    "model": "m",
    "fingerprint": "f",
    "modes": ("exact",),
    "seed": 0,
    "repeats": 1,
    "retries": 1,
    "tasks": 2,
    "tasks_digest": "b",
    "target_divergence": 0.02,
    "audit_rate": 0.1,
}


def config(**fields: Any) -> Config:
    return Config(**{**CONFIGURED, **fields})


def sample(task: str, **fields: Any) -> Sample:
    known = {"task": task, "repeat": 0, "mode": "exact", "value": 1, "correct": True}
    return Sample(**known | fields)


def test_what_was_done_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    log = Log(tmp_path / "out", config())
    log.append(sample("a", answer="line one\nline two"))
    log.close()
    again = Log(tmp_path / "out", config())
    assert list(again.done) == [("a", 0, "exact")]
    assert again.samples[0].answer == "line one\nline two"
    again.append(sample("b"))
    again.close()
    assert [s.task for s in read_samples(tmp_path / "out" / SAMPLES)] == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_was_cut_off_is_done_again_and_one_twice_once(tmp_path: Path, cut: int) -> None:
    path = tmp_path / SAMPLES
    log = Log(tmp_path, config())
    for done in (sample("a"), sample("a", value=0.5), sample("b")):
        log.append(done)
    log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert [(s.task, s.value) for s in read_samples(path)] == [("a", 0.5)]  # the later one
    again = Log(tmp_path, config())
    again.append(sample("b"))
    again.close()
    assert [s.task for s in read_samples(path)] == ["a", "b"]


def test_another_configuration_is_refused_and_said(tmp_path: Path) -> None:
    Log(tmp_path, config()).close()
    with pytest.raises(UsageError, match=r"\(seed was 0, is 1\): use another --out"):
        Log(tmp_path, config(seed=1))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is not empty and no evaluation"):
        Log(tmp_path, config())
    assert not (tmp_path / CONFIG).exists()


def test_damage_is_named(tmp_path: Path) -> None:
    Log(tmp_path, config()).close()
    (tmp_path / SAMPLES).write_text('{"task": "a"}\n')
    with pytest.raises(UsageError, match="line 1 is no sample"):
        Log(tmp_path, config())
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(UsageError, match=r"config.json is damaged"):
        read_config(tmp_path)
    with pytest.raises(UsageError, match="holds no evaluation"):
        read_config(tmp_path / "none")
