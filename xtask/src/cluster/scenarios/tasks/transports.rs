//! Tasks that go by letter: payloads of any size, queues that outlive servers, other programs.

use super::talk::Talk;
use super::{all_files_in, files_in, start, task_workers_of};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::log::Source;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A key of a queue that is removed in the end.
struct Key(u32);

impl Key {
    fn new(cx: &Cx) -> Self {
        // Not another run's that goes on beside this one.
        Self(0x5357_0000 ^ cx.seed as u32 ^ proc::own_pid().cast_unsigned() << 8 | 1)
    }

    fn flags(&self) -> [String; 2] {
        ["message-queue-key".into(), format!("{:#x}", self.0)]
    }

    /// Messages that are in it, if there is one.
    fn messages(&self) -> Option<u64> {
        let text = fs::read_to_string("/proc/sysvipc/msg").ok()?;
        let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.into_iter().find(|row| row[0] == self.0.cast_signed().to_string())?;
        row[4].parse().ok()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let _ = Command::new("ipcrm").args(["-Q", &format!("{:#x}", self.0)]).status();
    }
}

fn start_with(cx: &Cx, key: &Key, task_workers: usize, flags: &[(&str, &str)]) -> Result<Bed> {
    let [name, value] = key.flags();
    let flags = [&[(&name[..], &value[..])], flags].concat();
    start(cx, task_workers, &flags)
}

/// Kills every process at once.
fn kill_all(bed: Bed) -> Result<()> {
    proc::kill_family(bed.ready.master)?;
    drop(bed);
    Ok(())
}

/// How often a line begins like that on standard output.
fn count(bed: &Bed, prefix: &str) -> usize {
    bed.log.texts(Source::Stdout).iter().filter(|line| line.starts_with(prefix)).count()
}

fn wait_noted(bed: &Bed, name: &str) -> Result<String> {
    Ok(bed.log.wait_line(Source::Stdout, &[&format!("noted {name} ")], PATIENCE)?.text)
}

pub(super) fn sizes(cx: &Cx) -> Result<()> {
    let limits = [("package-max-length", "64M"), ("max-wait-time", "10")];
    let bed = start(cx, 2, &limits)?;
    let mut client = Talk::begin(&bed)?;
    // Around what fits into a letter of 8 KiB, and into a slot.
    for size in [0, 1, 8139, 8140, 8141, 8187, 8188, 8189, 1 << 20, 20 << 20] {
        let body = "s".repeat(size);
        let id = client.ask(&format!("task sum {body}"))?;
        let end = client.end()?;
        ensure!(end.starts_with(&format!("finish {id} {size} ")), "{size}: {end:?}");
    }
    let id = client.ask("task big 1000000")?;
    client.expect_end(&id, &"X".repeat(1_000_000))?;
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    bed.stop().map(drop)
}

/// Those of a server with one task worker, without a key: that for whoever is free, and the task worker's.
const OWN_QUEUES: usize = 2;

/// System V queues that there are.
fn queues() -> Result<usize> {
    Ok(fs::read_to_string("/proc/sysvipc/msg")?.lines().skip(1).count())
}

pub(super) fn ways(cx: &Cx) -> Result<()> {
    let queues_before = queues()?;
    let plain = cx.example("testbed").flag("listen", "tcp://127.0.0.1:0").flag("worker-num", 1);
    let plain = plain.flag("task-worker-num", 1).flag("task-ipc-mode", "ring").start()?;
    let bed = start(cx, 1, &[])?;
    let sockets = |bed: &Bed| Ok::<_, anyhow::Error>(proc::socket_inodes(task_workers_of(bed)[&0])?.len());
    let (own, of_plain, more_queues) = (sockets(&bed)?, sockets(&plain)?, queues()? - queues_before);
    let expected = match cx.setup.task_ipc {
        "ring" => (false, 0),
        "unix" => (true, 0),
        _ => (false, OWN_QUEUES),
    };
    ensure!(
        (own > of_plain, more_queues) == expected,
        "a task worker has {own} sockets, {of_plain} with ring; {more_queues} queues more"
    );
    Talk::begin(&bed)?.expect("taskwait 5000 by any way", "result BY ANY WAY")?;
    plain.stop()?;
    bed.stop().map(drop)
}

