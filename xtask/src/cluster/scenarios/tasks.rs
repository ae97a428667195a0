//! Task workers: what is asked of them, and what becomes of it when somebody dies, leaves or stops.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::{Client, Closed};
use crate::cluster::log::{Source, field};
use crate::cluster::matrix::{Cx, Scenario, backends};
use crate::cluster::proc;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    backends("tasks", "a task goes to a task worker, its result to who has asked, of any size", tasks),
    backends("tasks_none", "without task workers a task is an error", none),
    backends(
        "task_processes",
        "task workers are there before the server is ready, and hold no socket of a client",
        processes,
    ),
    backends("task_queue_max", "as many tasks as may be, and one more is an error", queue_max),
    backends("task_lost", "a task that its task worker dies on is lost, named, and no other one", lost),
    backends("task_retries", "or it is begun again, so often and no more", retries),
    backends(
        "task_asker_dies",
        "what a dead worker has asked is done, and told to nobody; its successor's is told to that",
        asker_dies,
    ),
    backends("task_reload", "SIGUSR2 replaces the task workers, and no task is lost", reload),
    backends("task_max_request", "a task worker that has done its share is replaced", max_request),
    backends("task_stop", "a stop waits for tasks: first workers leave, then task workers", stop),
    backends(
        "task_stop_bound",
        "but no longer than max_wait_time, and the log counts what is left",
        stop_bound,
    ),
    backends(
        "task_manager_dies",
        "tasks go on without a manager, and the next one sees to the dead",
        manager_dies,
    )
    .in_process(),
    backends("task_files", "large tasks leave no file, whoever is killed", files),
    backends(
        "break_points_tasks",
        "wherever a task worker dies on a task's way, the task ends once",
        break_points,
    ),
    backends(
        "break_points_askers",
        "and wherever its worker dies: it is done or never was, and nobody waits for it",
        break_points_of_askers,
    )
    .in_process(),
    backends(
        "task_storm",
        "task workers die at random: each task is answered once, on its own connection",
        storm_of_task_workers,
    ),
    backends(
        "task_storm_askers",
        "and so do workers: nothing is told twice, or to who has not asked",
        storm_of_all,
    ),
];

/// One worker, so that all clients are its own, and so many task workers.
fn start(cx: &Cx, task_workers: usize, flags: &[(&str, &str)]) -> Result<Bed> {
    let launch = cx.testbed().flag("worker-num", 1).flag("task-worker-num", task_workers);
    let launch = launch.flag("task-tmpdir", cx.dir.display());
    flags.iter().fold(launch, |launch, (name, value)| launch.flag(name, value)).start()
}

/// The latest process of each task worker's slot.
fn task_workers_of(bed: &Bed) -> BTreeMap<u32, i32> {
    let lines = bed.log.texts(Source::Stdout);
    let starts = lines.iter().filter(|line| line.starts_with("on_worker_start task="));
    starts
        .filter_map(|line| Some((field(line, "task")?.parse().ok()?, field(line, "pid")?.parse().ok()?)))
        .collect()
}

fn wait_task_worker(bed: &Bed, id: u32, before: i32) -> Result<i32> {
    proc::until("another task worker", PATIENCE, || {
        task_workers_of(bed).get(&id).copied().filter(|pid| *pid != before)
    })
}

/// A client for whom ends of tasks may come before other replies.
struct Talk {
    client: Client,
    ended: VecDeque<String>,
}

impl Talk {
    fn begin(bed: &Bed) -> Result<Self> {
        Ok(Self { client: bed.connect()?, ended: VecDeque::new() })
    }

    fn reply(&mut self, packet: &str) -> Result<String> {
        self.client.tell(packet)?;
        loop {
            let line = self.client.line()?;
            if !line.starts_with("finish ") {
                return Ok(line);
            }
            self.ended.push_back(line);
        }
    }

    fn expect(&mut self, packet: &str, reply: &str) -> Result<()> {
        let got = self.reply(packet)?;
        ensure!(got == reply, "{packet:?} got {got:?} instead of {reply:?}");
        Ok(())
    }

    /// Asks for a task by this packet: its id.
    fn ask(&mut self, packet: &str) -> Result<String> {
        let told = self.reply(packet)?;
        let id = told.strip_prefix("task ").with_context(|| format!("{packet:?}: {told:?}"))?;
        Ok(id.to_owned())
    }

