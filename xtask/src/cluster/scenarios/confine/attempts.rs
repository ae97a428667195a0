//! What somebody tries who has taken over a worker.

use super::{confined, jail, need_root};
use crate::cluster::bed::Bed;
use crate::cluster::client::Client;
use crate::cluster::matrix::Cx;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::TcpListener;

/// System calls that no sandbox lets through.
const CALLS: [&str; 11] = [
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "kcmp",
    "open_by_handle_at",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "keyctl",
    "mount",
    "unshare",
];

/// What this attempt meets.
fn attempt(client: &mut Client, what: &str) -> Result<String> {
    client.ask(&format!("try {what}"))
}

fn expect_all(client: &mut Client, expected: &[(&str, &str)]) -> Result<()> {
    for (what, outcome) in expected {
        let met = attempt(client, what)?;
        ensure!(met == *outcome, "try {what}: {met} instead of {outcome}");
    }
    Ok(())
}

/// Attempts at the master, all of which meet this.
fn expect_of_master(bed: &Bed, client: &mut Client, what: &[&str], outcome: &str) -> Result<()> {
    for what in what {
        let met = attempt(client, &what.replace("MASTER", &bed.ready.master.to_string()))?;
        ensure!(met == outcome, "try {what}: {met} instead of {outcome}");
    }
    Ok(())
}

fn expect_calls(bed: &Bed, client: &mut Client) -> Result<()> {
    for call in CALLS {
        expect_of_master(bed, client, &[&format!("call {call} MASTER")], "EPERM")?;
    }
    expect_of_master(bed, client, &["descriptor MASTER"], "EPERM")?;
    expect_all(client, &[("call clone3", "ENOSYS"), ("call init_module", "EPERM")])
}

/// An attempt that fails under a sandbox and would fail without, shows nothing.
pub(super) fn off(cx: &Cx) -> Result<()> {
    need_root()?;
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = bed.connect()?;
    // Opened, and there is nothing at the address 0.
    expect_of_master(
        &bed,
        &mut client,
        &["read /proc/MASTER/mem"],
        "error: Input/output error (os error 5)",
    )?;
    let open = ["descriptor MASTER", "kill MASTER", "call process_vm_readv MASTER"];
    expect_of_master(&bed, &mut client, &open, "ok")?;
    for call in CALLS.iter().filter(|call| !["ptrace", "userfaultfd"].contains(call)) {
        let met = attempt(&mut client, &format!("call {call} {}", bed.ready.master))?;
        ensure!(met != "EPERM", "{call} is refused without a sandbox");
    }
    let port = bed.port()?;
    expect_all(
        &mut client,
        &[
            ("read /etc/shadow", "ok"),
            ("exec /bin/true", "ok"),
            ("socket inet", "ok"),
            ("socket netlink", "ok"),
            ("socket datagrams", "ok"),
            ("bind 127.0.0.1:0", "ok"),
            (&format!("connect 127.0.0.1:{port}"), "ok"),
        ],
    )?;
    bed.stop().map(drop)
}

pub(super) fn basic(cx: &Cx) -> Result<()> {
    need_root()?;
    let jail = jail(cx)?;
    let bed = confined(cx, &jail, "basic").start()?;
    let mut client = bed.connect()?;
    expect_calls(&bed, &mut client)?;
    expect_of_master(&bed, &mut client, &["kill MASTER"], "EPERM")?;
    expect_all(
        &mut client,
        &[
            // There is no such thing below its root.
            ("read /etc/shadow", "ENOENT"),
            // What `nobody` may, it still may.
            ("write /tmp/file", "ok"),
            ("socket inet", "ok"),
            ("bind 127.0.0.1:0", "ok"),
        ],
    )?;
    bed.stop().map(drop)?;
    // Without a root of its own, other users' files and memory are refused by the system.
    for sandbox in ["off", "basic"] {
        let launch =
            cx.testbed().flag("worker-num", 2).flag("user", "nobody").flag("worker-sandbox", sandbox);
        let bed = launch.start()?;
        let mut client = bed.connect()?;
        if sandbox == "basic" {
            expect_calls(&bed, &mut client)?;
        }
        let pid: i32 = client.ask_field("whoami", "pid")?;
        let other = bed.ready.workers.iter().find(|other| **other != pid).context("there is no other")?;
        for process in [bed.ready.master, *other] {
            for file in ["mem", "fd/3"] {
                expect_all(&mut client, &[(&format!("read /proc/{process}/{file}"), "EACCES")])?;
            }
        }
        expect_of_master(&bed, &mut client, &["descriptor MASTER"], "EPERM")?;
        expect_all(&mut client, &[("read /etc/shadow", "EACCES"), ("exec /bin/true", "ok")])?;
        bed.stop()?;
    }
    Ok(())
}

