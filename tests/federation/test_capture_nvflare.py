"""NVIDIA FLARE: three rounds of four clients in its own simulator, seen by the server's filters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pplleak as pl
from pplleak.federation import capture

pytestmark = [pytest.mark.slow, pytest.mark.process]

ROOT = Path(__file__).parents[2]
JOB = ROOT / "docs" / "examples" / "nvflare_job"  # as the documentation shows it


def test_the_server_sees_what_the_clients_record(tmp_path: Path) -> None:
    pytest.importorskip("nvflare")
    shutil.copytree(JOB, tmp_path / "job")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "job" / "job.py")], cwd=tmp_path, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen, recorded = tmp_path / "job" / "seen", tmp_path / "job" / "recorded"
    names = {f"round-{r}-client-site-{c}" for r in range(3) for c in range(4)}
    assert {p.stem for p in seen.glob("*.safetensors")} == names == {p.stem for p in recorded.glob("*.safetensors")}
    for name in names:
        server, client = (pl.load(f / f"{name}.safetensors", network=f"{tmp_path}/job/net.py:Net")
                          for f in (seen, recorded))  # fmt: skip
        assert torch.allclose(server.g, client.g, atol=1e-6) and server.client.local == client.client.local
        kept = capture.read(recorded / "private" / f"{name}.safetensors")
        u = server.client.update(kept.x, kept.y).materialise()
        assert float((u - server.g).norm() / server.g.norm()) < 1e-4
    other = pl.load(seen / "round-1-client-site-0.safetensors", network=f"{tmp_path}/job/net.py:Net")
    wrong = capture.read(recorded / "private" / "round-1-client-site-1.safetensors")  # a wrong twin: of another client
    u = other.client.update(wrong.x, wrong.y).materialise()
    assert float((u - other.g).norm() / other.g.norm()) > 0.1
