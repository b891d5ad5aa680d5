"""Result files say what they were measured on."""

import subprocess

import torch

from globalcom2.lab import machine


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x", *arguments], check=True)


def test_commit_is_that_of_the_package_own_checkout(tmp_path, monkeypatch):
    package = tmp_path / "src" / "globalcom2"
    package.mkdir(parents=True)
    monkeypatch.setattr(machine, "PACKAGE", package)
    assert machine.commit() is None
    (package / "a.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(tmp_path, *arguments)
    clean = machine.commit()
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert len(clean) >= 7
    assert head.startswith(clean)
    git(tmp_path, "tag", "-am", "first", "v1")
    (package / "a.py").write_text("2")
    assert machine.commit() == f"{clean}-dirty"


def test_commit_of_an_environment_inside_another_checkout_is_unknown(tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "lib" / "site-packages" / "globalcom2"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(tmp_path, *arguments)
    monkeypatch.setattr(machine, "PACKAGE", package)
    assert machine.commit() is None


def test_a_record_is_complete():
    record = machine.machine(torch.device("cpu"))
    assert {"hardware", "threads", "versions", "commit", "date"} == set(record)
    assert record["hardware"]
    assert set(record["versions"]) == {"torch", "transformers", "globalcom2"}
