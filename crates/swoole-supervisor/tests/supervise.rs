//! The supervisor with real processes, which crash, hang, refuse to go and come back.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

#[path = "../../swoole-sys/tests/support/mod.rs"]
mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::pipe::pipe;
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, kill_process, setrlimit, wait};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use swoole_supervisor::{
    Adopted, Child, Control, Error, ExitStatus, Exited, GroupConfig, Options, Outcome, Program, ReloadMode,
    Report, Scope, Settle, SlotId, Supervisor, Tenure,
};
use swoole_sys::fds::wait_readable;
use swoole_sys::process::{Fork, ForkError, fork, run_child};
use swoole_sys::signal;

tests![
    a_killed_process_is_replaced,
    a_signal_goes_to_one_process_or_to_all,
    a_status_tells_how_a_process_ended,
    a_process_that_is_ready_and_leaves_at_once_counts_as_ready,
    a_crash_loop_is_slowed_down_while_others_serve,
    sigusr1_reloads_one_slot_after_the_other,
    sigusr2_reloads_the_last_group,
    a_reload_all_at_once_shows_children_the_state_of_their_supervisor,
    a_reload_stops_at_a_successor_that_cannot_start,
    no_more_are_away_at_once_than_may_be,
    a_process_that_does_not_retire_is_killed,
    a_stop_is_over_at_its_bound,
    a_second_sigint_does_not_wait,
    a_successor_waits_until_things_are_settled,
    a_refused_process_is_tried_again,
    a_child_has_the_descriptors_of_the_list_and_no_others,
    a_child_has_no_signal_blocked_or_handled,
    children_die_with_their_supervisor,
    a_process_outlives_its_supervisor_and_is_adopted_by_the_next,
    a_process_with_threads_supervises_nobody,
    a_descriptor_that_is_closed_while_watched_is_told_and_forgotten,
    an_idle_supervisor_does_nothing,
];

const LONG: Duration = Duration::from_secs(20);

fn slot(group: u16, slot: u16) -> SlotId {
    SlotId { group, slot }
}

fn groups(slots: &[u16]) -> Vec<GroupConfig> {
    slots.iter().map(|&slots| GroupConfig { name: "test".into(), slots, tenure: Tenure::Term }).collect()
}

