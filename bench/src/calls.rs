//! System calls of a server under load, by name: counted by `perf stat`, or by `strace -c` where perf may not.
//!
//! What a call is for is told by its name alone ([`Counts::split`]). That works because our server, tokio, hyper and
//! nginx talk to clients by `recv*`, `send*` and `writev`, and to each other by `write` and `read` on eventfds, and
//! `futex`. It does not work for Redis, which reads and writes its clients with `read` and `write`; and with
//! `--ipc socketpair`, whose packets between processes are `sendmsg` and `recvfrom` too, only the total tells.

use crate::load::{self, Summary};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

/// Calls that move bytes to and from clients, and open and close their connections.
const DATA: &[&str] = &[
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "readv",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "writev",
    "accept",
    "accept4",
    "close",
    "shutdown",
    "epoll_ctl",
];
/// Calls that wait for whatever comes; io_uring's also moves bytes.
const WAIT: &[&str] = &["epoll_wait", "epoll_pwait", "epoll_pwait2", "io_uring_enter"];
const YIELD: &str = "sched_yield";
/// Others that are counted by their names. The rest is the total less all of these.
const NAMED: &[&str] = &[
    "read",
    "write",
    "futex",
    "poll",
    "ppoll",
    "msgsnd",
    "msgrcv",
    "nanosleep",
    "clock_nanosleep",
    "socket",
    "bind",
    "connect",
    "setsockopt",
    "getsockopt",
    "getpeername",
    "fcntl",
    "timerfd_settime",
    "mmap",
    "munmap",
    "mremap",
    "madvise",
    "brk",
    "getppid",
];
const REST: &str = "others";
const TRACING: &[&str] = &["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// How long strace may take to attach to all threads.
const ATTACH: Duration = Duration::from_millis(300);

/// How often each system call was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts(BTreeMap<String, u64>);

/// [`Counts`] by what the calls are for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Split {
    /// All of them.
    pub total: u64,
    /// All but the data path's own, the waiting and the yielding: doorbells, locks, sleeps.
    pub ipc: u64,
    /// `sched_yield`.
    pub yields: u64,
    /// `epoll_wait` and `io_uring_enter`.
    pub waits: u64,
}

impl Counts {
    /// Puts load on a server while its system calls are counted.
    ///
    /// # Errors
    /// The load failed, or neither perf nor strace can count.
    pub fn under(load: &load::Options, processes: &[u32]) -> Result<(Counts, Summary)> {
        let perf = Counts::by_perf(load, processes);
        let Err(perf_failed) = perf else { return perf };
        Counts::by_strace(load, processes)
            .with_context(|| format!("perf cannot count ({perf_failed:#}), nor can strace"))
    }

    fn by_perf(load: &load::Options, processes: &[u32]) -> Result<(Counts, Summary)> {
        let report = Report::new("perf");
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x,", "-e", &events()?, "-p", &ids(processes).join(","), "-o"]).arg(&report.0);
        // Counts for as long as the load, a process of its own, lives.
        perf.arg("--").arg(beside_this("load")?).args(load_flags(load));
        let output = perf.output().context("perf")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        let summary: Summary = serde_json::from_slice(&output.stdout)?;
        Ok((parse_perf(&report.read()?)?, summary.verified()?))
    }

    fn by_strace(load: &load::Options, processes: &[u32]) -> Result<(Counts, Summary)> {
        let report = Report::new("strace");
        let mut strace = Command::new("strace");
        strace.args(["-c", "-f", "-q", "-o"]).arg(&report.0);
        strace.args(ids(processes).iter().flat_map(|id| ["-p", id]));
        let mut tracer = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("strace")?;
        thread::sleep(ATTACH);
        let summary = load::run(load);
        let tracer_id = Pid::from_raw(tracer.id().try_into()?).context("a process has no id 0")?;
        // It has ended already if it could not attach; then there is no report.
        let _ = kill_process(tracer_id, Signal::INT);
        tracer.wait()?;
        Ok((parse_strace(&report.read()?)?, summary?.verified()?))
    }

    /// The counts by what the calls are for.
    pub fn split(&self) -> Split {
        let mut split = Split::default();
        for (name, &count) in &self.0 {
            split.total += count;
            match name.as_str() {
                name if DATA.contains(&name) => {}
                name if WAIT.contains(&name) => split.waits += count,
                YIELD => split.yields += count,
                _ => split.ipc += count,
            }
        }
        split
    }

    /// Per request, the most frequent first; what is rarer than one in a thousand requests is left out.
    pub fn per_request(&self, requests: u64) -> Vec<(String, f64)> {
        let mut calls: Vec<_> =
            self.0.iter().map(|(name, count)| (name.clone(), *count as f64 / requests as f64)).collect();
        calls.retain(|(_, per_request)| *per_request >= 0.001);
        calls.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        calls
    }
}

/// The report of a tool, in a file that goes with this.
struct Report(PathBuf);

