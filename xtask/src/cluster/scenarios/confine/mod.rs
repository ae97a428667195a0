//! Who workers are, and what one that was taken over can reach. All of it needs root.

mod attempts;
mod holdings;

use crate::cluster::bed::{Launch, PATIENCE};
use crate::cluster::load::Load;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends, full, once};
use crate::cluster::proc;
use crate::cluster::scenarios::tasks::{task_workers_of, wait_task_worker};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(super) static ALL: &[Scenario] = &[
    backends(
        "confine_account",
        "workers are another user below another root, and so are their successors",
        account,
    ),
    once("confine_group_alone", "a group alone is the only one", group_alone),
    once("confine_refused", "accounts and directories that are not there are named", refused).in_process(),
    once(
        "confine_not_permitted",
        "rights that are missing are named, before anything is forked",
        not_permitted,
    ),
    backends(
        "confine_goes_on",
        "confined workers are reloaded, replaced and asked for tasks as ever",
        goes_on,
    ),
    backends("confine_log_reopened", "confined workers get a new log file by being replaced", log_reopened),
    backends("confine_requests", "confined workers reload, retire each other and stop the server", requests),
    backends("confine_orphans", "confined workers leave when master and manager are killed", orphans),
    once("sandbox_off", "what the attempts of the other scenarios meet without a sandbox", attempts::off),
    backends("sandbox_basic", "no new privileges, and no looks into other processes", attempts::basic),
    backends("sandbox_strict", "no files but its own, no sockets, no signals", attempts::strict),
    once(
        "sandbox_strict_lists",
        "files and sockets that the configuration allows, and no others",
        attempts::lists,
    ),
    once("sandbox_io_uring", "no io_uring in a worker under strict", attempts::io_uring).in_base(),
    full(
        "worker_holds",
        "the descriptors and mappings of each process are the documented ones",
        holdings::holdings,
    ),
];

/// `nobody` on every system.
const NOBODY: u32 = 65534;

fn need_root() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "this scenario needs root");
    Ok(())
}

/// A root directory for workers, with a directory for their tasks' files in it.
fn jail(cx: &Cx) -> Result<PathBuf> {
    let jail = cx.dir.join("jail");
    fs::create_dir_all(jail.join("tmp"))?;
    std::os::unix::fs::chown(jail.join("tmp"), Some(NOBODY), None)?;
    Ok(jail)
}

/// Everything at once; under Base mode, strict has no io_uring.
fn confined<'a>(cx: &'a Cx, jail: &Path, sandbox: &str) -> Launch<'a> {
    let launch = if cx.setup.is_base() && sandbox == "strict" {
        let launch = cx.example("testbed").flag("mode", "base").flag("backend", "auto");
        launch.flag("listen", "tcp://127.0.0.1:0")
    } else {
        cx.testbed()
    };
    let launch = launch.flag("worker-num", 2).flag("task-worker-num", 1).flag("user", NOBODY);
    let launch = launch.flag("group", NOBODY).flag("chroot", jail.display());
    launch.flag("task-tmpdir", jail.join("tmp").display()).flag("worker-sandbox", sandbox)
}

/// The words of a line of `/proc/PID/status`.
fn status(pid: i32, key: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(line
        .with_context(|| format!("no {key} in the status of {pid}"))?
        .split_whitespace()
        .map(Into::into)
        .collect())
}

/// That this process is `nobody`, and where its root is.
fn check_account(pid: i32, jail: &Path) -> Result<()> {
    let nobody = NOBODY.to_string();
    for key in ["Uid", "Gid"] {
        ensure!(status(pid, key)? == vec![nobody.clone(); 4], "{key} of {pid}: {:?}", status(pid, key)?);
    }
    ensure!(status(pid, "Groups")? == [nobody], "groups of {pid}: {:?}", status(pid, "Groups")?);
    for key in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(status(pid, key)? == ["0000000000000000"], "{key} of {pid}: {:?}", status(pid, key)?);
    }
    for link in ["root", "cwd"] {
        let target = fs::read_link(format!("/proc/{pid}/{link}"))?;
        ensure!(target == fs::canonicalize(jail)?, "{link} of {pid} is {}", target.display());
    }
    Ok(())
}

