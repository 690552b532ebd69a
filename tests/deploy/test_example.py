"""deploy/remediator.yml, and what it offers in remarks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.docker import make_tokens
from remediator.config import load
from remediator.playbooks import load as load_playbooks

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy" / "remediator.yml").read_text()
ROLES = ("webhook", "read", "operate", "release")


@pytest.fixture
def write(tmp_path: Path):
    """Writes a file as an administrator who has made all tokens, and reads it."""
    assert make_tokens.main([str(tmp_path / f"{role}.token") for role in ROLES]) == 0
    make_tokens.main([str(tmp_path / "vllm.key")])

    def written(text: str):
        file = tmp_path / "remediator.yml"
        moved = text.replace("/etc/gpu-remediator/", f"{tmp_path}/")
        file.write_text(moved.replace("/mnt/elsewhere/", f"{tmp_path}/"))
        return load(file)

    return written


def taken_in(text: str) -> str:
    """With every setting that stands behind a bare "#", and what is indented under it."""
    lines, inside = [], False
    for line in text.splitlines():
        setting = re.match(r" *#\S", line) or (inside and re.match(r" *# {2}", line))
        lines.append(line.replace("#", "", 1) if setting else line)
        inside = bool(setting)
    return "\n".join(lines)


def test_as_it_stands_it_restarts_and_stops_but_resets_nothing(write):
    config = write(TEXT)
    assert (config.mode, set(config.allow)) == ("auto", {"service_restart", "service_stop"})
    assert config.exporter.release_token_file is None
    assert [one.manager["type"] for one in config.services] == ["systemd"]
    assert not config.playbooks


def test_what_it_offers_can_be_taken_in_as_it_stands(write, tmp_path):
    config = write(taken_in(TEXT))
    assert "gpu_reset" in config.allow
    assert config.exporter.release_token_file == tmp_path / "release.token"
    assert config.exporter.instance
    assert [one.driver for one in config.services] == ["ollama", "vllm"]
    assert config.services[1].options == {"api_key_file": f"{tmp_path}/vllm.key"}
    assert config.kill_switch_file == tmp_path / "KILL"
    assert config.audit.anchor_file == tmp_path / "gpu-remediator.anchor"
    assert all((config.gpus.opted_out, config.windows, config.alertmanager.urls))
    laid_over = load_playbooks(config.playbooks).by_name
    assert laid_over["cool-down"].mode == "observe"
    assert [step.kind for step in laid_over["emergency-stop"].afterwards.steps][:2] == [
        "wait_cool",
        "start_service",
    ]