    /// The next end of a task.
    fn end(&mut self) -> Result<String> {
        match self.ended.pop_front() {
            Some(line) => Ok(line),
            None => self.client.line(),
        }
    }

    fn expect_end(&mut self, id: &str, result: &str) -> Result<()> {
        let (got, wanted) = (self.end()?, format!("finish {id} {result}"));
        ensure!(got == wanted, "got {got:?} instead of {wanted:?}");
        Ok(())
    }

    /// The next ends, in whatever order.
    fn expect_ends(&mut self, wanted: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let wanted: BTreeSet<String> =
            wanted.into_iter().map(|(id, result)| format!("finish {id} {result}")).collect();
        let got = wanted.iter().map(|_| self.end()).collect::<Result<BTreeSet<_>>>()?;
        ensure!(got == wanted, "got {got:?} instead of {wanted:?}");
        Ok(())
    }

    fn stat(&mut self, name: &str) -> Result<u64> {
        let json = self.reply("stats")?;
        let key = format!("\"{name}\":");
        let rest = json.split_once(&key).with_context(|| format!("no {name} in {json}"))?.1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }

    /// Until no task is under way.
    fn wait_idle(&mut self) -> Result<()> {
        proc::until("all tasks to end", PATIENCE, || {
            let under_way = [self.stat("task_queued"), self.stat("task_running")];
            under_way.iter().all(|count| matches!(count, Ok(0))).then_some(())
        })
    }
}

/// Files of tasks in this directory.
fn files_in(dir: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("swoole-task-")).collect())
}

fn tasks(cx: &Cx) -> Result<()> {
    let bed = start(cx, 2, &[])?;
    let mut client = Talk::begin(&bed)?;
    for text in ["one", "two", ""] {
        let id = client.ask(&format!("task {text}"))?;
        client.expect_end(&id, &text.to_uppercase())?;
    }
    client.expect("taskwait 5000 three", "result THREE")?;
    let begin = Instant::now();
    client.expect(
        "taskall 5000 a|sleep 200|sleep 200|fail it is broken|e",
        "results A|SLEEP 200|SLEEP 200|error: it failed: it is broken|E",
    )?;
    ensure!(begin.elapsed() < Duration::from_millis(390), "two task workers took {:?}", begin.elapsed());
    let begin = Instant::now();
    client.expect("taskwait 100 sleep 400", "error: timeout")?;
    client.expect("taskall 100 sleep 1|sleep 400", "results SLEEP 1|error: timeout")?;
    ensure!(begin.elapsed() < Duration::from_millis(390), "200 ms took {:?}", begin.elapsed());
    client.wait_idle()?;
    // Finished before its end: the asker need not wait for that.
    let begin = Instant::now();
    let id = client.ask("task early bird")?;
    client.expect_end(&id, "BIRD")?;
    ensure!(begin.elapsed() < Duration::from_millis(90), "it took {:?}", begin.elapsed());
    for worker in [0, 1, 1, 0] {
        let name = client.ask(&format!("taskto {worker} whoami"))?;
        let pid = task_workers_of(&bed)[&worker];
        client.expect_end(&name, &format!("task={worker} pid={pid} generation=1"))?;
    }
    client.expect("taskto 2 x", "error: no such task worker: 2 (task_worker_num = 2)")?;
    // More than a slot holds, there and back.
    let large = "y".repeat(300_000);
    let id = client.ask(&format!("task {large}"))?;
    client.expect_end(&id, &large.to_uppercase())?;
    let id = client.ask("task big 1000000")?;
    client.expect_end(&id, &"X".repeat(1_000_000))?;
    client.expect(&format!("taskwait 5000 {large}"), &format!("result {}", large.to_uppercase()))?;
    let left = files_in(&cx.dir)?;
    ensure!(left.is_empty(), "files are left: {left:?}");
    // The two that nobody waited for have ended by now.
    client.wait_idle()?;
    ensure!(client.stat("task_failed")? == 1 && client.stat("task_lost")? == 0, "counts");
    bed.stop().map(drop)
}

fn none(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).start()?;
    let mut client = Talk::begin(&bed)?;
    for packet in ["task x", "taskto 0 x", "taskwait 100 x", "taskall 100 x|y"] {
        client.expect(packet, "error: there are no task workers: task_worker_num = 0")?;
    }
    bed.signal_master(Signal::USR2)?;
    bed.log.wait_line(Source::Stderr, &["no task workers to reload"], PATIENCE)?;
    bed.stop().map(drop)
}

