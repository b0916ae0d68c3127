import os
import random

import pytest

from burnish.errors import JobError
from burnish.search import journal
from burnish.search.journal import Journal, Line

MARKS = {"the job": "a", "the model": "b"}


def filled(path, n=5):
    with Journal.open(path, MARKS) as kept:
        for i in range(n):
            kept.add(Line("build", f"trial-{i}", {"weight_bytes": i}, seconds=0.5))
    return path


def test_what_was_added_is_found_again(tmp_path):
    path = filled(tmp_path / "trials.jsonl")
    with Journal.open(path, MARKS) as kept:
        assert kept.find("build", "trial-3") == Line("build", "trial-3", {"weight_bytes": 3}, seconds=0.5)
        assert kept.find("build", "trial-9") is None
        assert kept.find("latency", "trial-3") is None
        assert kept.seconds == 2.5


def test_a_line_torn_anywhere_costs_that_line_only(tmp_path):
    path = filled(tmp_path / "trials.jsonl")
    data = path.read_bytes()
    last = data[:-1].rfind(b"\n") + 1
    for cut in range(last + 1, len(data)):
        path.write_bytes(data[:cut])
        with Journal.open(path, MARKS) as kept:
            assert [line.trial for line in kept.lines[1:]] == [f"trial-{i}" for i in range(4)]
            kept.add(Line("build", "trial-4"))
        assert [line.trial for line in journal.read(path)[1:]] == [f"trial-{i}" for i in range(5)]


def test_any_prefix_of_a_journal_reads(tmp_path):
    path = filled(tmp_path / "trials.jsonl", 20)
    data = path.read_bytes()
    draw = random.Random(0)
    for cut in [0, 1, *(draw.randrange(len(data)) for _ in range(50))]:
        path.write_bytes(data[:cut])
        assert len(journal.read(path)) == data[:cut].count(b"\n")


def test_a_line_is_on_the_disk_before_the_search_goes_on(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    path = filled(tmp_path / "trials.jsonl", 1)
    assert synced[-1] == path.stat().st_size


def test_a_journal_of_something_else_is_refused_with_what_changed(tmp_path):
    path = filled(tmp_path / "trials.jsonl")
    with pytest.raises(JobError) as caught:
        Journal.open(path, {"the job": "a", "the model": "c", "the validation rows": "d"})
    assert str(caught.value) == (
        f"{tmp_path} holds the trials of something else: the model, the validation rows changed since. "
        "Choose another --out, or delete that directory"
    )


def test_a_damaged_line_inside_is_told_with_its_number(tmp_path):
    path = filled(tmp_path / "trials.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{nonsense\n", *lines[3:]]))
    with pytest.raises(JobError, match=r"trials\.jsonl is damaged at line 3: .* Delete the directory and start again"):
        journal.read(path)


def test_a_full_disk_is_one_sentence_and_costs_the_line_only(tmp_path, monkeypatch):
    path = filled(tmp_path / "trials.jsonl")
    write = os.write
    with Journal.open(path, MARKS) as kept:
        monkeypatch.setattr(os, "write", lambda fd, text: write(fd, text[:10]))
        with pytest.raises(JobError) as caught:
            kept.add(Line("build", "trial-9"))
    assert str(caught.value) == f"cannot write {path}: No space left on device. Make room, and go on with --resume"
    monkeypatch.undo()
    with Journal.open(path, MARKS) as kept:
        assert len(kept.lines) == 6
        kept.add(Line("build", "trial-9"))
    assert len(journal.read(path)) == 7


def test_two_searches_do_not_write_to_one_journal(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "trials.jsonl"
    with Journal.open(path, MARKS), pytest.raises(JobError) as caught:
        Journal.open(path, MARKS)
    assert str(caught.value) == f"another search is writing to {tmp_path}. Wait for it, or choose another --out"
    Journal.open(path, MARKS).__exit__(None, None, None)


def test_a_journal_without_results_begins_anew_for_any_job(tmp_path):
    path = filled(tmp_path / "trials.jsonl", 0)
    with Journal.open(path, {"the job": "other"}) as kept:
        kept.add(Line("build", "a"))
    assert len(journal.read(path)) == 2
    with pytest.raises(JobError, match="the job, the model changed since"):
        Journal.open(path, MARKS)