/// Something that a program is told.
#[derive(Debug)]
enum Told<'a> {
    Exited(&'a Exited),
    Report(&'a Report),
    Readable(RawFd),
}

/// A program of two closures: the life of a child, and what the supervisor's side does about what it is told.
struct Script<R, T> {
    run: R,
    told: T,
    keep: Vec<RawFd>,
    settle: Settle,
}

impl<R: FnMut(Child) -> i32, T: FnMut(Told<'_>, &mut Control)> Program for Script<R, T> {
    fn run(&mut self, child: Child) -> i32 {
        (self.run)(child)
    }

    fn keep(&self, _slot: SlotId) -> Vec<RawFd> {
        self.keep.clone()
    }

    fn exited(&mut self, exit: &Exited, control: &mut Control) -> Settle {
        (self.told)(Told::Exited(exit), control);
        self.settle
    }

    fn report(&mut self, report: &Report, control: &mut Control) {
        (self.told)(Told::Report(report), control);
    }

    fn readable(&mut self, fd: RawFd, control: &mut Control) {
        (self.told)(Told::Readable(fd), control);
    }
}

/// Runs a script to its end, and checks that it leaves no process behind.
fn supervise<R, T>(options: Options, slots: &[u16], run: R, told: T) -> Outcome<Script<R, T>>
where
    R: FnMut(Child) -> i32,
    T: FnMut(Told<'_>, &mut Control),
{
    supervise_script(options, slots, Script { run, told, keep: vec![], settle: Settle::Now })
}

fn supervise_script<P: Program>(options: Options, slots: &[u16], program: P) -> Outcome<P> {
    let outcome = Supervisor::new(options, groups(slots), program).unwrap().run().unwrap();
    assert_eq!(wait(WaitOptions::NOHANG).map(|_| ()), Err(Errno::CHILD), "a zombie or an orphan is left");
    outcome
}

fn wait_forever() -> ! {
    loop {
        rustix::event::pause();
    }
}

/// Serves until a signal ends it.
fn serve(mut child: Child) -> i32 {
    child.ready();
    wait_forever()
}

/// Serves and does not care for `SIGTERM`.
fn serve_stubbornly(child: Child) -> i32 {
    signal::ignore(Signal::TERM).unwrap();
    serve(child)
}

fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}

/// How many of the reports so far were [`Report::Ready`], the one just told included.
fn count_ready(ready: &mut u32, told: &Told<'_>) -> bool {
    let is_ready = matches!(told, Told::Report(Report::Ready { .. }));
    *ready += u32::from(is_ready);
    is_ready
}

fn a_killed_process_is_replaced() {
    let mut generations = vec![];
    supervise(Options::default(), &[2], serve, |told, control| match told {
        Told::Report(&Report::Ready { slot: SlotId { slot: 0, .. }, generation: 1, pid, .. }) => kill(pid),
        Told::Report(&Report::Ready { slot: SlotId { slot: 0, .. }, pid, .. }) => {
            assert!(control.pids().contains(&(slot(0, 0), 2, pid)));
            assert_eq!(control.pids().len(), 2);
            control.stop(Duration::MAX);
        }
        Told::Exited(exit) => {
            assert!(control.pids().iter().all(|&(_, _, pid)| pid != exit.pid));
            generations.push((exit.slot.slot, exit.generation, exit.status.to_string()));
        }
        _ => {}
    });
    assert_eq!(generations.remove(0), (0, 1, "signal:9".into()));
    generations.sort();
    assert_eq!(generations, [(0, 2, "signal:15".into()), (1, 1, "signal:15".into())]);
}

fn a_signal_goes_to_one_process_or_to_all() {
    let (mut ready, mut ended) = (0, Vec::new());
    supervise(Options::default(), &[2], serve, |told, control| {
        if count_ready(&mut ready, &told) {
            match ready {
                2 => control.signal(slot(0, 1), Signal::KILL),
                3 => control.signal_all(Signal::USR1),
                _ => {}
            }
        } else if let Told::Exited(exit) = told {
            ended.push((exit.slot, exit.status.to_string()));
            if ended.len() == 3 {
                control.stop(LONG);
            }
        }
    });
    ended[1..3].sort_unstable();
    let killed = |slot, signal: Signal| {
        (slot, ExitStatus::Signaled { signal: signal.as_raw(), core_dumped: false }.to_string())
    };
    let expected = [
        killed(slot(0, 1), Signal::KILL),
        killed(slot(0, 0), Signal::USR1),
        killed(slot(0, 1), Signal::USR1),
    ];
    assert_eq!(ended[..3], expected);
}

fn a_status_tells_how_a_process_ended() {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    let run = |mut child: Child| {
        match (child.slot, child.generation) {
            (0, 1) => panic!("as the test expects"),
            (1, 1) => signal::raise(Signal::ABORT).unwrap(),
            (2, 1) => signal::raise(Signal::SEGV).unwrap(),
            (3, 1) => return 3,
            _ => {}
        }
        child.ready();
        if child.generation == 1 { 0 } else { wait_forever() }
    };
    let mut ends = vec![None; 5];
    let mut second = 0;
    supervise(Options::default(), &[5], run, |told, control| match told {
        Told::Exited(exit) if exit.generation == 1 => {
            assert_eq!(exit.was_ready, exit.slot.slot == 4);
            ends[usize::from(exit.slot.slot)] = Some(exit.status);
        }
        Told::Report(Report::Ready { generation: 2, .. }) => {
            second += 1;
            if second == 5 {
                control.stop(LONG);
            }
        }
        _ => {}
    });
    let signal = |signal: Signal| ExitStatus::Signaled { signal: signal.as_raw(), core_dumped: false };
    let expected = [
        ExitStatus::Exited(101),
        signal(Signal::ABORT),
        signal(Signal::SEGV),
        ExitStatus::Exited(3),
        ExitStatus::Exited(0),
    ];
    assert_eq!(ends, expected.map(Some));
}

fn a_process_that_is_ready_and_leaves_at_once_counts_as_ready() {
    let run = |mut child: Child| {
        child.ready();
        child.ready();
        0
    };
    let began = Instant::now();
    let mut last = 0;
    supervise(Options::default(), &[1], run, |told, control| match told {
        Told::Exited(exit) => {
            assert!(exit.was_ready);
            assert_eq!(exit.generation, last + 1);
            last = exit.generation;
            if last == 50 {
                control.stop(LONG);
            }
        }
        Told::Report(report @ (Report::BackingOff { .. } | Report::Failing { .. })) => panic!("{report}"),
        _ => {}
    });
    assert!(began.elapsed() < LONG);
}

fn a_crash_loop_is_slowed_down_while_others_serve() {
    let run = |child: Child| if child.slot == 0 { 1 } else { serve(child) };
    let options = Options { restart_intensity: 4, ..Options::default() };
    let mut delays = vec![];
    let began = Instant::now();
    supervise(options, &[2], run, |told, control| match told {
        Told::Report(Report::BackingOff { slot: SlotId { slot: 0, .. }, delay, .. }) => {
            delays.push(delay.as_millis());
        }
        Told::Report(Report::Failing { slot: SlotId { slot: 0, .. }, deaths: 4, delay }) => {
            assert!((4..=6).contains(&delay.as_secs()), "{delay:?}");
            assert!(began.elapsed().as_millis() >= delays.iter().sum(), "it has not waited");
            assert_eq!(control.pids().len(), 1, "the other one serves");
            control.stop(LONG);
        }
        Told::Exited(Exited { slot: SlotId { slot: 1, .. }, .. }) => assert!(control.is_stopping()),
        _ => {}
    });
    assert_eq!(delays.len(), 2, "at once after the first death, and failing after the fourth: {delays:?}");
    assert!((40..=60).contains(&delays[0]) && (80..=120).contains(&delays[1]), "{delays:?}");
}

/// Notes which slots get a new process, and that no two of them are without one at the same time.
fn assert_rolling(expected: &[SlotId], signal: Signal, slots: &[u16]) {
    let all: u32 = slots.iter().copied().map(u32::from).sum();
    let (mut ready, mut order, mut out) = (0, vec![], 0);
    supervise(Options::default(), slots, serve, |told, control| {
        if count_ready(&mut ready, &told) && ready == all {
            signal::raise(signal).unwrap();
        }
        match told {
            Told::Report(Report::Retiring { .. }) if !control.is_stopping() => {
                out += 1;
                assert_eq!(out, 1, "one at a time");
            }
            Told::Report(&Report::Ready { slot, generation: 2, .. }) => {
                out -= 1;
                order.push(slot);
            }
            Told::Report(Report::ReloadEnded { .. }) => signal::raise(Signal::TERM).unwrap(),
            _ => {}
        }
    });
    assert_eq!(order, expected);
}

fn sigusr1_reloads_one_slot_after_the_other() {
    assert_rolling(&[slot(0, 0), slot(0, 1), slot(1, 0)], Signal::USR1, &[2, 1]);
}

fn sigusr2_reloads_the_last_group() {
    assert_rolling(&[slot(1, 0), slot(1, 1)], Signal::USR2, &[1, 2]);
}

fn a_reload_all_at_once_shows_children_the_state_of_their_supervisor() {
    let code = Cell::new(0);
    let run = |mut child: Child| {
        if child.generation == 1 {
            return serve(child);
        }
        child.ready();
        code.get()
    };
    let (mut ready, mut codes) = (0, vec![]);
    supervise(Options::default(), &[3], run, |told, control| {
        if count_ready(&mut ready, &told) && ready == 3 {
            code.set(42);
            control.reload(Scope::All, Some(ReloadMode::AllAtOnce));
        }
        match told {
            Told::Exited(exit) if exit.generation == 2 => codes.push(exit.status),
            Told::Report(Report::ReloadEnded { .. }) => control.stop(LONG),
            _ => {}
        }
    });
    assert!(codes.len() >= 2, "{codes:?}");
    assert!(
        codes.iter().all(|code| matches!(code, ExitStatus::Exited(42) | ExitStatus::Signaled { .. })),
        "{codes:?}"
    );
    assert!(codes.contains(&ExitStatus::Exited(42)), "{codes:?}");
}

fn a_reload_stops_at_a_successor_that_cannot_start() {
    let broken = Cell::new(false);
    let run = |child: Child| if broken.get() { 1 } else { serve(child) };
    let (mut ready, mut aborted) = (0, false);
    supervise(Options::default(), &[3], run, |told, control| {
        if count_ready(&mut ready, &told) && ready == 3 {
            broken.set(true);
            control.reload(Scope::All, None);
        }
        if let Told::Report(Report::ReloadAborted { slot: failed, status, untouched }) = told {
            assert_eq!((*failed, *status, *untouched), (slot(0, 0), Some(ExitStatus::Exited(1)), 2));
            let old = control.pids().iter().filter(|(_, generation, _)| *generation == 1).count();
            assert_eq!(old, 2, "the others go on");
            aborted = true;
            control.stop(LONG);
        }
    });
    assert!(aborted);
}

fn no_more_are_away_at_once_than_may_be() {
    let options = Options { reload_parallel: 2, ..Options::default() };
    let (mut ready, mut away, mut most) = (0, BTreeSet::new(), 0);
    supervise(options, &[6], serve, |told, control| {
        // A slot whose successor has not started when the reload comes to it is asked once more.
        if let Told::Report(Report::Retiring { slot, .. }) = told
            && !control.is_stopping()
        {
            away.insert(*slot);
            most = most.max(away.len());
        }
        if let Told::Report(Report::Ready { slot, .. }) = told {
            away.remove(slot);
        }
        if count_ready(&mut ready, &told) {
            match ready {
                // All are due, then all are reloaded while they are.
                6 => (0..6).for_each(|index| control.recycle(slot(0, index), 1)),
                9 => control.reload(Scope::All, None),
                _ => {}
            }
        }
        if let Told::Report(Report::ReloadEnded { .. }) = told {
            assert!(control.pids().iter().all(|&(_, generation, _)| generation > 1));
            control.stop(LONG);
        }
    });
    assert_eq!(most, 2);
}

fn a_process_that_does_not_retire_is_killed() {
    let options = Options { max_wait: Duration::from_millis(100), ..Options::default() };
    let mut seen = vec![];
    let outcome = supervise(options, &[1], serve_stubbornly, |told, control| match told {
        Told::Report(Report::Ready { slot, generation: 1, .. }) => control.retire(*slot),
        Told::Report(Report::Killed { waited, .. }) => {
            assert_eq!(*waited >= Duration::from_millis(100), !control.is_stopping());
            seen.push("killed".to_owned());
        }
        Told::Exited(exit) if exit.generation == 1 => seen.push(exit.status.to_string()),
        Told::Report(Report::Ready { generation: 2, .. }) => control.stop(Duration::ZERO),
        _ => {}
    });
    assert_eq!(outcome.killed, 1, "by the stop");
    assert_eq!(seen, ["killed", "signal:9", "killed"]);
}

fn a_stop_is_over_at_its_bound() {
    let run = |child: Child| if child.slot == 0 { serve_stubbornly(child) } else { serve(child) };
    let mut asked = Instant::now();
    let mut ready = 0;
    let outcome = supervise(Options::default(), &[3], run, |told, control| {
        if count_ready(&mut ready, &told) && ready == 3 {
            asked = Instant::now();
            control.stop(Duration::from_millis(200));
        }
    });
    assert_eq!(outcome.killed, 1, "one does not go by itself");
    let took = asked.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

fn a_second_sigint_does_not_wait() {
    let options = Options { max_wait: Duration::from_secs(3600), ..Options::default() };
    let mut stopping = 0;
    let outcome = supervise(options, &[1], serve_stubbornly, |told, _| match told {
        Told::Report(Report::Ready { .. }) => signal::raise(Signal::INT).unwrap(),
        Told::Report(Report::Stopping { .. }) => {
            stopping += 1;
            if stopping == 1 {
                signal::raise(Signal::INT).unwrap();
            }
        }
        _ => {}
    });
    assert_eq!((outcome.killed, stopping), (1, 2));
}

fn timer(after: Duration) -> OwnedFd {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Timespec::try_from(after).unwrap();
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: never, it_value: value })
        .unwrap();
    timer
}