fn processes(cx: &Cx) -> Result<()> {
    let bed = start(cx, 3, &[])?;
    let ready = bed.log.wait_line(Source::Stdout, &["ready master="], PATIENCE)?.text;
    let told: Vec<i32> =
        field(&ready, "tasks").context("no tasks=")?.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let started: Vec<i32> = task_workers_of(&bed).into_values().collect();
    ensure!(told == started && told.len() == 3, "ready says {told:?}, they say {started:?}");
    let _client = bed.connect()?;
    for (id, pid) in (0..).zip(told) {
        ensure!(proc::title(pid) == format!("swoole: task worker {id}"), "{pid} is {:?}", proc::title(pid));
        ensure!(proc::threads(pid)?.len() == 1, "more than one thread");
        let sockets = proc::socket_inodes(pid)?;
        let of_clients = proc::tcp_rows().into_iter().filter(|row| sockets.contains(&row.inode)).count();
        ensure!(of_clients == 0, "task worker {id} holds {of_clients} TCP sockets");
    }
    bed.stop().map(drop)
}

fn queue_max(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("task-queue-max", "3")])?;
    let mut client = Talk::begin(&bed)?;
    let refusal = "error: ask for a task: 3 of this worker's are under way (task_queue_max)";
    for round in 0..3 {
        let ids = ["sleep 200", "b", "c"].map(|text| client.ask(&format!("task {text}")));
        client.expect("task d", refusal)?;
        client.expect("taskwait 1000 d", refusal)?;
        client.expect("taskall 1000 d|e", refusal)?;
        for (id, result) in ids.into_iter().zip(["SLEEP 200", "B", "C"]) {
            client.expect_end(&id?, result).with_context(|| format!("round {round}"))?;
        }
    }
    ensure!(client.stat("task_refused")? == 9, "9 were refused");
    // What was taken back makes room, too.
    let id = client.ask("task sleep 300")?;
    client.expect("taskall 50 x|y", "results error: timeout|error: timeout")?;
    client.expect("taskall 50 x|y", "results error: timeout|error: timeout")?;
    client.expect_end(&id, "SLEEP 300")?;
    bed.stop().map(drop)
}

fn lost(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[])?;
    let mut client = Talk::begin(&bed)?;
    for how in ["panic", "segv", "kill", "exit 3", "abort"] {
        let pid = task_workers_of(&bed)[&0];
        let ids =
            [&format!("crash {how}"), "next", "and next"].map(|text| client.ask(&format!("task {text}")));
        let [dead, next, last] = ids;
        let dead = dead?;
        client.expect_end(&dead, "error: the task worker that had begun it died")?;
        client.expect_end(&next?, "NEXT")?;
        client.expect_end(&last?, "AND NEXT")?;
        let line = bed.log.wait_line(
            Source::Stdout,
            &["on_worker_error task=0", &format!("pid={pid} ")],
            PATIENCE,
        )?;
        ensure!(field(&line.text, "tasks") == Some(&format!("lost:{dead}")), "{:?}", line.text);
        bed.log.wait_line(
            Source::Stderr,
            &["task worker 0 (pid", &format!("task {dead} ("), "it is lost"],
            PATIENCE,
        )?;
        wait_task_worker(&bed, 0, pid)?;
    }
    client.expect(
        "taskwait 5000 crash kill",
        "error: wait for a task: the task worker that had begun it died",
    )?;
    ensure!(client.stat("task_lost")? == 6, "6 are lost");
    ensure!(bed.lives().len() == 1 && bed.lives()[&0].generation == 1, "no worker has died");
    bed.stop().map(drop)
}

fn retries(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("task-retries", "2")])?;
    let mut client = Talk::begin(&bed)?;
    // A death from outside, and it is done the second time.
    let pid = task_workers_of(&bed)[&0];
    let id = client.ask("task sleep 300")?;
    proc::until("the task to begin", PATIENCE, || proc::sleeps(pid).then_some(()))?;
    proc::signal(pid, Signal::KILL)?;
    client.expect_end(&id, "SLEEP 300")?;
    bed.log.wait_line(
        Source::Stdout,
        &["on_worker_error task=0", &format!("tasks=retried:{id}")],
        PATIENCE,
    )?;
    // Poison: two more task workers get it. What is behind it waits.
    let id = client.ask("task crash segv")?;
    let next = client.ask("task next")?;
    client.expect_ends([
        (id.clone(), "error: the task worker that had begun it died".to_owned()),
        (next, "NEXT".to_owned()),
    ])?;
    let mut deaths = 0;
    for line in bed.worker_errors() {
        deaths += usize::from(line.contains(&format!(":{id}")));
    }
    ensure!(deaths == 3, "it has cost {deaths} task workers");
    ensure!(client.stat("task_retried")? == 3 && client.stat("task_lost")? == 1, "counts");
    bed.stop().map(drop)
}