fn account(cx: &Cx) -> Result<()> {
    need_root()?;
    let jail = jail(cx)?;
    let bed = confined(cx, &jail, "off").start()?;
    let check_all = || -> Result<()> {
        let workers =
            bed.workers().into_iter().chain(task_workers_of(&bed).into_values()).collect::<Vec<_>>();
        ensure!(workers.len() == 3, "{workers:?}");
        workers.iter().try_for_each(|pid| check_account(*pid, &jail))
    };
    check_all()?;
    for pid in [Some(bed.ready.master), bed.manager()].into_iter().flatten() {
        ensure!(status(pid, "Uid")? == vec!["0"; 4], "{pid} is not root any more");
        ensure!(fs::read_link(format!("/proc/{pid}/root"))? == Path::new("/"), "{pid} has another root");
    }
    let before = bed.lives()[&0].pid;
    proc::signal(before, Signal::KILL)?;
    bed.wait_successor(0, before)?;
    let before = task_workers_of(&bed)[&0];
    proc::signal(before, Signal::KILL)?;
    wait_task_worker(&bed, 0, before)?;
    check_all()?;
    if !bed.is_base() {
        // The next one was not forked, but executed anew.
        bed.replace_manager()?;
        let before = bed.lives()[&1].pid;
        proc::signal(before, Signal::KILL)?;
        bed.wait_successor(1, before)?;
        check_all()?;
    }
    bed.stop().map(drop)
}

fn group_alone(cx: &Cx) -> Result<()> {
    need_root()?;
    let bed = cx.testbed().flag("worker-num", 1).flag("group", NOBODY).start()?;
    let (pid, nobody) = (bed.ready.workers[0], NOBODY.to_string());
    ensure!(status(pid, "Uid")? == vec!["0"; 4], "it is another user");
    ensure!(status(pid, "Gid")? == vec![nobody.clone(); 4], "{:?}", status(pid, "Gid")?);
    ensure!(status(pid, "Groups")? == [nobody], "{:?}", status(pid, "Groups")?);
    bed.stop().map(drop)
}

fn refused(cx: &Cx) -> Result<()> {
    need_root()?;
    let jail = jail(cx)?;
    cx.testbed().flag("user", "no-such-user").refused(&["user = no-such-user", "no such user"])?;
    cx.testbed().flag("group", "no-such-group").refused(&["group = no-such-group", "no such group"])?;
    cx.testbed().flag("user", 54321).refused(&["user = 54321", "needs a group"])?;
    cx.testbed().flag("chroot", "/no/such").refused(&["chroot = /no/such", "a directory"])?;
    let outside = || cx.testbed().flag("chroot", jail.display());
    outside()
        .flag("task-worker-num", 1)
        .flag("task-tmpdir", "/tmp")
        .refused(&["task_tmpdir = /tmp", "chroot"])?;
    let strict = || outside().flag("worker-sandbox", "strict");
    strict()
        .flag("worker-sandbox-read", "/etc")
        .refused(&["worker_sandbox_read = /etc", "must lie in chroot"])?;
    strict()
        .flag("worker-sandbox-write", "/no/such")
        .refused(&["worker_sandbox_write = /no/such", "exists"])?;
    cx.testbed()
        .flag("worker-sandbox", "tight")
        .refused(&["worker_sandbox = tight", "off, basic or strict"])?;
    let basic = cx.testbed().flag("worker-sandbox", "basic");
    basic.flag("worker-sandbox-read", "/etc").refused(&["worker_sandbox_read = /etc", "no effect"])
}

/// The testbed as `nobody`, who can read neither a home directory nor our scratch directory.
fn as_nobody(cx: &Cx) -> Result<Launch<'_>> {
    let program = cx.dir.join("testbed");
    fs::copy(cx.examples.join("testbed"), &program)?;
    for path in [cx.dir.as_path(), cx.dir.parent().context("the directory lies in another")?] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let launch = Launch::new(cx, program).flag("listen", "tcp://127.0.0.1:0").flag("mode", cx.setup.mode);
    let who = format!("--reuid={NOBODY}");
    Ok(launch.through(&["setpriv", &who, "--regid=65534", "--clear-groups", "--inh-caps=-all"]))
}

fn not_permitted(cx: &Cx) -> Result<()> {
    need_root()?;
    as_nobody(cx)?.flag("user", "root").refused(&["user = root", "CAP_SETUID", "as root"])?;
    as_nobody(cx)?.flag("group", 0).refused(&["group = 0", "CAP_SETGID"])?;
    as_nobody(cx)?.flag("chroot", "/tmp").refused(&["chroot = /tmp", "CAP_SYS_CHROOT"])?;
    // Who is that user already needs no right; nor does a sandbox.
    let launch = as_nobody(cx)?.flag("user", NOBODY).flag("group", NOBODY).flag("worker-sandbox", "strict");
    let bed = launch.flag("worker-num", 1).flag("backend", "auto").start()?;
    let mut client = bed.connect()?;
    client.expect("try read /etc/passwd", "EACCES")?;
    client.expect(&format!("try read /proc/{}/mem", bed.ready.master), "EACCES")?;
    client.expect("echo served", "served")?;
    bed.stop().map(drop)
}

