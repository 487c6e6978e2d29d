"""A short soak: launches that end in every way, one after another, leave nothing and name the right rank."""

import pytest
import soak


def test_ten_launches_in_a_row_leave_nothing(interruptible):
    summary = soak.soak(launches=10, seed=2)
    assert sum(summary["fates"].values()) == 10 and len(summary["fates"]) >= 4


def test_a_fault_would_be_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(soak.tempfile, "gettempdir", lambda: str(tmp_path))
    before = soak.belongings()
    (tmp_path / "pipelab-left").touch()
    assert soak.belongings() != before
    monkeypatch.setattr(soak, "FATES", ("kill",))
    monkeypatch.setattr(soak, "launch", lambda *_, **__: ["done"])
    with pytest.raises(AssertionError, match="kill gave"):
        soak.soak(launches=1, seed=0)
