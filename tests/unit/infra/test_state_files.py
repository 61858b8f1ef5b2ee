"""Local state: written whole, set aside when damaged."""

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flashslm.infra import state_files
from flashslm.infra.state_files import append_line, check_sqlite, locked_file, read_state, write_whole


def names(directory: Path) -> list[str]:
    return sorted(file.name.partition(".damaged-")[0] for file in directory.iterdir())


def test_a_write_that_is_cut_off_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    write_whole(file, "old")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "new")
    assert file.read_text() == "old" and names(tmp_path) == ["state.json"]


def test_a_line_after_one_that_was_cut_off_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    append_line(file, "one")
    with file.open("a") as opened:
        opened.write('{"tw')
    append_line(file, "three")
    assert file.read_text().splitlines() == ["one", '{"tw', "three"]


def test_lines_longer_than_a_page_that_many_write_stay_whole(tmp_path: Path) -> None:
    file, line = tmp_path / "events.jsonl", "x" * 9000
    with ThreadPoolExecutor(4) as writers:
        list(writers.map(lambda _: append_line(file, line), range(800)))
    assert file.read_text().split("\n") == [line] * 800 + [""]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"nonsense" * 1000])
def test_what_cannot_be_parsed_is_kept_under_another_name_and_said(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(content)

    def parse(data: bytes) -> object:
        raise ValueError("no state")

    assert read_state(file, parse) is None and not file.exists()
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == content and kept.name in caplog.text and str(file) in caplog.text
    assert read_state(file, parse) is None, "absent is not damaged"


def test_a_directory_in_the_place_of_a_file_is_set_aside(tmp_path: Path) -> None:
    for name in ("state", "lock"):
        (tmp_path / name).mkdir()
    assert read_state(tmp_path / "state", bytes) is None
    with locked_file(tmp_path / "lock") as file:
        assert os.path.samestat(os.fstat(file.fileno()), (tmp_path / "lock").stat())


def make_database(file: Path, rows: int) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE trials (text)")
        connection.executemany("INSERT INTO trials VALUES (?)", [("trial" * 100,)] * rows)
    connection.close()


def test_a_good_database_stays_and_a_damaged_one_goes_with_its_journal(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    check_sqlite(file)
    make_database(file, 200)
    check_sqlite(file)
    assert names(tmp_path) == ["study.db"]
    content = file.read_bytes()
    damages = [b"no database at all" * 100, content[:5000], content[:4096] + b"\xa5" * 8192 + content[12288:]]
    for damage in damages:
        file.write_bytes(damage)
        (tmp_path / "study.db-journal").touch()
        check_sqlite(file)
        assert not file.exists() and not (tmp_path / "study.db-journal").exists(), damage[:20]
    assert len(list(tmp_path.iterdir())) == 2 * len(damages)
    make_database(file, 1)
