"""The journal at a URL: a chain of pieces, whatever died, tore or diverged."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.storage import remote_journal as rooms
from orchestrator.storage.journal import Journal
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.remote_journal import Piece, chain
from tests.orchestrator.keepers import (
    QUICK,
    has,
    one_line,
    pieces,
    put,
    tree,
)


def test_half_a_line_is_not_carried_over(tmp_path, kept):
    with Mirror(tmp_path / "ours", f"file://{kept}", **QUICK) as mirror:
        put(tmp_path / "ours", 1)
        journal = tmp_path / "ours" / "journal.jsonl"
        whole = journal.read_bytes()
        with journal.open("ab") as file:
            file.write(b"0123abcd {")
        assert mirror.flush(10)
    assert b"".join(map(Path.read_bytes, pieces(kept))) == whole


def test_a_shorter_journal_is_made_longer_on_either_side(tmp_path, kept):
    url = f"file://{kept}"
    put(tmp_path / "ours", 1)
    Mirror(tmp_path / "ours", url, **QUICK).close()
    old = (tmp_path / "ours" / "journal.jsonl").read_bytes()
    put(tmp_path / "ours", 2)
    (tmp_path / "ours" / "generations.jsonl").write_text("new")
    Mirror(tmp_path / "ours", url, **QUICK).close()  # the URL was behind
    new = (tmp_path / "ours" / "journal.jsonl").read_bytes()
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "journal.jsonl").write_bytes(new[: len(old) + 20])  # behind, and torn
    (tmp_path / "late" / "generations.jsonl").write_text("old")
    Mirror(tmp_path / "late", url, **QUICK).close()
    assert (tmp_path / "late" / "journal.jsonl").read_bytes() == new
    assert (tmp_path / "late" / "generations.jsonl").read_text() == "new"
    assert not list((tmp_path / "late").glob("journal-*"))


def test_two_machines_in_turn_lose_time_only(tmp_path, kept, caplog):
    url = f"file://{kept}"
    put(tmp_path / "one", 1)
    Mirror(tmp_path / "one", url, **QUICK).close()
    put(tmp_path / "one", 2)  # never carried over: the machine was cut off
    mine = (tmp_path / "one" / "journal.jsonl").read_bytes()
    with Mirror(tmp_path / "two", url, **QUICK):
        put(tmp_path / "two", 3)
    Mirror(tmp_path / "one", url, **QUICK).close()
    assert "another journal" in caplog.text and "journal-set-aside-1.jsonl" in caplog.text
    assert tree(tmp_path / "one")["journal.jsonl"] == tree(tmp_path / "two")["journal.jsonl"]
    assert (tmp_path / "one" / "journal-set-aside-1.jsonl").read_bytes() == mine
    assert has(tmp_path / "one", 3) and not has(tmp_path / "one", 2)


def test_another_run_at_the_url_is_refused_and_both_stay(tmp_path, kept):
    put(tmp_path / "one", 1)
    Mirror(tmp_path / "one", f"file://{kept}", **QUICK).close()
    (tmp_path / "two").mkdir()
    journal = Journal(tmp_path / "two", "other job")
    journal.close()
    before = tree(tmp_path / "two")
    with pytest.raises(ValueError, match="holds another run") as refusal:
        Mirror(tmp_path / "two", f"file://{kept}", **QUICK)
    one_line(refusal)
    assert tree(tmp_path / "two") == before
    Mirror(tmp_path / "one", f"file://{kept}", **QUICK).close()  # the refusal gave the URL free


@pytest.mark.parametrize("damage", ["torn", "flipped", "missing"])
@pytest.mark.parametrize("has_local", [True, False])
def test_a_damaged_piece_is_not_believed(tmp_path, kept, caplog, damage, has_local):
    url = f"file://{kept}"
    ours = tmp_path / "ours"
    with Mirror(ours, url, every=60, beat=0.5) as mirror:  # a piece a flush
        for index in range(4):
            put(ours, index)
            assert mirror.flush(10)
    whole = (ours / "journal.jsonl").read_bytes()
    assert len(pieces(kept)) == 4
    victim = pieces(kept)[2]
    data = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data[:-10] if damage == "torn" else data.replace(b"0.25", b"0.75"))
    folder = ours if has_local else tmp_path / "empty"
    Mirror(folder, url, **QUICK).close()
    if has_local:
        assert (ours / "journal.jsonl").read_bytes() == whole
        # A flipped bit of what is here anyway is not looked for.
        assert ("left out" in caplog.text) == (damage != "flipped")
    else:
        assert has(folder, 1) and not has(folder, 2) and not has(folder, 3)
        assert "left out" in caplog.text and list((kept / "left-out").iterdir())
        assert whole.startswith((folder / "journal.jsonl").read_bytes()[:-100])
    links = chain(map(Piece.parse, (f"journal/{path.name}" for path in pieces(kept))))
    reach = len(whole) if has_local else victim_start(victim)
    assert links[-1].end == reach


def victim_start(path: Path) -> int:
    return int(path.name[:12])


def test_many_pieces_become_few(tmp_path, kept):
    url = f"file://{kept}"
    ours = tmp_path / "ours"
    with Mirror(ours, url, **QUICK) as mirror:
        put(ours, *range(600))
        assert mirror.flush(10)
    whole = (ours / "journal.jsonl").read_bytes()
    # As if each line had been a piece: what a day of slow results looks like.
    pieces(kept)[0].unlink()
    at = 0
    for line in whole.splitlines(keepends=True):
        piece = Piece.of(at, line)
        (kept / piece.name).write_bytes(line)
        at = piece.end
    some = pieces(kept)[:5]
    copies = {path: path.read_bytes() for path in some}
    Mirror(ours, url, **QUICK).close()
    assert len(pieces(kept)) < rooms.MERGE_EVERY
    for path, data in copies.items():  # as if it had died before the old ones were gone
        path.write_bytes(data)
    Mirror(tmp_path / "again", url, **QUICK).close()
    assert (tmp_path / "again" / "journal.jsonl").read_bytes() == whole
    assert not any(path.exists() for path in some) and not (kept / "left-out").exists()


def test_a_long_journal_goes_in_pieces(tmp_path, kept):
    put(tmp_path / "ours", 1)
    journal = tmp_path / "ours" / "journal.jsonl"
    with journal.open("ab") as file:
        for line in (b"%08x %s\n" % (zlib.crc32(text), text) for text in (b"%01000d" % i for i in range(20_000))):
            file.write(line)
    Mirror(tmp_path / "ours", f"file://{kept}", **QUICK).close()
    assert len(pieces(kept)) == 3 and max(path.stat().st_size for path in pieces(kept)) <= rooms.PIECE_BYTES
    assert all(path.read_bytes().endswith(b"\n") for path in pieces(kept))
    Mirror(tmp_path / "again", f"file://{kept}", **QUICK).close()
    assert (tmp_path / "again" / "journal.jsonl").read_bytes() == journal.read_bytes()


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=8), st.data())
def test_a_chain_is_found_among_strays(parts, data):
    """Whatever other pieces lie about, what follows from 0 without a gap and reaches farthest is found."""
    whole, links = b"", []
    for part in parts:
        links.append(Piece.of(len(whole), part))
        whole += part
    strays = [
        Piece.of(data.draw(st.integers(0, 60)), data.draw(st.binary(min_size=1, max_size=5)))
        for _ in range(data.draw(st.integers(0, 4)))
    ]
    found = chain([*links, *strays])
    assert [piece.start for piece in found] == [0, *(piece.end for piece in found)][:-1][: len(found)]
    assert (found[-1].end if found else 0) >= len(whole)
    assert chain(links) == links