fn asker_dies(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[])?;
    let mut client = Talk::begin(&bed)?;
    let worker = bed.lives()[&0].pid;
    for text in ["sleep 200", "one", "two"] {
        client.ask(&format!("task {text}"))?;
    }
    proc::signal(worker, Signal::KILL)?;
    bed.wait_successor(0, worker)?;
    // In Base mode the client has gone with its worker.
    let mut client = Talk::begin(&bed)?;
    let id = client.ask("task mine")?;
    ensure!(id.starts_with("0.2."), "{id} is no name of the second generation");
    client.expect_end(&id, "MINE")?;
    let orphans = client.stat("task_orphaned")?;
    ensure!(orphans == 3, "of 3 tasks of a dead worker, {orphans} were done and told to nobody");
    ensure!(client.stat("task_done")? == 1, "only its own is its own");
    bed.stop().map(drop)
}

fn reload(cx: &Cx) -> Result<()> {
    let bed = start(cx, 2, &[])?;
    let mut client = Talk::begin(&bed)?;
    let (workers, before) = (bed.lives(), task_workers_of(&bed));
    let ids: Vec<String> =
        (0..40).map(|n| client.ask(&format!("task sleep {}", n % 7))).collect::<Result<_>>()?;
    bed.signal_master(Signal::USR2)?;
    client.expect_ends(ids.into_iter().zip(0..).map(|(id, n)| (id, format!("SLEEP {}", n % 7))))?;
    bed.log.wait_line(Source::Stdout, &["on_after_reload"], PATIENCE)?;
    bed.log.wait_line(Source::Stderr, &["Server has reloaded all task workers"], PATIENCE)?;
    let after = task_workers_of(&bed);
    ensure!(after.values().all(|pid| !before.values().any(|old| old == pid)), "{before:?} became {after:?}");
    ensure!(bed.lives() == workers, "workers were replaced as well");
    // The other signal replaces both.
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_count("on_after_reload", 2, PATIENCE)?;
    ensure!(bed.lives()[&0].generation == 2 && task_workers_of(&bed) != after, "not all were replaced");
    client.expect("taskwait 5000 on", "result ON")?;
    bed.stop().map(drop)
}

fn max_request(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("task-max-request", "5")])?;
    let mut client = Talk::begin(&bed)?;
    for round in 1..=3 {
        let pid = task_workers_of(&bed)[&0];
        for _ in 0..5 {
            client.expect("taskwait 5000 x", "result X")?;
        }
        wait_task_worker(&bed, 0, pid).with_context(|| format!("round {round}"))?;
        bed.log.wait_line(Source::Stdout, &["on_worker_stop task=0", &format!("pid={pid}")], PATIENCE)?;
    }
    ensure!(bed.worker_errors().is_empty(), "none of them died");
    bed.stop().map(drop)
}

fn stop(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[])?;
    let mut client = Talk::begin(&bed)?;
    let ids = ["sleep 300", "one", "two"].map(|text| client.ask(&format!("task {text}")));
    bed.signal_master(Signal::TERM)?;
    for (id, result) in ids.into_iter().zip(["SLEEP 300", "ONE", "TWO"]) {
        client.expect_end(&id?, result)?;
    }
    let log = std::sync::Arc::clone(&bed.log);
    bed.stop()?;
    let lines = log.texts(Source::Stdout);
    let at = |prefix: &str| lines.iter().position(|line| line.starts_with(prefix)).context(prefix.to_owned());
    let order = ["on_worker_stop worker=0", "on_worker_stop task=0", "on_manager_stop"];
    let order = order.into_iter().map(at).collect::<Result<Vec<_>>>()?;
    ensure!(order.is_sorted(), "{lines:?}");
    ensure!(!log.texts(Source::Stderr).iter().any(|line| line.contains("WARNING")), "it has warned");
    Ok(())
}