pub(super) fn preemptive(cx: &Cx) -> Result<()> {
    let bed = start(cx, 2, &[])?;
    let mut client = Talk::begin(&bed)?;
    let pids = task_workers_of(&bed);
    pids.values().try_for_each(|pid| proc::halt(*pid))?;
    for _ in 0..4 {
        client.ask("task whoami")?;
    }
    // While the other one stands still.
    let mut done_by = |task_worker: u32, tasks: usize| -> Result<()> {
        proc::signal(pids[&task_worker], Signal::CONT)?;
        for _ in 0..tasks {
            let end = client.end()?;
            ensure!(end.contains(&format!(" task={task_worker} ")), "task worker {task_worker}: {end:?}");
        }
        Ok(())
    };
    let is_chosen = cx.setup.task_ipc == "msgqueue";
    done_by(1, if is_chosen { 2 } else { 4 })?;
    done_by(0, if is_chosen { 2 } else { 0 })?;
    bed.stop().map(drop)
}

pub(super) fn outlives(cx: &Cx) -> Result<()> {
    for retries in [0, 1] {
        let key = Key::new(cx);
        let flags = [("task-retries", &retries.to_string()[..]), ("package-max-length", "4M")];
        let bed = start_with(cx, &key, 1, &flags)?;
        let mut client = Talk::begin(&bed)?;
        let begun = client.ask("task sleep 1234")?;
        let pid = task_workers_of(&bed)[&0];
        proc::until("it to begin", PATIENCE, || proc::sleeps(pid).then_some(()))?;
        // More than a queue of 16 KiB has room for.
        let sizes: Vec<usize> = (0..150).map(|number| if number % 50 == 7 { 1 << 20 } else { 200 }).collect();
        for (number, size) in sizes.iter().enumerate() {
            client.ask(&format!("task note n{number} {}", "p".repeat(*size)))?;
        }
        ensure!(key.messages().is_some_and(|messages| messages > 10), "{:?}", key.messages());
        kill_all(bed)?;
        let bed = start_with(cx, &key, 2, &flags)?;
        // What was begun is lost, which this one says, or begun again.
        let lost = format!("task {begun} of an earlier server (10 bytes) is lost");
        let lost = bed.log.texts(Source::Stderr).iter().filter(|line| line.contains(&lost)).count();
        ensure!(lost == usize::from(retries == 0), "{lost} lines about {begun}, retries {retries}");
        for (number, size) in sizes.iter().enumerate() {
            let line = wait_noted(&bed, &format!("n{number}"))?;
            ensure!(line.contains(&format!("len={size} ")) && line.ends_with("foreign=true"), "{line}");
        }
        let mut client = Talk::begin(&bed)?;
        let done = sizes.len() as u64 + retries;
        proc::until("all tasks to be done", PATIENCE, || {
            (client.stat("task_done").ok()? == done).then_some(())
        })
        .with_context(|| format!("retries {retries}"))?;
        ensure!(client.stat("task_lost")? == 1 - retries, "retries {retries}: {}", client.stat("task_lost")?);
        client.expect("taskwait 5000 own", "result OWN")?;
        ensure!(count(&bed, "noted ") == sizes.len(), "one was done twice");
        // What was found by its file has left a letter.
        proc::until("the queue to be empty", PATIENCE, || (key.messages() == Some(0)).then_some(()))?;
        bed.stop()?;
        ensure!(all_files_in(&cx.dir)?.is_empty(), "files: {:?}", all_files_in(&cx.dir)?);
    }
    Ok(())
}

