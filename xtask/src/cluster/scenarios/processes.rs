//! User processes: supervised as the others are, there before all start and after all stop.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::load::Load;
use crate::cluster::log::{Line, Source, field};
use crate::cluster::matrix::{Cx, Scenario, backends, once};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    backends(
        "process_start",
        "user processes begin when all others exist, under their name, and hold no socket",
        start,
    ),
    backends(
        "process_stop_order",
        "they leave when the last worker and the last task worker have left, however they wait",
        stop_order,
    ),
    backends("process_killed", "one that is killed is replaced, and its death is told by name", killed),
    once("process_asked", "SIGTERM replaces one, which is no death", asked),
    once("process_returns", "one that returns, fails or panics comes again, more and more slowly", returns),
    once("process_hangs_in_stop", "one that does not leave is killed at max_wait_time", hangs),
    once("process_reload", "no reload and no max_memory replaces them", reload),
    once("process_asks", "they ask task workers, also while workers and task workers die", asks),
    backends(
        "process_manager_dies",
        "they go on without a manager; the next one looks after them, and kills who hangs",
        manager_dies,
    )
    .in_process(),
    once(
        "process_other_program",
        "a program that adds other ones does not get to be the manager",
        other_program,
    )
    .in_process(),
    backends(
        "process_manager_dies_in_stop",
        "they leave last also when nobody asks them to",
        manager_dies_in_stop,
    )
    .in_process(),
    backends("process_all_killed", "nobody is left when master and manager are killed", all_killed),
    once("process_names", "a name that cannot be is refused before anything is started", names),
];

fn pid_of(line: &str) -> Result<i32> {
    Ok(field(line, "pid").context("no pid=")?.parse()?)
}

/// Waits until a process of this name other than `before` has begun.
fn wait_process(bed: &Bed, name: &str, before: i32) -> Result<i32> {
    bed.log.wait(&format!("another process {name} than {before}"), PATIENCE, |lines| {
        let begins = |line: &&Line| {
            line.text.starts_with("on_process_start ") && field(&line.text, "process") == Some(name)
        };
        let last = lines.iter().rev().find(begins)?;
        pid_of(&last.text).ok().filter(|pid| *pid != before)
    })
}

/// Where the first line that begins like this stands among all that are on stdout.
fn place(bed: &Bed, prefix: &str) -> Result<usize> {
    let lines = bed.log.texts(Source::Stdout);
    let place = lines.iter().position(|line| line.starts_with(prefix));
    place.with_context(|| format!("no line {prefix:?} in {lines:#?}"))
}

fn start(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 1);
    let bed = launch.flag("processes", "one,two:poll").flag("start-time", 200).start()?;
    let ready = bed.log.wait_line(Source::Stdout, &["ready master="], PATIENCE)?.text;
    let told: Vec<i32> = field(&ready, "processes")
        .context("no processes=")?
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let begun = [wait_process(&bed, "one", 0)?, wait_process(&bed, "two", 0)?];
    ensure!(told == begun, "ready says {told:?}, they say {begun:?}");
    let at = ["on_start ", "on_manager_start ", "on_process_start ", "on_worker_start ", "ready "]
        .map(|prefix| place(&bed, prefix));
    let at = at.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(at[..2].is_sorted() && at[1] < at[2] && at[3] < at[4], "it came in the order {at:?}");
    let mut client = bed.connect()?;
    for (pid, name) in begun.into_iter().zip(["one", "two"]) {
        ensure!(proc::title(pid) == format!("swoole: process {name}"), "{pid} is {:?}", proc::title(pid));
        ensure!(
            proc::stat(pid).is_some_and(|stat| stat.parent == bed.ready.manager),
            "not the manager's child"
        );
        let (held, port) = (proc::socket_inodes(pid)?, bed.port()?);
        let mut others = proc::tcp_rows().into_iter().filter(|row| row.local_port == port);
        ensure!(
            !others.any(|row| held.contains(&row.inode)),
            "user process {name} holds a client or a listener"
        );
        let stats = client.ask("stats")?;
        let entry = format!("\"name\":\"{name}\",\"pid\":{pid},\"state\":\"running\",\"generation\":1");
        ensure!(stats.contains(&entry), "{entry} is not in {stats}");
    }
    // Who waits takes no time.
    proc::until_calm("user processes to be calm", &begun)?;
    bed.stop().map(drop)
}

