//! Deaths at chosen points of a task's way.

use super::buffer::wait_empty;
use super::talk::Talk;
use super::{files_in, task_workers_of, wait_task_worker};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::log::Source;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};

/// Little, so that it shows if anything is left of it.
const BUFFER: usize = 64 << 10;

/// With breakpoints: one worker, so many task workers.
fn start_breaking(cx: &Cx, task_workers: usize) -> Result<Bed> {
    let launch = cx.testbed_breakpoints().flag("worker-num", 1).flag("task-worker-num", task_workers);
    let launch = launch.flag("task-tmpdir", cx.dir.display()).flag("task-retries", 1);
    launch.flag("task-buffer-size", BUFFER).start()
}

pub(super) fn break_points(cx: &Cx) -> Result<()> {
    // With one task worker, what it dies on waits for its successor; with another one, that goes on.
    for task_workers in [1, 2] {
        let bed = start_breaking(cx, task_workers)?;
        let mut client = Talk::begin(&bed)?;
        let mut retried = 0;
        let by_letter = (cx.setup.task_ipc != "ring").then_some(("received", false));
        let points = [("taken", true), ("result", true), ("done", false), ("marked", false)];
        for (point, is_retried) in points.into_iter().chain(by_letter) {
            let pid = task_workers_of(&bed)[&0];
            let arm = client.ask(&format!("taskto 0 die_at task_{point}"))?;
            client.expect_end(&arm, &format!("DIE_AT TASK_{}", point.to_uppercase()))?;
            // It dies over the first one.
            let texts = ["v".repeat(9_000), "two".to_owned(), "w".repeat(9_000)];
            let ids = texts
                .iter()
                .map(|text| client.ask(&format!("taskto 0 {text}")))
                .collect::<Result<Vec<_>>>()?;
            let ends = ids.into_iter().zip(texts.map(|text| text.to_uppercase()));
            client.expect_ends(ends).with_context(|| point.to_owned())?;
            wait_task_worker(&bed, 0, pid).with_context(|| point.to_owned())?;
            bed.log.wait_line(
                Source::Stderr,
                &[&format!("breakpoint task_{point}: pid {pid} dies")],
                PATIENCE,
            )?;
            retried += u64::from(is_retried);
            ensure!(client.stat("task_retried")? == retried, "{point}: retries");
        }
        ensure!(client.stat("task_lost")? == 0, "one is lost");
        wait_empty(&bed, BUFFER)?;
        bed.stop()?;
    }
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    Ok(())
}

pub(super) fn break_points_of_askers(cx: &Cx) -> Result<()> {
    for (point, orphans) in [("task_queued", 0), ("task_published", 1)] {
        let bed = start_breaking(cx, 1)?;
        let mut client = Talk::begin(&bed)?;
        client.expect("taskwait 5000 warm", "result WARM")?;
        client.expect(&format!("die_at {point}"), "ok")?;
        let worker = bed.lives()[&0].pid;
        // Its connection goes with it; what it has asked does not.
        client.client.tell(&format!("task {}", "u".repeat(9_000)))?;
        client.client.expect_close()?;
        bed.wait_successor(0, worker)?;
        let mut client = Talk::begin(&bed)?;
        proc::until("the orphan", PATIENCE, || {
            let orphaned = client.stat("task_orphaned").ok()?;
            let under_way = [client.stat("task_queued"), client.stat("task_running")];
            (orphaned == orphans && under_way.iter().all(|count| matches!(count, Ok(0)))).then_some(())
        })
        .with_context(|| point.to_owned())?;
        ensure!(files_in(&cx.dir)?.is_empty(), "{point}: files: {:?}", files_in(&cx.dir)?);
        client.expect("taskwait 5000 on", "result ON")?;
        wait_empty(&bed, BUFFER)?;
        bed.stop()?;
    }
    Ok(())
}