/// A stop in order, whose time is over, leaves tasks as well.
pub(super) fn outlives_stop(cx: &Cx) -> Result<()> {
    let key = Key::new(cx);
    let bed = start_with(cx, &key, 1, &[("max-wait-time", "0.5")])?;
    let mut client = Talk::begin(&bed)?;
    client.ask("task sleep 60000")?;
    let pid = task_workers_of(&bed)[&0];
    proc::until("it to begin", PATIENCE, || proc::sleeps(pid).then_some(()))?;
    for number in 0..100 {
        client.ask(&format!("task note n{number} {}", "p".repeat(300)))?;
    }
    client.ask(&format!("task note large {}", "p".repeat(100_000)))?;
    bed.stop()?;
    ensure!(key.messages().is_some_and(|messages| messages > 0), "the queue has gone");
    let bed = start_with(cx, &key, 1, &[])?;
    for number in 0..100 {
        wait_noted(&bed, &format!("n{number}"))?;
    }
    wait_noted(&bed, "large")?;
    ensure!(count(&bed, "noted ") == 101, "one was done twice");
    bed.stop()?;
    ensure!(all_files_in(&cx.dir)?.is_empty(), "files: {:?}", all_files_in(&cx.dir)?);
    Ok(())
}

/// A storm of deaths, all of them at the end, and each task is done at least once.
pub(super) fn outlives_deaths(cx: &Cx) -> Result<()> {
    let (key, mut rng) = (Key::new(cx), cx.rng());
    let mut logs = Vec::new();
    for round in 0..3 {
        let bed = start_with(cx, &key, 2, &[("task-retries", "100")])?;
        let mut client = Talk::begin(&bed)?;
        for number in 0..100 {
            client.ask(&format!("task note d{round}.{number}. x"))?;
            if rng.u32(..30) == 0 {
                let _ = proc::signal(task_workers_of(&bed)[&rng.u32(0..2)], Signal::KILL);
            }
        }
        logs.push(Arc::clone(&bed.log));
        if round < 2 {
            kill_all(bed)?;
            logs[round].wait_end(PATIENCE)?;
            continue;
        }
        let is_noted = |name: &str| {
            let prefix = format!("noted {name} ");
            logs.iter().any(|log| log.texts(Source::Stdout).iter().any(|line| line.starts_with(&prefix)))
        };
        let names = (0..3).flat_map(|round| (0..100).map(move |number| format!("d{round}.{number}.")));
        for name in names {
            proc::until(&name, PATIENCE, || is_noted(&name).then_some(()))?;
        }
        client.wait_idle()?;
        bed.stop()?;
    }
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    Ok(())
}

pub(super) fn foreign(cx: &Cx) -> Result<()> {
    let key = Key::new(cx);
    let produce = |words: &[&str]| -> Result<()> {
        let launch =
            cx.example("task_producer").word(&format!("{:#x}", key.0)).word(&cx.dir.to_string_lossy());
        let mut process = words.iter().fold(launch, |launch, word| launch.word(word)).spawn()?;
        ensure!(process.wait_exit(PATIENCE)?.success(), "it has failed");
        Ok(())
    };
    // Before there is a server.
    produce(&["note early x"])?;
    let large = format!("note large {}", "f".repeat(100_000));
    let bed = start_with(cx, &key, 2, &[])?;
    wait_noted(&bed, "early")?;
    produce(&["note idle x", &large, "--to", "1", "say addressed"])?;
    ensure!(wait_noted(&bed, "idle")?.ends_with("foreign=true"), "it is nobody's");
    ensure!(wait_noted(&bed, "large")?.contains("len=100000 "), "it is not whole");
    bed.log.wait_line(Source::Stdout, &["said by=1 addressed"], PATIENCE)?;
    // A task that dies is named, and lost; what is behind it is not.
    produce(&["crash kill", "note behind x"])?;
    wait_noted(&bed, "behind")?;
    bed.log.wait_line(Source::Stderr, &["task foreign.", "it is lost"], PATIENCE)?;
    if let Ok(status) = Command::new("python3").args(["-c", PYTHON, &key.0.to_string()]).status() {
        ensure!(status.success(), "python: {status}");
        wait_noted(&bed, "python")?;
        bed.log.wait_line(Source::Stderr, &["is thrown away", "SWTK"], PATIENCE)?;
    }
    let mut client = Talk::begin(&bed)?;
    client.expect("taskwait 5000 own", "result OWN")?;
    // Only at its start a task worker looks for what is for nobody.
    produce(&["--to", "9", "note later x"])?;
    bed.stop()?;
    ensure!(key.messages() == Some(1), "that for task worker 9: {:?}", key.messages());
    // A server that does not have it lets another one of its task workers do it.
    let bed = start_with(cx, &key, 1, &[])?;
    wait_noted(&bed, "later")?;
    bed.stop()?;
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    Ok(())
}