fn stop_order(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 2);
    let launch = launch.flag("task-tmpdir", cx.dir.display()).word("--ask-on-start");
    let bed = launch.flag("processes", "waits,polls:poll,spins:spin,asks:ask").start()?;
    let log = bed.log.clone();
    let mut client = bed.connect()?;
    client.expect("echo hello", "hello")?;
    bed.stop()?;
    let lines = log.texts(Source::Stdout);
    let stops = lines.iter().filter(|line| line.contains("_stop "));
    let order: Vec<&str> = stops
        .map(|line| match line.split(' ').nth(1).and_then(|word| word.split_once('=')) {
            Some((kind, _)) => kind,
            None => line,
        })
        .collect();
    let expected = [["worker"; 2].as_slice(), &["task"; 2], &["process"; 4], &["manager"]].concat();
    ensure!(order == expected, "they left as {order:?}");
    let errors = lines.iter().filter(|line| line.starts_with("on_worker_error")).count();
    ensure!(errors == 0, "{errors} deaths in a stop");
    Ok(())
}

fn killed(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("processes", "other,one").start()?;
    let other = wait_process(&bed, "other", 0)?;
    let mut before = wait_process(&bed, "one", 0)?;
    for signal in [Signal::KILL, Signal::SEGV] {
        proc::signal(before, signal)?;
        let next = wait_process(&bed, "one", before)?;
        let line =
            bed.log.wait_line(Source::Stdout, &["on_worker_error", &format!("pid={before} ")], PATIENCE)?;
        let status = format!("signal:{}", signal.as_raw());
        ensure!(
            field(&line.text, "process") == Some("one") && field(&line.text, "status") == Some(&status),
            "{:?}",
            line.text
        );
        bed.log.wait_line(
            Source::Stderr,
            &["user process one (pid", &format!("died: {status}")],
            PATIENCE,
        )?;
        before = next;
    }
    ensure!(wait_process(&bed, "other", 0)? == other, "the other one was replaced");
    // It has begun before the manager hears that it has.
    let (mut client, entry) =
        (bed.connect()?, format!("\"pid\":{before},\"state\":\"running\",\"generation\":3"));
    proc::until(&entry, PATIENCE, || client.ask("stats").ok().filter(|stats| stats.contains(&entry)))?;
    bed.stop().map(drop)
}

fn asked(cx: &Cx) -> Result<()> {
    let bed = cx.testbed().flag("worker-num", 1).flag("processes", "one,two:poll,three:spin").start()?;
    for name in ["one", "two", "three"] {
        let before = wait_process(&bed, name, 0)?;
        // The log is opened anew at the first; it is no reason to leave.
        proc::signal(before, Signal::HUP)?;
        proc::signal(before, Signal::TERM)?;
        wait_process(&bed, name, before)?;
        bed.log.wait_line(Source::Stdout, &["on_process_stop", &format!("pid={before}")], PATIENCE)?;
    }
    ensure!(bed.worker_errors().is_empty(), "{:?}", bed.worker_errors());
    bed.stop().map(drop)
}

fn returns(cx: &Cx) -> Result<()> {
    for (what, status) in [("return", None), ("fail", Some("exit:1")), ("panic", Some("exit:101"))] {
        let launch = cx.testbed().flag("worker-num", 1);
        let bed = launch.flag("processes", format!("stays,one:{what}")).start()?;
        let stays = wait_process(&bed, "stays", 0)?;
        let starts = bed.log.wait_count("on_process_start process=one", 6, PATIENCE)?;
        // The waits between them: none, then 50, 100, 200, 400 ms, each by a fifth more or less.
        let took = starts[5].at - starts[0].at;
        ensure!(took > Duration::from_millis(750 * 4 / 5), "six times within {took:?}");
        bed.log.wait_line(Source::Stderr, &["user process one has ended", "back-off"], PATIENCE)?;
        let errors = bed.worker_errors();
        let is_told = |line: &String| field(line, "status") == status;
        match status {
            None => {
                ensure!(errors.is_empty(), "{errors:?}");
                bed.log.wait_line(
                    Source::Stderr,
                    &["user process one has returned", "not asked to"],
                    PATIENCE,
                )?;
            }
            Some(_) => ensure!(errors.len() >= 5 && errors.iter().all(is_told), "{errors:?}"),
        }
        // It is nobody else's affair.
        bed.connect()?.expect("echo hello", "hello")?;
        ensure!(wait_process(&bed, "stays", 0)? == stays, "the other one was replaced");
        bed.stop()?;
    }
    Ok(())
}