fn a_successor_waits_until_things_are_settled() {
    let mut clearing_up = None;
    let mut log = vec![];
    let told = |told: Told<'_>, control: &mut Control| match told {
        Told::Report(Report::Ready { generation: 1, pid, .. }) => kill(*pid),
        Told::Exited(exit) if exit.generation == 1 => {
            let timer = clearing_up.insert(timer(Duration::from_millis(50)));
            control.watch(timer.as_raw_fd());
            log.push("exited");
        }
        Told::Readable(fd) => {
            log.push("settled");
            control.unwatch(fd);
            control.settled(slot(0, 0));
        }
        Told::Report(Report::Started { generation: 2, .. }) => {
            log.push("started");
            control.stop(LONG);
        }
        _ => {}
    };
    let script = Script { run: serve, told, keep: vec![], settle: Settle::Later };
    supervise_script(Options::default(), &[1], script);
    assert_eq!(log, ["exited", "settled", "started"]);
}

fn a_refused_process_is_tried_again() {
    let normal = getrlimit(Resource::Nofile);
    let mut refused = 0;
    supervise(Options::default(), &[1], serve, |told, control| match told {
        Told::Report(Report::Ready { generation: 1, pid, .. }) => {
            setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..normal }).unwrap();
            kill(*pid);
        }
        Told::Report(Report::SpawnFailed { error, .. }) => {
            assert!(error.to_string().contains("ulimit -n"), "{error}");
            refused += 1;
            if refused == 2 {
                setrlimit(Resource::Nofile, normal).unwrap();
            }
        }
        Told::Report(Report::Ready { .. }) => control.stop(LONG),
        _ => {}
    });
    assert_eq!(refused, 2);
}

