//! Task workers: what is asked of them, and what becomes of it when somebody dies, leaves or stops.

mod breaking;
mod buffer;
mod edges;
mod storm;
mod talk;
mod timers;
mod transports;

use self::talk::Talk;
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::log::{Source, field};
use crate::cluster::matrix::{Cx, Scenario, backends, once};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    backends("tasks", "a task goes to a task worker, its result to who has asked, of any size", tasks)
        .by_post(),
    backends("tasks_none", "without task workers a task is an error", edges::none),
    backends(
        "task_processes",
        "task workers are there before the server is ready, and hold no socket of a client",
        processes,
    ),
    backends(
        "task_one_way",
        "task workers, the manager and the master ask, too, and wait for nothing",
        one_way,
    ),
    backends("task_queue_max", "as many tasks as may be, and one more is an error", queue_max),
    once("task_queue_wait", "or waits until there is room, for so long at most", edges::queue_wait),
    backends("task_lost", "a task that its task worker dies on is lost, named, and no other one", lost)
        .by_post(),
    backends("task_retries", "or it is begun again, so often and no more", retries).by_post(),
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
    .in_process()
    .by_post(),
    backends("task_files", "large tasks leave no file, whoever is killed", buffer::files).by_post(),
    backends("task_buffer", "large tasks lie in memory, and leave none of it taken", buffer::buffer)
        .by_post(),
    backends(
        "task_dies_in_stop",
        "one that dies in a stop is replaced, and what waits is done",
        edges::death_in_stop,
    ),
    backends(
        "task_stop_manager_dies",
        "task workers leave last also when nobody asks them to",
        edges::manager_dies_in_stop,
    )
    .in_process(),
    backends(
        "task_idle_killed",
        "a task does not wait for the successor of one that slept",
        edges::idle_one_killed,
    ),
    backends(
        "task_not_held",
        "results, and what was sent, do not wait for the next task",
        edges::nothing_held_back,
    ),
    backends("task_memory", "slots that nobody has used cost no memory, whoever dies", edges::memory),
    backends("task_withdrawn", "tasks that were taken back take no place", edges::withdrawn),
    backends(
        "task_left_result",
        "a result that its task worker has died on leaves no file",
        edges::left_result,
    ),
    backends(
        "task_asked_at_end",
        "who has been called for the last time waits without work",
        edges::asked_at_the_end,
    ),
    backends(
        "task_timers",
        "timers of task workers come once or again and again, never early, and neither drift nor pile up",
        timers::timers,
    ),
    once("task_timers_amid_tasks", "and between tasks, which do not wait for them", timers::amid_tasks),
    once("task_timer_dies", "a task worker that dies at a timer costs no task", timers::dies),
    once("task_timers_drain", "one that is to leave finishes its timers first", timers::drain),
    once("task_timers_stop", "in a stop, too, with what they ask for", timers::drain_stop),
    once("task_timers_bound", "and leaves at the end of its time all the same", timers::drain_bound),
    backends(
        "break_points_tasks",
        "wherever a task worker dies on a task's way, the task ends once",
        breaking::break_points,
    )
    .by_post(),
    backends(
        "break_points_askers",
        "and wherever its worker dies: it is done or never was, and nobody waits for it",
        breaking::break_points_of_askers,
    )
    .in_process()
    .by_post(),
    backends(
        "task_storm",
        "task workers die at random: each task is answered once, on its own connection",
        storm::storm_of_task_workers,
    )
    .by_post(),
    backends(
        "task_storm_askers",
        "and so do workers: nothing is told twice, or to who has not asked",
        storm::storm_of_all,
    )
    .by_post()
    .alone(),
    once(
        "task_ipc",
        "a message queue is there where tasks go by one, sockets where they go by these",
        transports::ways,
    )
    .in_process()
    .by_post(),
    once(
        "task_preemptive",
        "who is free takes what waits, but by msgqueue, where askers have chosen",
        transports::preemptive,
    )
    .in_process()
    .by_post(),
    once("task_sizes", "payloads of any size go by every way", transports::sizes).in_process().by_post(),
    once(
        "task_outlives_kill",
        "with a message_queue_key, tasks are done after a kill of everything, once",
        transports::outlives,
    )
    .in_queues(),
    once("task_outlives_stop", "and after a stop that had no time for them", transports::outlives_stop)
        .in_queues(),
    once("task_outlives_deaths", "and wherever everybody dies", transports::outlives_deaths).in_queues(),
    once("task_foreign", "other programs put tasks into the queue", transports::foreign).in_queues(),
    once("task_key_refused", "one server for each key", transports::refused).in_queues(),
    once("task_queue_removed", "a queue that somebody removes costs no task", transports::queue_removed)
        .in_queues(),
    once("task_private_queue", "a queue without a key is never left behind", transports::private_queue)
        .in_queues(),
];