const PYTHON: &str = r#"
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
queue = libc.msgget(ctypes.c_int(int(sys.argv[1])), 0o1600)
def send(kind, message):
    message = struct.pack("l", kind) + message
    assert libc.msgsnd(queue, message, len(message) - struct.calcsize("l"), 0) == 0
send(1, b"x" * 100)
payload = b"note python x"
send(1, struct.pack("<4sHHQQQIHHQ", b"SWTK", 1, 0, 0, 0, 0, 0, 0, 0, len(payload)) + payload)
"#;

pub(super) fn refused(cx: &Cx) -> Result<()> {
    let key = Key::new(cx);
    let [name, value] = key.flags();
    let bare = || cx.testbed().flag("task-worker-num", 1).flag("task-tmpdir", cx.dir.display());
    let with_ring = bare().flag("task-ipc-mode", "ring").flag(&name, &value);
    with_ring.refused(&["message_queue_key", "needs task_ipc_mode = msgqueue"])?;
    let bed = start_with(cx, &key, 1, &[])?;
    bare().flag(&name, &value).refused(&["only server of message_queue_key", "another one runs"])?;
    let mut client = Talk::begin(&bed)?;
    client.expect("taskwait 5000 on", "result ON")?;
    bed.stop().map(drop)
}

/// Somebody removes the queue: what was in it stands in shared memory, too.
pub(super) fn queue_removed(cx: &Cx) -> Result<()> {
    let key = Key::new(cx);
    let bed = start_with(cx, &key, 2, &[])?;
    let mut client = Talk::begin(&bed)?;
    let busy = ["task sleep 500"; 2].map(|packet| client.ask(packet));
    let pids = task_workers_of(&bed);
    proc::until("both to begin", PATIENCE, || pids.values().all(|pid| proc::sleeps(*pid)).then_some(()))?;
    let ids: Vec<String> =
        (0..20).map(|number| client.ask(&format!("task r{number}"))).collect::<Result<_>>()?;
    ensure!(key.messages().is_some_and(|messages| messages > 0), "{:?}", key.messages());
    let status = Command::new("ipcrm").args(["-Q", &format!("{:#x}", key.0)]).status()?;
    ensure!(status.success(), "ipcrm: {status}");
    let more = client.ask("task more")?;
    let results = (0..20).map(|number| format!("R{number}"));
    let busy = busy.into_iter().collect::<Result<Vec<_>>>()?.into_iter().map(|id| (id, "SLEEP 500".into()));
    client.expect_ends(busy.chain(ids.into_iter().zip(results)).chain([(more, "MORE".into())]))?;
    bed.stop().map(drop)
}

/// Queues without a key go with their server, or with the next one's start.
pub(super) fn private_queue(cx: &Cx) -> Result<()> {
    let before = queues()?;
    let bed = start(cx, 1, &[])?;
    ensure!(queues()? == before + OWN_QUEUES, "{} queues, {before} before", queues()?);
    let mut client = Talk::begin(&bed)?;
    client.ask("task sleep 60000")?;
    client.ask("task behind")?;
    kill_all(bed)?;
    let bed = start(cx, 1, &[])?;
    proc::until("the other queues to go", Duration::from_secs(1), || {
        queues().is_ok_and(|queues| queues == before + OWN_QUEUES).then_some(())
    })?;
    // Without its master a server goes, and with it the queues.
    proc::signal(bed.ready.master, Signal::KILL)?;
    proc::until("the queues to go", PATIENCE, || {
        queues().is_ok_and(|queues| queues == before).then_some(())
    })?;
    drop(bed);
    Ok(())
}