impl Report {
    fn new(tool: &str) -> Report {
        Report(env::temp_dir().join(format!("swoole-bench-{tool}-{}", std::process::id())))
    }

    fn read(&self) -> Result<String> {
        fs::read_to_string(&self.0).context("it has written no report")
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // There is none if the tool has failed.
        let _ = fs::remove_file(&self.0);
    }
}

fn ids(processes: &[u32]) -> Vec<String> {
    processes.iter().map(u32::to_string).collect()
}

/// A program that was built together with this one.
///
/// # Errors
/// It is not there.
pub(crate) fn beside_this(program: &str) -> Result<PathBuf> {
    let mut directory = env::current_exe()?;
    directory.pop();
    // Unit tests run one directory deeper.
    let found =
        [directory.join(program), directory.join("..").join(program)].into_iter().find(|path| path.exists());
    found.with_context(|| format!("{} is missing: build all of bench/", directory.join(program).display()))
}

fn load_flags(load: &load::Options) -> Vec<String> {
    let mut flags = vec![
        format!("--address={}", load.address),
        format!("--framing={}", load.protocol.name()),
        format!("--connections={}", load.connections),
        format!("--size={}", load.size),
        format!("--depth={}", load.depth),
        format!("--seconds={}", load.seconds),
    ];
    flags.extend(load.rate.map(|rate| format!("--rate={rate}")));
    flags
}

/// All that can be counted here: not every architecture has every call.
fn events() -> Result<String> {
    let exists = |name: &str| {
        TRACING.iter().any(|root| Path::new(root).join(format!("events/syscalls/sys_enter_{name}")).exists())
    };
    let names = DATA.iter().chain(WAIT).chain([&YIELD]).chain(NAMED).filter(|name| exists(name));
    let events: Vec<String> = names.map(|name| format!("syscalls:sys_enter_{name}")).collect();
    if events.is_empty() {
        bail!("no right to read {}", TRACING[0]);
    }
    Ok(format!("raw_syscalls:sys_enter,{}", events.join(",")))
}

fn parse_perf(report: &str) -> Result<Counts> {
    let (mut counts, mut total, mut named) = (BTreeMap::new(), None, 0);
    for line in report.lines() {
        // count,unit,event,...
        let mut fields = line.split(',');
        let Some(count) = fields.next().and_then(|count| count.parse::<u64>().ok()) else { continue };
        let Some((group, event)) = fields.nth(1).and_then(|event| event.split_once(':')) else { continue };
        match (group, event.strip_prefix("sys_enter_")) {
            ("raw_syscalls", _) => total = Some(count),
            (_, Some(name)) => {
                named += count;
                counts.insert(name.to_owned(), count);
            }
            _ => {}
        }
    }
    let total = total.context("perf has counted nothing")?;
    counts.insert(REST.to_owned(), total.saturating_sub(named));
    counts.retain(|_, count| *count > 0);
    Ok(Counts(counts))
}

fn parse_strace(report: &str) -> Result<Counts> {
    // % time, seconds, usecs/call, calls, errors or nothing, name
    let mut counts = BTreeMap::new();
    for line in report.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(calls), Some(&name)) = (fields.get(3), fields.last()) else { continue };
        if let (Ok(calls), false) = (calls.parse(), name == "total") {
            counts.insert(name.to_owned(), calls);
        }
    }
    ensure!(!counts.is_empty(), "strace has counted nothing");
    Ok(Counts(counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERF: &str = "# started on Tue\n\n100,,raw_syscalls:sys_enter,455988,100.00,,\n\
        40,,syscalls:sys_enter_recvfrom,1,100.00,,\n40,,syscalls:sys_enter_sendto,1,100.00,,\n\
        0,,syscalls:sys_enter_futex,1,100.00,,\n5,,syscalls:sys_enter_write,1,100.00,,\n\
        7,,syscalls:sys_enter_epoll_pwait2,1,100.00,,\n6,,syscalls:sys_enter_sched_yield,1,100.00,,\n";

    #[test]
    fn perf_is_read_and_split() {
        let counts = parse_perf(PERF).unwrap();
        assert_eq!(counts.0[REST], 2);
        assert!(!counts.0.contains_key("futex"));
        assert_eq!(counts.split(), Split { total: 100, ipc: 7, yields: 6, waits: 7 });
        assert_eq!(counts.per_request(10)[..2], [("recvfrom".to_owned(), 4.0), ("sendto".to_owned(), 4.0)]);
        assert_eq!(counts.per_request(10_000).len(), 2, "rare ones are left out");
        assert!(parse_perf("").is_err());
    }

    #[test]
    fn strace_is_read() {
        let report = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
             33.23    0.000110          13         8           sendto\n  1.00    0.000018           9         2         1 futex\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    0.000331          13        10         1 total\n";
        let counts = parse_strace(report).unwrap();
        assert_eq!(counts.split(), Split { total: 10, ipc: 2, yields: 0, waits: 0 });
        assert!(parse_strace("strace: attach: Operation not permitted").is_err());
    }
}