/// One worker, so that all clients are its own, and so many task workers.
fn start(cx: &Cx, task_workers: usize, flags: &[(&str, &str)]) -> Result<Bed> {
    let launch = cx.testbed().flag("worker-num", 1).flag("task-worker-num", task_workers);
    let launch = launch.flag("task-tmpdir", cx.dir.display());
    flags.iter().fold(launch, |launch, (name, value)| launch.flag(name, value)).start()
}

/// The latest process of each task worker's slot.
pub(super) fn task_workers_of(bed: &Bed) -> BTreeMap<u32, i32> {
    let lines = bed.log.texts(Source::Stdout);
    let starts = lines.iter().filter(|line| line.starts_with("on_worker_start task="));
    starts
        .filter_map(|line| Some((field(line, "task")?.parse().ok()?, field(line, "pid")?.parse().ok()?)))
        .collect()
}

pub(super) fn wait_task_worker(bed: &Bed, id: u32, before: i32) -> Result<i32> {
    proc::until("another task worker", PATIENCE, || {
        task_workers_of(bed).get(&id).copied().filter(|pid| *pid != before)
    })
}

/// Files of tasks in this directory.
fn files_in(dir: &Path) -> Result<Vec<String>> {
    let of_servers = |name: &String| name.ends_with(".queue") || name.ends_with(".hand");
    Ok(all_files_in(dir)?.into_iter().filter(|name| !of_servers(name)).collect())
}

/// The same, with those that a server has while it runs.
fn all_files_in(dir: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_task = |name: &String| name.starts_with("swoole-task-") || name.starts_with("swoole-queue-");
    Ok(names.filter(is_task).collect())
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

fn one_way(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("task-worker-num", 2).word("--ask-on-start");
    let bed = launch.flag("task-tmpdir", cx.dir.display()).flag("task-queue-max", 4).start()?;
    for who in ["manager", "master"] {
        bed.log.wait_line(Source::Stdout, &["said by=", who], PATIENCE)?;
    }
    let mut client = Talk::begin(&bed)?;
    let large = "l".repeat(9_000);
    for round in 0..20 {
        let text = if round % 4 == 3 { large.clone() } else { format!("round-{round}") };
        client.expect(
            &format!("taskwait 5000 ask say {text}"),
            &format!("result ASK SAY {}", text.to_uppercase()),
        )?;
        bed.log.wait_line(Source::Stdout, &["said by=", &text], PATIENCE)?;
    }
    client.wait_idle()?;
    let done = client.stat("task_done")?;
    ensure!(done == 42, "of 42 tasks, {done} were done");
    ensure!(client.stat("task_orphaned")? == 0 && client.stat("task_failed")? == 0, "counts");
    ensure!(files_in(&cx.dir)?.is_empty(), "files: {:?}", files_in(&cx.dir)?);
    // Their ends are told to nobody, whoever dies.
    client.expect("taskwait 5000 ask crash kill", "result ASK CRASH KILL")?;
    bed.log.wait_line(Source::Stdout, &["on_worker_error task=", "lost:"], PATIENCE)?;
    client.wait_idle()?;
    ensure!(client.stat("task_lost")? == 1, "one is lost");
    // One dies that has asked for as much as it may: its successor may ask for as much again.
    for round in 0..2 {
        let pid = proc::until("a task worker", PATIENCE, || {
            task_workers_of(&bed).get(&0).copied().filter(|pid| proc::alive(*pid))
        })?;
        let id = client.ask("taskto 0 asks 4 sleep 100")?;
        client.expect_end(&id, "ASKS 4 SLEEP 100").with_context(|| format!("round {round}"))?;
        proc::signal(pid, Signal::KILL)?;
        wait_task_worker(&bed, 0, pid)?;
        client.wait_idle()?;
    }
    client.expect("taskwait 5000 on", "result ON")?;
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
