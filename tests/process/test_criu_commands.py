"""CRIU's command lines, and its log in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kybernate.process.criu_commands import GHOST_LIMIT, dump_arguments, restore_arguments, sentence

pytestmark = pytest.mark.unit


def dumped(**given: Any) -> list[str]:
    defaults: dict[str, Any] = {
        "pid": 7,
        "images": 10,
        "cgroup": 11,
        "plugins": 12,
        "script": "/x",
        "layers": [],
        "lock_network": False,
        "timeout_s": 10.0,
    }
    return dump_arguments(Path("/criu"), **(defaults | given))


def test_a_dump_leaves_the_processes_as_they_are_and_takes_places_by_descriptor() -> None:
    found = dumped(layers=["/data", "/models"])
    assert found[:2] == ["/criu", "dump"]
    assert {"--tree=7", "--leave-running", "--images-dir=/proc/self/fd/10", "--freeze-cgroup=/proc/self/fd/11"} <= set(
        found
    )
    assert "--libdir=/proc/self/fd/12" in found, "no plugin is taken from the host"
    assert [each for each in found if "irmap-scan" in each] == ["--irmap-scan-path=/data", "--irmap-scan-path=/models"]
    assert f"--ghost-limit={GHOST_LIMIT}" in found


@pytest.mark.parametrize(("lock", "word"), [(True, "nftables"), (False, "skip")])
def test_packets_are_held_back_only_where_there_is_more_than_loopback(word: str, *, lock: bool) -> None:
    assert f"--network-lock={word}" in dumped(lock_network=lock)


@pytest.mark.parametrize(("seconds", "said"), [(0.0, 1), (0.4, 1), (10.6, 11), (600.0, 600)])
def test_a_timeout_is_whole_seconds_and_never_none(seconds: float, said: int) -> None:
    """0 means to CRIU that it waits for ever."""
    assert f"--timeout={said}" in dumped(timeout_s=seconds)


def test_a_restore_needs_the_same_options_and_nothing_of_the_dumps_tree() -> None:
    found = restore_arguments(Path("/criu"), work=13, stream=True)
    assert found[:2] == ["/criu", "restore"]
    assert {"--restore-detached", "--images-dir=/proc/self/fd/13", "--stream", "--libdir=/proc/self/fd/13"} <= set(
        found
    )
    assert {each for each in dumped() if each in found} >= {
        "--tcp-established",
        "--file-locks",
        "--manage-cgroups=ignore",
    }
    assert not any(each.startswith("--tree") for each in found)


# -- its log -------------------------------------------------------------------------------------------------------------


def log(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "dump.log"
    path.write_text("\n".join(lines) + "\n")
    return sentence(path)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("Can't dump ghost file /x of 99 size, increase limit", "a deleted file is too large to keep"),
        ("Can't dump device /dev/x", "a device is open that can't be dumped"),
        ("Unsupported file anon_inode:[io_uring]", "io_uring is in use, which CRIU can't dump"),
        ("Connected TCP socket, consider using --tcp-established option.", "a connection leads out of the workload"),
        ("External socket is used. Consider using --ext-unix-sk option.", "a connection leads out of the workload"),
        ("Can't bind inet socket (id 9): Cannot assign", "an address it listened on isn't there"),
        ("File srv/x has bad size 5 (expect 7)", "a file it uses has changed since the dump"),
        ("Can't open file srv/x on restore: No such file or directory", "a file it uses is missing"),
        ("Can't fork for 7: File exists", "a pid it needs is taken"),
        ("write: No space left on device", "no space left on the device"),
        ("Can't mmap memory", "not enough memory"),
        ("Timeout reached. Try to interrupt: 0", "its processes did not stand still in time"),
    ],
)
def test_what_an_error_means_comes_before_crius_own_words(tmp_path: Path, error: str, meaning: str) -> None:
    assert log(tmp_path, f"(00.012345)    42: Error (criu/files.c:12): {error}") == f"{meaning} (CRIU: {error})"


def test_an_error_that_we_do_not_know_is_crius_own_words() -> None:
    assert sentence(Path("/nowhere/dump.log")) == ""


def test_only_errors_count_and_those_that_say_nothing_do_not(tmp_path: Path) -> None:
    found = log(
        tmp_path,
        "(00.000001) Version: 4.2",
        "(00.000002) Warn  (criu/x.c:1): a warning",
        "(00.000003) Error (criu/rlimit.c:9): rlimit: Can't setup RLIMIT_NOFILE for self",
        "Error (criu/util.c:9): the first",
        "(00.000004)      7: Error (criu/mem.c:9): the second",
        "(00.000004)      7: Error (criu/mem.c:9): the second",
        "(00.000005) Error (criu/cr-dump.c:99): Dumping FAILED.",
    )
    assert found == "CRIU: the first; the second"


def test_a_log_without_errors_says_nothing(tmp_path: Path) -> None:
    assert log(tmp_path, "(00.000001) Dumping finished successfully") == ""


def test_a_long_log_is_a_short_sentence(tmp_path: Path) -> None:
    lines = [f"(00.01) Error (criu/x.c:1): {number} {'x' * 300}" for number in range(50)]
    assert len(log(tmp_path, *lines)) < 420


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "dump.log"
    path.write_bytes(b"(00.01) Error (criu/x.c:1): can't read \xff\xfe\n")
    assert sentence(path).startswith("CRIU: can't read")
