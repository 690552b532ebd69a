"""What is made of the kernel's lines about processes that it killed for want of memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.oom_lines import Killed, OomLines

POD = (
    "/kubepods.slice/kubepods-burstable.slice/"
    "kubepods-burstable-pod58dc1221_d430_496e_951d_e8cb23caaead.slice/"
)
CONTAINER = "crio-8371caad8cc369f16c55ce039fbbe0e4fd1be88e72f119bce94ccd5d07d152fe.scope"
KDE = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.kde.konsole-433443.scope"


def read(*lines: str) -> list[Killed]:
    reader = OomLines()
    found = [reader.take(line.encode()) for line in lines]
    return [one for one in found if one is not None]


def killed(name: str, pid: int = 77, before: str = "Memory cgroup out of memory: ") -> str:
    return (
        f"{before}Killed process {pid} ({name}) total-vm:2462120kB, anon-rss:900908kB, "
        "file-rss:45968kB, shmem-rss:0kB, UID:0 pgtables:2476kB oom_score_adj:999"
    )


def context(name: str = "x", pid: int = 77, cgroup: str = "/a", cpuset: str = "/") -> str:
    return (
        f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset={cpuset},mems_allowed=0,"
        f"oom_memcg=/a,task_memcg={cgroup},task={name},pid={pid},uid=0"
    )


# Read off a machine, or as people sent them to lists and trackers; which kernel is in the name.
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(
            [
                "python invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
                "memory: usage 65536kB, limit 65536kB, failcnt 53",
                "Memory cgroup stats for /hungry-cbe3a6ab:",
                "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
                "oom_memcg=/hungry-cbe3a6ab,task_memcg=/hungry-cbe3a6ab,task=python,pid=29228,uid=0",
                "Memory cgroup out of memory: Killed process 29228 (python) total-vm:2197400kB, "
                "anon-rss:74880kB, file-rss:10356kB, shmem-rss:0kB, UID:0 pgtables:244kB "
                "oom_score_adj:0",
            ],
            [Killed(29228, "python", "cgroup", "/hungry-cbe3a6ab")],
            id="6.18, a machine of these tests",
        ),
        pytest.param(
            [
                "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,"
                "global_oom,task_memcg=/,task=polkitd,pid=348,uid=998",
                "Out of memory: Killed process 348 (polkitd) total-vm:78084kB, anon-rss:2980kB, "
                "file-rss:8148kB, shmem-rss:0kB, UID:998 pgtables:64kB oom_score_adj:0",
                "oom_reaper: reaped process 348 (polkitd), now anon-rss:0kB, file-rss:0kB, "
                "shmem-rss:0kB",
            ],
            [Killed(348, "polkitd", "host", "/")],
            id="5.7-rc6, LKFT on linux-mm, May 2020",
        ),
        pytest.param(
            [
                "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=user.slice,"
                f"mems_allowed=0,global_oom,task_memcg={KDE},task=sphinx-build,pid=1043271,uid=1000",
                "Out of memory: Killed process 1043271 (sphinx-build) total-vm:4222280kB, "
                "anon-rss:3934380kB, file-rss:688kB, shmem-rss:0kB, UID:1000 pgtables:7812kB "
                "oom_score_adj:200",
            ],
            [Killed(1043271, "sphinx-build", "host", KDE)],
            id="Fedora with systemd-oomd, on linux-doc",
        ),
        pytest.param(
            [
                "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),"
                f"cpuset={CONTAINER},mems_allowed=0-1,oom_memcg={POD.rstrip('/')},"
                f"task_memcg={POD}{CONTAINER},task=mimir,pid=184260,uid=1001240000",
                "Memory cgroup out of memory: Killed process 184260 (mimir) total-vm:2462120kB, "
                "anon-rss:900908kB, file-rss:45968kB, shmem-rss:0kB, UID:1001240000 "
                "pgtables:2476kB oom_score_adj:999",
            ],
            [Killed(184260, "mimir", "cgroup", POD + CONTAINER)],
            id="4.18 of RHEL CoreOS, CRI-O",
        ),
        pytest.param(
            [
                "Memory cgroup out of memory: Kill process 46211 (process) score 561 or sacrifice "
                "child",
                "Killed process 46433 (process) total-vm:536552kB, anon-rss:12012kB, "
                "file-rss:53740kB, shmem-rss:4kB",
            ],
            [Killed(46433, "process", "cgroup")],
            id="4.9 of Docker Desktop: a child was sacrificed",
        ),
        pytest.param(
            [
                "Out of memory: Kill process 21945 (tidb-server) score 956 or sacrifice child",
                "Killed process 21945 (tidb-server), UID 1000, total-vm:33027492kB, "
                "anon-rss:31303276kB, file-rss:0kB, shmem-rss:0kB",
            ],
            [Killed(21945, "tidb-server", "host")],
            id="3.10 of RHEL 7, TiDB's documentation",
        ),
        pytest.param(
            [
                # mem_cgroup_print_oom_group and oom_kill_memcg_member: one context, many victims.
                context("tini", 235173, "/pod/c"),
                killed("tini", 235173),
                "Tasks in /pod are going to be killed due to memory.oom.group set",
                killed("python", 268654),
                "Memory cgroup out of memory: OOM victim 3804877 (stress) is already exiting. Skip "
                "killing the task",
            ],
            [
                Killed(235173, "tini", "cgroup", "/pod/c"),
                Killed(268654, "python", "cgroup"),
            ],
            id="6.1, a whole group",
        ),
        pytest.param(
            [killed("x", before="Out of memory (oom_kill_allocating_task): ")],
            [Killed(77, "x", "host")],
            id="6.1, vm.oom_kill_allocating_task",
        ),
        pytest.param([killed("x", before="")], [Killed(77, "x", None)], id="the cause was lost"),
    ],
)
def test_lines_of_several_kernels(lines: list[str], expected: list[Killed]) -> None:
    assert read(*lines) == expected


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a) total-vm:1kB", "a) total-vm:1kB"),
        (") (x", ") (x"),
        ("", ""),
        (r"a\x0ab", "a?b"),
        (r"\x1b[31mred", "?[31mred"),
        # What a user wrote as a backslash: the kernel escapes that, too.
        (r"\x5cx0a", r"\x0a"),
        (r"\xc3\xa9t\xc3\xa9", "été"),
        (r"\xe2\x80\xaegpj", "?gpj"),
        ("".join(f"\\x{byte:02x}" for byte in range(0xF1, 0x100)), "\ufffd" * 15),
        ("x" * 300, "x" * 64),
    ],
)
def test_a_name_is_what_a_user_chose(name: str, shown: str) -> None:
    assert read(killed(name)) == [Killed(77, shown, "cgroup")]


@pytest.mark.parametrize(
    "name", ["a,pid=1,uid=0", ",task=b,pid=1", ",task_memcg=/b", ",oom_memcg=/b", "x,task_memcg="]
)
def test_a_name_does_not_say_of_whom_or_where(name: str) -> None:
    (one,) = read(context(name), killed(name))
    assert one.pid == 77
    assert one.cgroup in ("", "/a")


@pytest.mark.parametrize(
    "cgroup", ["/u,task_memcg=/system.slice/ollama.service", "/u,task=x,pid=1", "relative", ""]
)
def test_a_path_that_is_not_clear_is_none(cgroup: str) -> None:
    assert read(context(cgroup=cgroup), killed("x")) == [Killed(77, "x", "cgroup")]


def test_a_path_cannot_break_out_of_its_line() -> None:
    (one,) = read(context(cgroup="/a" + r"\x0a0::/system.slice/b.service"), killed("x"))
    assert one.cgroup == "/a?0::/system.slice/b.service"
    (long,) = read(context(cgroup="/" + "a" * 5000), killed("x"))
    assert len(long.cgroup) == 1024


def test_what_was_told_of_another_process_is_not_taken_for_this_one() -> None:
    assert read(context(pid=78), killed("x")) == [Killed(77, "x", "cgroup")]
    once = read(context(), killed("x"), killed("x"))
    assert [one.cgroup for one in once] == ["/a", ""]


def test_a_cause_is_that_of_the_next_kill_alone() -> None:
    cause = "Out of memory: Kill process 11 (x) score 900 or sacrifice child"
    twice = read(cause, killed("x", before=""), killed("y", before=""))
    assert [one.constraint for one in twice] == ["host", None]


@pytest.mark.parametrize(
    "line",
    [
        "Out of memory and no killable processes...",
        "oom_reaper: reaped process 3352 (python), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB",
        # Beginnings of lines that a name stands in, as far as 15 bytes go.
        "Killed process  invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "usb 1-1: Product: " + killed("x"),
        "Killed process 12 (x",
        "Out of memory: Killed process x (y) total-vm:1kB, anon-rss:1kB, file-rss:1kB",
        "Out of memory: Killed process 12345678901 (y) total-vm:1kB, anon-rss:1kB, file-rss:1kB",
        killed("x") + " and more",
        "Tasks state (memory values in pages):",
        "",
    ],
)
def test_what_names_nobody_that_was_killed(line: str) -> None:
    assert read(line) == []


@given(st.binary(max_size=15), st.integers(1, 4194304))
@settings(max_examples=200, deadline=None)
def test_whatever_a_process_calls_itself_its_pid_is_the_kernels(name: bytes, pid: int) -> None:
    # As print_record of kernel/printk/printk.c does (`msg_add_ext_text`).
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte != 0x5C else f"\\x{byte:02x}" for byte in name
    )
    (one,) = read(context(escaped, pid), killed(escaped, pid))
    assert (one.pid, one.constraint) == (pid, "cgroup")
    assert one.cgroup in ("", "/a")
    assert one.process.isprintable()
    assert len(one.process) <= 15
