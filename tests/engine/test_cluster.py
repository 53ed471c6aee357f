"""An evaluation on two nodes says the same when one of them is killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs ray: pip install 'kvcomm[ray]'")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_node_that_is_killed_changes_no_answer_and_loses_no_sample(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = ["--model", "random:llama-tiny", "--dtype", "float64", "--max-tokens", "8"]
    command += ["--samples", "8", "--kill-after", "3", "--out", str(out)]
    # In a process of its own: this one may have joined a cluster already.
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "ray_cluster.py", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text("utf-8"))
    assert found["other_answers"] == []
    assert found["same_score"]
    for run in (found["undisturbed"], found["killed"]):
        assert run["complete"]
        assert (run["samples"], run["kept_twice"], run["errors"]) == (8, 0, 0)
        assert (run["retried_samples"], len(run["replicas"])) == (0, 2)
        assert all(replica["runs"] for replica in run["replicas"])
    assert sorted(r["up_at_the_end"] for r in found["killed"]["replicas"]) == [False, True]