fn stop_bound(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[("max-wait-time", "1")])?;
    let mut client = Talk::begin(&bed)?;
    let ids = ["sleep 60000", "one", "two"].map(|text| client.ask(&format!("task {text}")));
    ids.into_iter().collect::<Result<Vec<_>>>()?;
    let log = std::sync::Arc::clone(&bed.log);
    let took = bed.stop()?;
    ensure!(took < Duration::from_secs(4), "it took {took:?}");
    let lines = log.texts(Source::Stderr);
    for part in ["with 3 tasks unfinished", "task worker 0 (pid", "2 tasks that are not done"] {
        ensure!(lines.iter().any(|line| line.contains(part)), "no line with {part:?} in {lines:?}");
    }
    Ok(())
}

fn manager_dies(cx: &Cx) -> Result<()> {
    let bed = start(cx, 2, &[("task-retries", "1")])?;
    let mut client = Talk::begin(&bed)?;
    let before = task_workers_of(&bed);
    let ids: Vec<String> = ["sleep 400", "sleep 400", "x"]
        .into_iter()
        .map(|text| client.ask(&format!("task {text}")))
        .collect::<Result<_>>()?;
    proc::until("both to begin", PATIENCE, || before.values().all(|pid| proc::sleeps(*pid)).then_some(()))?;
    let manager = bed.manager().context("there is no manager")?;
    // It cannot see to its death.
    proc::halt(manager)?;
    proc::signal(before[&0], Signal::KILL)?;
    proc::signal(manager, Signal::KILL)?;
    bed.wait_manager(manager)?;
    let results = ["SLEEP 400", "SLEEP 400", "X"].map(str::to_owned);
    client.expect_ends(ids.into_iter().zip(results))?;
    wait_task_worker(&bed, 0, before[&0])?;
    ensure!(task_workers_of(&bed)[&1] == before[&1], "the other one has not been kept");
    ensure!(client.stat("task_retried")? == 1, "one was begun again");
    // The new manager looks after all of them.
    let pid = task_workers_of(&bed)[&1];
    let id = client.ask("task after")?;
    client.expect_end(&id, "AFTER")?;
    proc::signal(pid, Signal::KILL)?;
    wait_task_worker(&bed, 1, pid)?;
    bed.signal_master(Signal::USR2)?;
    bed.log.wait_line(Source::Stdout, &["on_after_reload"], PATIENCE)?;
    client.expect("taskwait 5000 on", "result ON")?;
    bed.stop().map(drop)
}