fn goes_on(cx: &Cx) -> Result<()> {
    need_root()?;
    let jail = jail(cx)?;
    let launch = confined(cx, &jail, "strict").word("--ask-on-start").flag("max-memory", "1G");
    let bed = if cx.setup.is_base() { launch } else { launch.flag("on-crash", "retry") }.start()?;
    for pid in bed.workers().into_iter().chain(task_workers_of(&bed).into_values()) {
        check_account(pid, &jail)?;
        ensure!(status(pid, "NoNewPrivs")? == ["1"], "{pid} may get new privileges");
        ensure!(status(pid, "Seccomp")? == ["2"], "{pid} has no filter");
    }
    let mut client = bed.connect()?;
    let large = "y".repeat(300_000);
    let tasks = |client: &mut crate::cluster::client::Client| -> Result<()> {
        client.expect(&format!("taskwait 9000 {large}"), &format!("result {}", large.to_uppercase()))?;
        client.expect("taskwait 9000 big 100000", &format!("result {}", "X".repeat(100_000)))
    };
    tasks(&mut client)?;
    let load = Load::start(bed.address()?, 4)?;
    load.wait_more(500)?;
    let before = bed.lives();
    bed.signal_master(Signal::USR1)?;
    for (worker, life) in before {
        bed.wait_successor(worker, life.pid)?;
    }
    bed.log.wait_line(Source::Stderr, &["has reloaded all workers"], PATIENCE)?;
    tasks(&mut client)?;
    if !bed.is_base() {
        for _ in 0..2 {
            let victim = bed.lives()[&0].pid;
            proc::signal(victim, Signal::KILL)?;
            bed.wait_successor(0, victim)?;
            bed.replace_manager()?;
            load.wait_more(500)?;
        }
    }
    load.finish_unharmed()?;
    tasks(&mut client)?;
    let left = fs::read_dir(jail.join("tmp"))?.count();
    ensure!(left == 0, "{left} files of tasks are left");
    bed.stop().map(drop)
}

fn log_reopened(cx: &Cx) -> Result<()> {
    need_root()?;
    let (jail, file, moved) = (jail(cx)?, cx.dir.join("server.log"), cx.dir.join("server.log.1"));
    let bed = confined(cx, &jail, "basic").flag("log-file", file.display()).start()?;
    let mut client = bed.connect()?;
    client.expect("echo before", "before")?;
    let (before, task_worker) = (bed.lives(), task_workers_of(&bed)[&0]);
    fs::rename(&file, &moved)?;
    bed.signal_master(Signal::HUP)?;
    for (worker, life) in &before {
        bed.wait_successor(*worker, life.pid)?;
    }
    wait_task_worker(&bed, 0, task_worker)?;
    client.expect("echo after", "after")?;
    // Whoever is there by now writes into the new one.
    let new = bed.lives();
    proc::until("successors with the new log", PATIENCE, || {
        let has = |pid| proc::files(pid).is_ok_and(|files| files.contains(&file) && !files.contains(&moved));
        new.values().all(|life| has(life.pid)).then_some(())
    })?;
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop()?;
    let text = fs::read_to_string(&file)?;
    ensure!(!text.contains("open log_file") && text.contains("Server has stopped"), "{text}");
    Ok(())
}

fn requests(cx: &Cx) -> Result<()> {
    need_root()?;
    let jail = jail(cx)?;
    for sandbox in ["off", "strict"] {
        let mut bed = confined(cx, &jail, sandbox).start()?;
        let mut client = bed.connect_to_worker(0)?;
        let before = bed.lives();
        client.expect("stop 1", "ok")?;
        bed.wait_successor(1, before[&1].pid)?;
        if !bed.is_base() {
            // What nobody hears now, the next one does.
            proc::signal(bed.manager().context("no manager")?, Signal::KILL)?;
        }
        let before = bed.lives();
        client.expect("reload", "ok")?;
        for (worker, life) in before {
            bed.wait_successor(worker, life.pid)?;
        }
        bed.log.wait_line(Source::Stderr, &["has reloaded all workers"], PATIENCE)?;
        let before = task_workers_of(&bed)[&0];
        client.expect("reload task", "ok")?;
        wait_task_worker(&bed, 0, before)?;
        ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
        client.expect("shutdown", "ok")?;
        let status = bed.wait_gone(PATIENCE)?;
        ensure!(status.success(), "ended with {status}");
    }
    Ok(())
}

/// The kernel forgets whom to tell of a parent's death when the child becomes another user.
fn orphans(cx: &Cx) -> Result<()> {
    need_root()?;
    let jail = jail(cx)?;
    for sandbox in ["off", "strict"] {
        let mut bed = confined(cx, &jail, sandbox).start()?;
        let mut client = bed.connect()?;
        // Too busy to notice by itself.
        bed.occupy(&mut client, 30_000)?;
        bed.signal_master(Signal::KILL)?;
        if let Err(error) = bed.wait_gone(PATIENCE) {
            bail!("{sandbox}: {error}; {:?}", bed.log.texts(Source::Stderr));
        }
    }
    Ok(())
}