/// What a child prints into the kept end of a pipe, read by the supervisor's side.
fn said_by_child(extra_fds: usize, run: impl Fn(&mut Child) -> String) -> (String, Vec<RawFd>) {
    let files: Vec<File> = (0..extra_fds).map(|_| File::open("/dev/null").unwrap()).collect();
    let (read, write) = pipe().unwrap();
    let keep = vec![files[1].as_raw_fd(), write.as_raw_fd()];
    let watched = read.as_raw_fd();
    let mut said = String::new();
    let life = |mut child: Child| {
        let text = run(&mut child);
        rustix::io::write(&write, text.as_bytes()).unwrap();
        child.ready();
        wait_forever()
    };
    let told = |told: Told<'_>, control: &mut Control| match told {
        Told::Report(Report::Started { .. }) => control.watch(watched),
        Told::Readable(fd) => {
            assert_eq!(fd, watched);
            let mut buffer = [0; 4096];
            let len = rustix::io::read(&read, &mut buffer).unwrap();
            said.push_str(str::from_utf8(&buffer[..len]).unwrap());
            control.unwatch(fd);
            control.stop(LONG);
        }
        _ => {}
    };
    supervise_script(
        Options::default(),
        &[1],
        Script { run: life, told, keep: keep.clone(), settle: Settle::Now },
    );
    (said, keep)
}