fn hangs(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("max-wait-time", 1.5);
    let bed = launch.flag("processes", "leaves,hangs:hang").start()?;
    let (log, pid) = (bed.log.clone(), wait_process(&bed, "hangs", 0)?);
    let took = bed.stop()?;
    ensure!(took > Duration::from_millis(1000) && took < Duration::from_secs(4), "it took {took:?} of 1.5 s");
    let text = log.texts(Source::Stderr).join("\n");
    ensure!(text.contains("it waits for user processes [hangs] to leave"), "{text}");
    let end = format!("user process hangs (pid {pid}) had not finished after");
    ensure!(text.contains(&end), "{text}");
    let lines = log.texts(Source::Stdout);
    ensure!(lines.iter().any(|line| line.starts_with("on_process_stop process=leaves")), "{lines:?}");
    Ok(())
}

fn reload(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 1);
    let bed = launch.flag("processes", "one,two:spin").start()?;
    let before = [wait_process(&bed, "one", 0)?, wait_process(&bed, "two", 0)?];
    for (round, mode) in [Signal::USR1, Signal::USR2, Signal::USR1].into_iter().enumerate() {
        bed.signal_master(mode)?;
        bed.log.wait_count("on_after_reload", round + 1, PATIENCE)?;
    }
    let after = [wait_process(&bed, "one", 0)?, wait_process(&bed, "two", 0)?];
    ensure!(before == after && after.into_iter().all(proc::alive), "{before:?} became {after:?}");
    bed.stop()?;

    // Everybody has more than that as soon as it exists.
    let launch = cx.testbed().flag("worker-num", 1).flag("max-memory", "1");
    let bed = launch.flag("processes", "one").start()?;
    let before = wait_process(&bed, "one", 0)?;
    for _ in 0..2 {
        bed.wait_successor(0, bed.lives()[&0].pid)?;
    }
    ensure!(wait_process(&bed, "one", 0)? == before && proc::alive(before), "it was replaced");
    bed.stop().map(drop)
}

fn asks(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("task-worker-num", 2);
    let launch = launch.flag("task-tmpdir", cx.dir.display()).flag("task-queue-max", 16);
    let bed = launch.flag("processes", "one:ask,two:ask").start()?;
    let said = |name: &str| {
        let text = format!(" {name}");
        let lines = bed.log.texts(Source::Stdout);
        lines.iter().filter(|line| line.starts_with("said ") && line.ends_with(&text)).count()
    };
    let more = |name: &str| {
        let before = said(name);
        proc::until("more to be said", PATIENCE, || (said(name) > before + 3).then_some(()))
    };
    for name in ["one", "two"] {
        more(name)?;
    }
    let title = |prefix: &'static str| {
        let family = proc::descendants(bed.ready.master).into_iter();
        family.filter(move |pid| proc::title(*pid).starts_with(prefix)).collect::<Vec<_>>()
    };
    for victims in ["swoole: task worker", "swoole: worker", "swoole: process one", "swoole: process"] {
        for pid in title(victims) {
            let _ = proc::signal(pid, Signal::KILL);
        }
        for name in ["one", "two"] {
            more(name).with_context(|| format!("after the death of {victims:?}"))?;
        }
    }
    bed.stop().map(drop)
}

fn manager_dies(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("task-worker-num", 1).flag("max-wait-time", 2);
    let bed = launch.flag("processes", "one,two:spin,hangs:hang").start()?;
    let load = Load::start(bed.address()?, 2)?;
    let before = ["one", "two", "hangs"].map(|name| wait_process(&bed, name, 0));
    let before = before.into_iter().collect::<Result<Vec<_>>>()?;
    bed.replace_manager()?;
    ensure!(before.iter().all(|pid| proc::alive(*pid)), "not all are alive: {before:?}");
    // What they die of is told by the next one, whoever their parent is.
    proc::signal(before[0], Signal::KILL)?;
    let first = wait_process(&bed, "one", before[0])?;
    ensure!(bed.wait_error(before[0])? == "signal:9", "its status");
    bed.replace_manager()?;
    for (name, pid) in [("one", first), ("two", before[1])] {
        proc::signal(pid, Signal::TERM)?;
        wait_process(&bed, name, pid)?;
    }
    // All at once, and the next manager fills the slots.
    let manager = bed.manager().context("there is no manager")?;
    let family = [wait_process(&bed, "one", 0)?, wait_process(&bed, "two", 0)?];
    for pid in family.into_iter().chain([manager]) {
        proc::signal(pid, Signal::KILL)?;
    }
    for (name, pid) in ["one", "two"].into_iter().zip(family) {
        wait_process(&bed, name, pid)?;
    }
    load.wait_more(100)?;
    load.finish_unharmed()?;
    let starts = bed.count("on_process_start process=hangs");
    ensure!(starts == 1, "one that nobody has touched has begun {starts} times");
    let log = bed.log.clone();
    bed.stop()?;
    let text = log.texts(Source::Stderr).join("\n");
    ensure!(text.contains("user process hangs (pid") && text.contains("had not finished after"), "{text}");
    Ok(())
}

