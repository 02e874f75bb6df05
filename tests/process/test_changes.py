"""What a restore would silently change, judged from what /proc says. What is done about it: test_kernel_state.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.process import changes
from kybernate.process.changes import Area, Change, parse_smaps
from kybernate.process.preflight import refusals

pytestmark = pytest.mark.unit

SMAPS = """\
55d0c0a00000-55d0c0a21000 r-xp 00000000 08:01 131 /usr/bin/python3.12
Size:                132 kB
Rss:                 100 kB
VmFlags: rd ex mr mw me
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
VmFlags: rd wr mr mw me ac lo
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0
VmFlags: rd wr gd
7f0000000000-7f0000001000 rw-s 00001000 00:05 77                         /dev/shm/a file (deleted)
VmFlags: rd wr sh
"""


def test_areas_are_read_with_mode_inode_name_and_flags() -> None:
    assert list(parse_smaps(SMAPS)) == [
        Area("r-xp", 131, "/usr/bin/python3.12", frozenset({"rd", "ex", "mr", "mw", "me"})),
        Area("rw-p", 0, "[heap]", frozenset({"rd", "wr", "mr", "mw", "me", "ac", "lo"})),
        Area("rw-p", 0, "", frozenset({"rd", "wr", "gd"})),
        Area("rw-s", 77, "/dev/shm/a file (deleted)", frozenset({"rd", "wr", "sh"})),
    ]


def test_nothing_mapped_is_nothing_found() -> None:
    assert list(parse_smaps("")) == []
    assert list(changes.of_mappings(iter(()))) == []


def test_an_area_whose_flags_the_kernel_does_not_tell_is_left_out() -> None:
    assert list(parse_smaps("1000-2000 rw-p 00000000 00:00 0\nSize: 4 kB\n")) == []
    assert list(parse_smaps("VmFlags: rd\n")) == [], "flags of nobody"


NAMES = st.text("abc/[]() .:", max_size=20).map(str.strip)


@given(
    areas=st.lists(
        st.tuples(
            st.sampled_from(["r-xp", "rw-s", "---p"]),
            st.integers(0, 1 << 40),
            NAMES,
            st.sets(st.sampled_from(["rd", "sl", "lo", "lf"])),
        ),
        max_size=6,
    )
)
def test_what_is_written_as_the_kernel_does_comes_back(areas: list[tuple[str, int, str, set[str]]]) -> None:
    text = "".join(
        f"{i + 1:x}000-{i + 2:x}000 {mode} 00000000 00:00 {inode}    {name}\nRss:  4 kB\nVmFlags: {' '.join(flags)}\n"
        for i, (mode, inode, name, flags) in enumerate(areas)
    )
    assert list(parse_smaps(text)) == [Area(mode, inode, name, frozenset(flags)) for mode, inode, name, flags in areas]


# -- judgements ----------------------------------------------------------------------------------------------------------


def area(*flags: str, mode: str = "rw-p", inode: int = 0, name: str = "") -> Area:
    return Area(mode, inode, name, frozenset(flags))


def words(*areas: Area) -> list[Change]:
    return list(changes.of_mappings(iter(areas)))


def test_sealed_memory_is_a_reason_not_to_dump() -> None:
    (found,) = words(area("sl"), area("sl"))
    assert found.serious
    assert "mseal" in found.text


@pytest.mark.parametrize("name", ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]"])
def test_what_the_kernel_maps_by_itself_is_none_of_the_programs_doing(name: str) -> None:
    """Recent kernels seal theirs in every process."""
    assert words(area("sl", "lo", "lf", name=name, mode="r-xp", inode=1)) == []


@pytest.mark.parametrize(
    ("locked", "all_of_it"),
    [
        pytest.param(area("lo", name="[stack]"), True, id="the stack"),
        pytest.param(area("lo", mode="r-xp", inode=7, name="/usr/bin/x"), True, id="code"),
        pytest.param(area("lo", name="[heap]"), False, id="a range of its own"),
        pytest.param(area("lo", mode="r-xp", name=""), False, id="code made at run time"),
        pytest.param(area("lo", mode="r-xs", inode=7), False, id="shared"),
        pytest.param(area("lo", mode="r--p", inode=7), False, id="data of a file"),
    ],
)
def test_who_locks_its_code_or_stack_has_locked_everything(locked: Area, *, all_of_it: bool) -> None:
    """Nobody does that by mlock(2), and mlockall's MCL_FUTURE can be seen nowhere else."""
    found = words(locked)
    assert [change.serious for change in found] == ([True] if all_of_it else [])
    assert all("mlockall" in change.text for change in found)