const NO_SOCKETS: [(&str, &str); 7] = [
    ("socket unix", "EPERM"),
    ("socket inet", "EPERM"),
    ("socket inet6", "EPERM"),
    ("socket netlink", "EPERM"),
    ("socket datagrams", "EPERM"),
    ("socket pair", "ok"),
    ("call io_uring_setup", "EPERM"),
];

/// As root and below the common root: nothing but the sandbox refuses.
pub(super) fn strict(cx: &Cx) -> Result<()> {
    need_root()?;
    let launch = cx.example("testbed").flag("listen", "tcp://127.0.0.1:0").flag("mode", cx.setup.mode);
    let backend = if cx.setup.is_base() { "auto" } else { cx.setup.backend };
    let launch = launch.flag("backend", backend).flag("worker-num", 1).flag("worker-sandbox", "strict");
    let bed = launch.start()?;
    let mut client = bed.connect()?;
    expect_calls(&bed, &mut client)?;
    let master = ["read /proc/MASTER/mem", "read /proc/MASTER/maps", "read /proc/MASTER/fd/3"];
    expect_of_master(&bed, &mut client, &master, "EACCES")?;
    expect_of_master(&bed, &mut client, &["kill MASTER"], "EPERM")?;
    let port = bed.port()?;
    let outside = cx.dir.join("outside");
    expect_all(&mut client, &NO_SOCKETS)?;
    expect_all(
        &mut client,
        &[
            ("read /etc/shadow", "EACCES"),
            (&format!("write {}", outside.display()), "EACCES"),
            ("exec /bin/true", "EACCES"),
            ("write /dev/null", "ok"),
            ("read /dev/urandom", "ok"),
            ("bind 127.0.0.1:0", "EPERM"),
            (&format!("connect 127.0.0.1:{port}"), "EPERM"),
        ],
    )?;
    ensure!(!outside.exists(), "it was written");
    // A panic's backtrace needs the program.
    let pid: i32 = client.ask_field("whoami", "pid")?;
    client.tell("crash panic")?;
    bed.wait_successor(0, pid)?;
    bed.connect()?.expect("try read /etc/shadow", "EACCES")?;
    bed.stop().map(drop)
}

pub(super) fn lists(cx: &Cx) -> Result<()> {
    need_root()?;
    let (read, write) = (cx.dir.join("read"), cx.dir.join("write"));
    for dir in [&read, &write] {
        fs::create_dir(dir)?;
        fs::write(dir.join("file"), "text")?;
    }
    fs::copy("/bin/true", write.join("program")).context("copy a program")?;
    let peer = TcpListener::bind("127.0.0.1:0")?;
    let start = |connect: &str| {
        let launch = cx.example("testbed").flag("listen", "tcp://127.0.0.1:0").flag("mode", cx.setup.mode);
        let launch = launch.flag("worker-num", 1).flag("worker-sandbox", "strict");
        let launch =
            launch.flag("worker-sandbox-read", read.display()).flag("worker-sandbox-read", "/usr/bin/env");
        let launch = launch.flag("worker-sandbox-write", write.display());
        launch.flag("worker-sandbox-connect", connect).start()
    };
    let bed = start("any")?;
    let mut client = bed.connect()?;
    let (read, write, program) = (read.join("file"), write.join("new"), write.join("program"));
    expect_all(
        &mut client,
        &[
            (&format!("read {}", read.display()), "ok"),
            (&format!("write {}", read.display()), "EACCES"),
            (&format!("write {}", write.display()), "ok"),
            (&format!("read {}", write.display()), "ok"),
            (&format!("exec {}", program.display()), "EACCES"),
            ("read /usr/bin/env", "ok"),
            ("read /usr/bin/true", "EACCES"),
            (&format!("connect {}", peer.local_addr()?), "ok"),
            ("bind 127.0.0.1:0", "EACCES"),
            ("socket unix", "ok"),
            ("socket inet", "ok"),
            ("socket netlink", "EPERM"),
        ],
    )?;
    bed.stop()?;
    let bed = start("unix")?;
    let mut client = bed.connect()?;
    expect_all(&mut client, &[("socket unix", "ok"), ("socket inet", "EPERM"), ("socket datagrams", "ok")])?;
    bed.stop().map(drop)
}

pub(super) fn io_uring(cx: &Cx) -> Result<()> {
    let launch = |backend| {
        let launch = cx.example("testbed").flag("listen", "tcp://127.0.0.1:0").flag("mode", "base");
        launch.flag("backend", backend).flag("worker-num", 1).flag("worker-sandbox", "strict")
    };
    launch("io_uring").refused(&["backend = io_uring", "worker_sandbox = strict"])?;
    let bed = launch("auto").start()?;
    bed.connect()?.expect("try call io_uring_setup", "EPERM")?;
    bed.stop().map(drop)
}