fn files(cx: &Cx) -> Result<()> {
    let bed = start(cx, 1, &[])?;
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
    let family = [proc::descendants(bed.ready.master), vec![bed.ready.master]].concat();
    for pid in family {
        proc::signal(pid, Signal::KILL)?;
    }
    ensure!(files_in(&cx.dir)?.len() == 1, "files: {:?}", files_in(&cx.dir)?);
    drop(bed);
    let bed = start(cx, 1, &[])?;
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

/// With breakpoints: one worker, so many task workers.
fn start_breaking(cx: &Cx, task_workers: usize) -> Result<Bed> {
    let launch = cx.testbed_breakpoints().flag("worker-num", 1).flag("task-worker-num", task_workers);
    launch.flag("task-tmpdir", cx.dir.display()).flag("task-retries", 1).start()
}

fn break_points(cx: &Cx) -> Result<()> {
    // With one task worker, what it dies on waits for its successor; with another one, that goes on.
    for task_workers in [1, 2] {
        let bed = start_breaking(cx, task_workers)?;
        let mut client = Talk::begin(&bed)?;
        let mut retried = 0;
        for (point, is_retried) in [("taken", true), ("result", true), ("done", false), ("marked", false)] {
            let pid = task_workers_of(&bed)[&0];
            let arm = client.ask(&format!("taskto 0 die_at task_{point}"))?;
            client.expect_end(&arm, &format!("DIE_AT TASK_{}", point.to_uppercase()))?;
            let texts = ["one".to_owned(), "v".repeat(9_000), "three".to_owned()];
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
        bed.stop()?;
    }
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    Ok(())
}

fn break_points_of_askers(cx: &Cx) -> Result<()> {
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
        bed.stop()?;
    }
    Ok(())
}

/// How long it storms, and how long from one death to the next.
const STORM: Duration = Duration::from_secs(2);
const DEATH: Duration = Duration::from_millis(40);

/// A client that knows every answer in advance.
struct Chat {
    client: Client,
    name: usize,
    number: usize,
    /// Results that are yet to come, by the names of their tasks.
    waiting: BTreeMap<String, String>,
    answered: u64,
    /// Workers die, too: then tasks may have no answer, and connections may end.
    askers_die: bool,
}

impl Chat {
    /// Asks and looks at every answer, until then; how many tasks were answered.
    fn hold(mut self, until: Instant) -> Result<u64> {
        while Instant::now() < until {
            match self.round() {
                Ok(()) => {}
                Err(error) if self.askers_die && error.downcast_ref::<Closed>().is_some() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.answered)
    }

    fn round(&mut self) -> Result<()> {
        let texts: Vec<String> = (0..8).map(|_| self.text()).collect();
        let packets: Vec<String> = texts.iter().map(|text| format!("task {text}")).collect();
        self.client.tell_all(&packets.iter().map(String::as_str).collect::<Vec<_>>())?;
        let mut texts = texts.into_iter();
        while texts.len() > 0 || !self.waiting.is_empty() {
            // What a dead worker has asked is told to nobody.
            if self.askers_die && texts.len() == 0 {
                let comes = || self.client.has_reply().unwrap_or(true).then_some(());
                if proc::until("an answer", Duration::from_millis(200), comes).is_err() {
                    return Ok(());
                }
            }
            let line = self.client.line()?;
            if let Some(id) = line.strip_prefix("task ") {
                let text = texts.next().context("more tasks than were asked for")?;
                let known = self.waiting.insert(id.to_owned(), text.to_uppercase());
                ensure!(known.is_none(), "two tasks are called {id}");
                continue;
            }
            let told = line.strip_prefix("finish ").with_context(|| format!("{line:?}"))?;
            let (id, result) = told.split_once(' ').context("no result")?;
            let wanted =
                self.waiting.remove(id).with_context(|| format!("{id} is not mine, or came twice"))?;
            ensure!(result == wanted, "{id} is {result:?} instead of {wanted:?}");
            self.answered += 1;
        }
        Ok(())
    }

    /// The next one, some of which do not fit into the shared memory.
    fn text(&mut self) -> String {
        self.number += 1;
        let more = if self.number.is_multiple_of(50) { "w".repeat(10_000) } else { String::new() };
        format!("{}.{} {more}", self.name, self.number)
    }
}

fn storm(cx: &Cx, flags: &[(&str, &str)], kill_workers: bool) -> Result<()> {
    const CLIENTS: usize = 4;
    let launch = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 2);
    let launch = launch.flag("task-tmpdir", cx.dir.display()).flag("task-queue-max", 200);
    let bed = flags.iter().fold(launch, |launch, (name, value)| launch.flag(name, value)).start()?;
    let until = Instant::now() + STORM;
    let mut rng = cx.rng();
    let mut kills = 0;
    let answered = std::thread::scope(|scope| -> Result<u64> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|name| {
                let (client, askers_die) = (bed.connect()?, kill_workers);
                let chat =
                    Chat { client, name, number: 0, waiting: BTreeMap::new(), answered: 0, askers_die };
                Ok(scope.spawn(move || chat.hold(until)))
            })
            .collect::<Result<_>>()?;
        while Instant::now() < until {
            std::thread::sleep(DEATH.mul_f64(2.0 * rng.f64()));
            let family = proc::descendants(bed.ready.master);
            let is_victim = |pid: &i32| {
                let title = proc::title(*pid);
                title.starts_with("swoole: task worker")
                    || kill_workers && title.starts_with("swoole: worker")
            };
            if let Some(victim) = rng.choice(family.into_iter().filter(is_victim).collect::<Vec<_>>()) {
                kills += u32::from(proc::signal(victim, Signal::KILL).is_ok());
            }
        }
        let mut answered = 0;
        for client in clients {
            match client.join() {
                Ok(count) => answered += count?,
                Err(_) => bail!("a client panicked"),
            }
        }
        Ok(answered)
    })?;
    ensure!(kills > 10 && answered > 100, "{kills} kills, {answered} answers");
    // Everything comes to rest.
    let mut client = Talk::begin(&bed)?;
    client.wait_idle()?;
    println!("        {kills} processes killed, {answered} tasks answered");
    bed.stop()?;
    let left = files_in(&cx.dir)?;
    ensure!(left.is_empty(), "files are left: {left:?}");
    Ok(())
}

fn storm_of_task_workers(cx: &Cx) -> Result<()> {
    storm(cx, &[("task-retries", "100")], false)
}

fn storm_of_all(cx: &Cx) -> Result<()> {
    storm(cx, &[("task-retries", "100")], true)
}