def test_locking_on_touch_is_told_and_hinders_nothing() -> None:
    (found,) = words(area("lf"))
    assert not found.serious
    assert refusals([found]) == []


@pytest.mark.parametrize(
    ("policies", "common", "nodes", "serious"),
    [
        ({"default", "local"}, set(), 2, None),
        ({"bind:0"}, {"bind:0"}, 2, None),
        ({"bind:0"}, set(), 2, True),
        ({"interleave:0-1", "default"}, {"default"}, 2, True),
        ({"bind:0"}, set(), 1, False),
        ({"bind:0"}, set(), 0, False),
    ],
)
def test_a_memory_policy_counts_where_it_is_its_own_and_there_is_a_choice(
    policies: set[str], common: set[str], nodes: int, serious: bool | None
) -> None:
    found = list(changes.of_memory_policy(policies, common=common, nodes=nodes))
    assert [change.serious for change in found] == ([] if serious is None else [serious])


def test_of_many_policies_the_first_three_are_named_in_order() -> None:
    (found,) = changes.of_memory_policy({f"bind:{i}" for i in (4, 2, 3, 1)}, common=set(), nodes=8)
    assert "(bind:1, bind:2, bind:3)" in found.text
    assert "bind:4" not in found.text


def test_a_personality_counts_where_its_supervisor_has_another() -> None:
    assert list(changes.of_personality(0x40000, common=0x40000)) == []
    (found,) = changes.of_personality(0x40000, common=0)
    assert "0x40000" in found.text
    assert found.serious


@pytest.mark.parametrize(
    ("own", "common", "landlock", "named"),
    [
        ("1", "0", True, True),
        ("1", "1", True, False),
        ("0", "0", True, False),
        ("1", "0", False, False),
    ],
)
def test_no_new_privileges_of_its_own_may_mean_landlock(own: str, common: str, *, landlock: bool, named: bool) -> None:
    found = list(changes.of_status({"NoNewPrivs": own}, common={"NoNewPrivs": common}, landlock=landlock))
    assert bool(found) is named


def test_a_kernel_that_does_not_tell_of_privileges_says_nothing() -> None:
    assert list(changes.of_status({}, common={}, landlock=True)) == []


@pytest.mark.parametrize(("text", "found"), [("ksm_merge_any: yes\n", 1), ("ksm_merge_any: no\n", 0), ("", 0)])
def test_merged_memory_is_told(text: str, found: int) -> None:
    said = list(changes.of_merging(text))
    assert len(said) == found
    assert not any(change.serious for change in said)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pos:\t0\nflags:\t02\neventfd-count:                1\neventfd-id: 3\neventfd-semaphore: 1\n", 1),
        ("eventfd-count: 1\neventfd-semaphore: 0\n", 0),
        ("eventfd-count: 1\n", 0),
        ("", 0),
    ],
)
def test_an_eventfd_that_counts_like_a_semaphore_is_serious(text: str, found: int) -> None:
    said = list(changes.of_eventfd(text))
    assert [change.serious for change in said] == [True] * found


def test_a_refusal_says_how_to_go_on_all_the_same() -> None:
    found = [Change("process 1 (a) has b"), Change("process 1 (a) has c", serious=False), Change("process 2 (b) has d")]
    assert refusals(found) == [
        "process 1 (a) has b (unless --allow-changes is given)",
        "process 2 (b) has d (unless --allow-changes is given)",
    ]
