//! Payloads and results that are too large for a slot: in memory, and in files.

use super::edges::shared_memory;
use super::talk::Talk;
use super::{files_in, start, task_workers_of, wait_task_worker};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::{Result, ensure};
use rustix::process::Signal;

const SIZE: usize = 100_000;
/// Of all.
const SUM: usize = 250 << 10;

/// Bytes that large tasks have of memory.
fn in_use(bed: &Bed) -> Result<usize> {
    shared_memory(bed, "swoole-tasks").map(|bytes| bytes as usize)
}

/// Until they have little of `task_buffer_size`, which somebody may keep for the next.
pub(super) fn wait_empty(bed: &Bed, task_buffer_size: usize) -> Result<()> {
    let is_little = || in_use(bed).is_ok_and(|bytes| bytes <= task_buffer_size / 8).then_some(());
    proc::until("memory to be given back", PATIENCE, is_little)
}

pub(super) fn buffer(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("task-buffer-size", &SUM.to_string())])?;
    let mut client = Talk::begin(&bed)?;
    let large = "z".repeat(SIZE);
    let before = in_use(&bed)?;
    // While somebody stands still: two find room, and the third one does not.
    let pid = task_workers_of(&bed)[&0];
    proc::halt(pid)?;
    let ids = [(); 3].map(|()| client.ask(&format!("task {large}")));
    let ids = ids.into_iter().collect::<Result<Vec<_>>>()?;
    let (bytes, files) = (in_use(&bed)?, files_in(&cx.dir)?);
    ensure!(before == 0 && (2 * SIZE..SUM).contains(&bytes), "{before} bytes, then {bytes}");
    ensure!(files.len() == 1, "files: {files:?}");
    proc::signal(pid, Signal::CONT)?;
    client.expect_ends(ids.into_iter().map(|id| (id, large.to_uppercase())))?;
    wait_empty(&bed, SUM)?;
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    // A task worker dies before one.
    let lost = client.ask("task crash kill")?;
    let id = client.ask(&format!("task {large}"))?;
    client.expect_end(&lost, "error: the task worker that had begun it died")?;
    client.expect_end(&id, &large.to_uppercase())?;
    let pid = wait_task_worker(&bed, 0, pid)?;
    wait_empty(&bed, SUM)?;
    // Their asker dies: its successor gives it back when they are done.
    proc::halt(pid)?;
    client.ask(&format!("task {large}"))?;
    let worker = bed.lives()[&0].pid;
    proc::signal(worker, Signal::KILL)?;
    bed.wait_successor(0, worker)?;
    ensure!(in_use(&bed)? > SIZE, "it is still to be done");
    proc::signal(pid, Signal::CONT)?;
    let mut client = Talk::begin(&bed)?;
    client.expect("taskwait 5000 x", "result X")?;
    wait_empty(&bed, SUM)?;
    // Nobody waits for these.
    client.expect(
        &format!("taskwait 5000 ask say {large}"),
        &format!("result ASK SAY {}", large.to_uppercase()),
    )?;
    client.wait_idle()?;
    wait_empty(&bed, SUM)?;
    bed.stop().map(drop)
}

pub(super) fn files(cx: &Cx) -> Result<()> {
    let in_files = [("task-buffer-size", "0")];
    let bed = start(cx, 1, &in_files)?;
    let mut client = Talk::begin(&bed)?;
    let large = "z".repeat(20_000);
    // A file for its payload while it waits, and while it is done.
    let busy = client.ask("task sleep 300")?;
    let id = client.ask(&format!("task {large}"))?;
    ensure!(files_in(&cx.dir)?.len() == 1, "files: {:?}", files_in(&cx.dir)?);
    client.expect_end(&busy, "SLEEP 300")?;
    client.expect_end(&id, &large.to_uppercase())?;
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    // Its asker dies: its successor puts it away when it is done.
    client.ask("task sleep 300")?;
    client.ask(&format!("task {large}"))?;
    let worker = bed.lives()[&0].pid;
    proc::signal(worker, Signal::KILL)?;
    bed.wait_successor(0, worker)?;
    let mut client = Talk::begin(&bed)?;
    client.expect("taskwait 5000 x", "result X")?;
    proc::until("files to go", PATIENCE, || {
        files_in(&cx.dir).is_ok_and(|files| files.is_empty()).then_some(())
    })?;
    // Everybody is killed: the next server there puts them away.
    client.ask("task sleep 60000")?;
    client.ask(&format!("task {large}"))?;
    proc::kill_family(bed.ready.master)?;
    ensure!(files_in(&cx.dir)?.len() == 1, "files: {:?}", files_in(&cx.dir)?);
    drop(bed);
    let bed = start(cx, 1, &in_files)?;
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    // One that is stopped leaves none, whatever it had under way.
    let mut client = Talk::begin(&bed)?;
    client.ask("task sleep 60000")?;
    client.ask(&format!("task {large}"))?;
    bed.signal_master(Signal::INT)?;
    bed.signal_master(Signal::INT)?;
    bed.stop()?;
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    Ok(())
}