fn a_child_has_the_descriptors_of_the_list_and_no_others() {
    let list = |child: &mut Child| {
        child.ready();
        let entries = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
        let mut fds: Vec<RawFd> = entries
            .filter(|entry| !fs::read_link(entry.path()).unwrap().ends_with("fd"))
            .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
            .collect();
        fds.sort_unstable();
        format!("{fds:?}")
    };
    let (said, keep) = said_by_child(4, list);
    let mut expected = [vec![0, 1, 2], keep].concat();
    expected.sort_unstable();
    assert_eq!(said, format!("{expected:?}"));
}

fn a_child_has_no_signal_blocked_or_handled() {
    signal::ignore(Signal::TERM).unwrap();
    let (said, _) = said_by_child(2, |_| {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let ignores_term = field("SigIgn:") >> (Signal::TERM.as_raw() - 1) & 1;
        format!("{} {} {ignores_term}", field("SigBlk:"), field("SigCgt:"))
    });
    assert_eq!(said, "0 0 0");
}

fn children_die_with_their_supervisor() {
    let (read, write) = pipe().unwrap();
    let kept = write.as_raw_fd();
    let supervisor = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => run_child(|| {
            let run = |child: Child| {
                rustix::io::write(&write, b"!").unwrap();
                serve(child)
            };
            let script = Script {
                run,
                told: |_: Told<'_>, _: &mut Control| {},
                keep: vec![kept],
                settle: Settle::Now,
            };
            supervise_script(Options::default(), &[3], script);
            0
        }),
    };
    drop(write);
    let mut file = File::from(read);
    std::io::Read::read_exact(&mut file, &mut [0; 3]).unwrap();
    kill(supervisor);
    let gone = wait_readable(&[file.as_raw_fd()], Some(Duration::from_secs(5))).unwrap();
    assert!(!gone.is_empty(), "somebody lives");
    assert_eq!(rustix::io::read(&file, &mut [0; 1]), Ok(0));
}