fn other_program(cx: &Cx) -> Result<()> {
    std::fs::write(cx.dir.join("names"), "one,two")?;
    // Its `main` reads that each time it runs.
    let bed = cx.testbed().flag("worker-num", 1).flag("processes", "@names").start()?;
    let before = [wait_process(&bed, "one", 0)?, wait_process(&bed, "two", 0)?];
    std::fs::write(cx.dir.join("names"), "one,three")?;
    proc::signal(bed.ready.manager, Signal::KILL)?;
    bed.log.wait_line(
        Source::Stderr,
        &["its user processes are [\"one\", \"two\"], this program has [\"one\", \"three\"]"],
        PATIENCE,
    )?;
    bed.connect()?.expect("echo served", "served")?;
    ensure!(before.into_iter().all(proc::alive), "not all are alive: {before:?}");
    std::fs::write(cx.dir.join("names"), "one,two")?;
    let manager = bed.wait_manager(bed.ready.manager)?;
    ensure!(proc::alive(manager), "the next manager is dead");
    proc::signal(before[1], Signal::KILL)?;
    wait_process(&bed, "two", before[1])?;
    bed.stop().map(drop)
}

fn manager_dies_in_stop(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("task-worker-num", 1).flag("max-wait-time", 20);
    let launch = launch.flag("task-tmpdir", cx.dir.display());
    let mut bed = launch.flag("processes", "one,two:spin").start()?;
    let mut client = bed.connect()?;
    client.ask("task sleep 700")?;
    let titled =
        |title: &str| proc::descendants(bed.ready.master).into_iter().find(|pid| proc::title(*pid) == title);
    let task_worker = titled("swoole: task worker 0").context("there is no task worker")?;
    proc::until("the task to begin", PATIENCE, || proc::sleeps(task_worker).then_some(()))?;
    bed.signal_master(Signal::TERM)?;
    // Before that there would be another manager; what is left from here on has to do without. The worker waits for its task,
    // so the task worker is idle by then, or gone.
    bed.log.wait_line(Source::Stdout, &["on_worker_stop worker="], PATIENCE)?;
    proc::signal(bed.ready.manager, Signal::KILL)?;
    let status = bed.wait_gone(PATIENCE)?;
    ensure!(status.success(), "ended with {status}");
    let last =
        ["on_worker_stop worker=", "on_worker_stop task=", "on_process_stop "].map(|line| place(&bed, line));
    let last = last.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(last.is_sorted(), "they left as {last:?}");
    Ok(())
}

fn all_killed(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 1).flag("task-worker-num", 1);
    let bed = launch.flag("processes", "waits,polls:poll,spins:spin,hangs:hang").start()?;
    for name in ["waits", "polls", "spins", "hangs"] {
        wait_process(&bed, name, 0)?;
    }
    let family: BTreeSet<i32> = proc::descendants(bed.ready.master).into_iter().collect();
    // In Process mode first the one whose death costs nothing, so that nobody is left who would ask them to leave.
    let victims =
        if bed.is_base() { vec![bed.ready.master] } else { vec![bed.ready.manager, bed.ready.master] };
    proc::halt(bed.ready.master)?;
    for pid in victims {
        proc::signal(pid, Signal::KILL)?;
    }
    let begun = Instant::now();
    proc::until("everybody's end", Duration::from_secs(5), || {
        (!family.iter().any(|pid| proc::alive(*pid))).then_some(())
    })?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
    Ok(())
}

fn names(cx: &Cx) -> Result<()> {
    let launch = |names: &str| cx.testbed().flag("worker-num", 1).flag("processes", names);
    launch("two words").refused(&["add user process \"two words\": a name is 1..=32 bytes"])?;
    launch("a,b,a").refused(&["add user process \"a\": there is one of this name already"])?;
    let many: Vec<String> = (0..65).map(|number| format!("p{number}")).collect();
    launch(&many.join(",")).refused(&["add user process \"p64\": there are 64 already"])?;
    // As many as there may be, of the longest names.
    let bed =
        launch(&(0..64).map(|number| format!("{number:a>32}")).collect::<Vec<_>>().join(",")).start()?;
    bed.log.wait_count("on_process_start", 64, PATIENCE)?;
    bed.stop().map(drop)
}