fn a_process_outlives_its_supervisor_and_is_adopted_by_the_next() {
    // This process becomes the parent of what the first supervisor leaves.
    swoole_sys::process::become_subreaper().unwrap();
    let (read, write) = pipe().unwrap();
    let kept = write.as_raw_fd();
    let tell = |child: &Child| {
        for number in [child.generation, std::process::id()] {
            rustix::io::write(&write, &number.to_ne_bytes()).unwrap();
        }
    };
    let first = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => run_child(|| {
            let run = |child: Child| {
                // The death of its supervisor is no reason to go.
                signal::ignore(Signal::TERM).unwrap();
                tell(&child);
                serve(child)
            };
            let told = |_: Told<'_>, _: &mut Control| {};
            supervise_script(
                Options::default(),
                &[1],
                Script { run, told, keep: vec![kept], settle: Settle::Now },
            );
            0
        }),
    };
    let mut file = File::from(read);
    let mut number = || {
        let mut bytes = [0; 4];
        std::io::Read::read_exact(&mut file, &mut bytes).unwrap();
        u32::from_ne_bytes(bytes)
    };
    assert_eq!(number(), 1);
    let worker = Pid::from_raw(number() as i32).unwrap();
    kill(first);
    rustix::process::waitpid(Some(first), WaitOptions::empty()).unwrap();
    let pidfd = rustix::process::pidfd_open(worker, rustix::process::PidfdFlags::empty()).unwrap();
    let second = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => run_child(|| {
            let run = |child: Child| {
                tell(&child);
                serve(child)
            };
            let mut log = Vec::new();
            let told = |told: Told<'_>, control: &mut Control| match told {
                Told::Report(&Report::Adopted { slot, generation: 1, pid }) => {
                    assert_eq!(control.pids(), [(slot, 1, pid)]);
                    control.signal(slot, Signal::KILL);
                }
                Told::Report(Report::Ready { .. }) => control.stop(Duration::MAX),
                Told::Exited(exit) => log.push(format!("#{} {}", exit.generation, exit.status)),
                _ => {}
            };
            let adopted = Adopted {
                slot: slot(0, 0),
                generation: 1,
                pid: worker,
                pidfd: Some(pidfd.try_clone().unwrap()),
                leaving: false,
            };
            let script = Script { run, told, keep: vec![kept], settle: Settle::Now };
            let supervisor = Supervisor::new(Options::default(), groups(&[1]), script).unwrap();
            drop(supervisor.adopt(vec![adopted]).run().unwrap());
            assert_eq!(log, ["#1 exit:unknown", "#2 signal:15"]);
            0
        }),
    };
    assert_eq!(number(), 2, "the successor");
    let (_, status) = rustix::process::waitpid(Some(second), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
    let (_, status) = rustix::process::waitpid(Some(worker), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.terminating_signal(), Some(Signal::KILL.as_raw()));
}

fn a_process_with_threads_supervises_nobody() {
    let (end, is_to_end) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || is_to_end.recv());
    let script = Script {
        run: |_: Child| 0,
        told: |told: Told<'_>, _: &mut Control| panic!("{told:?}"),
        keep: vec![],
        settle: Settle::Now,
    };
    let result = Supervisor::new(Options::default(), groups(&[1]), script).unwrap().run();
    assert!(matches!(result, Err(Error::Fork(ForkError::Threads { count: 2, .. }))));
    drop(end);
    assert!(thread.join().unwrap().is_err());
}

fn a_descriptor_that_is_closed_while_watched_is_told_and_forgotten() {
    const NO_DESCRIPTOR: RawFd = 4321;
    let mut times = 0;
    supervise(Options::default(), &[1], serve, |told, control| match told {
        Told::Report(Report::Ready { generation: 1, .. }) => control.watch(NO_DESCRIPTOR),
        Told::Readable(fd) => {
            assert_eq!(fd, NO_DESCRIPTOR);
            times += 1;
            // By the time of the next generation, a descriptor still watched had been told of again.
            control.retire(slot(0, 0));
        }
        Told::Report(Report::Ready { generation: 2, .. }) => control.stop(LONG),
        _ => {}
    });
    assert_eq!(times, 1);
}

fn an_idle_supervisor_does_nothing() {
    let (read, write) = pipe().unwrap();
    let supervisor = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => run_child(|| {
            let mut ready = 0;
            supervise(Options::default(), &[4], serve, |told, _| {
                if count_ready(&mut ready, &told) && ready == 4 {
                    rustix::io::write(&write, b"!").unwrap();
                }
            });
            0
        }),
    };
    assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(1));
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", supervisor.as_raw_pid())).unwrap();
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    // Whoever makes a system call in a loop, or wakes up to look around, is switched to and away.
    let window = |time: Duration| wait_readable(&[], Some(time)).unwrap();
    window(Duration::from_millis(100));
    let before = switches();
    window(Duration::from_millis(700));
    assert_eq!(switches(), before);
    kill_process(supervisor, Signal::TERM).unwrap();
    let (_, status) = rustix::process::waitpid(Some(supervisor), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0));
}
