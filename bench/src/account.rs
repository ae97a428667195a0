//! What the processes of a server have used: CPU time, context switches, memory.
//!
//! CPU time comes from `/proc/PID/task/TID/schedstat`, in nanoseconds, summed over the threads. A thread that ends takes
//! its number along; so where one has ended between two snapshots, or the kernel keeps no schedstat, the process's time
//! comes from `/proc/PID/stat`, which includes ended threads and is exact to a clock tick (10 ms). Context switches of
//! ended threads are lost.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What was used between two [`Snapshot`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// In user and system mode.
    pub cpu: Duration,
    /// Times that a thread went to sleep or was preempted.
    pub switches: u64,
}

/// What processes have used up to a moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(BTreeMap<u32, Process>);

#[derive(Clone, Debug, Default)]
struct Process {
    ticks: Duration,
    tasks: BTreeMap<u32, Task>,
}

#[derive(Clone, Debug, Default)]
struct Task {
    /// `None`: the kernel keeps none.
    cpu: Option<Duration>,
    switches: u64,
}

impl Snapshot {
    /// Reads the counters of these processes.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn take(processes: &[u32]) -> Result<Snapshot> {
        processes.iter().map(|&id| Ok((id, Process::read(id)?))).collect::<Result<_>>().map(Snapshot)
    }

    /// What was used since `before`, by processes that are in both.
    pub fn since(&self, before: &Snapshot) -> Usage {
        let mut usage = Usage::default();
        for (id, process) in &self.0 {
            let Some(before) = before.0.get(id) else { continue };
            usage.cpu += process.cpu_since(before);
            for (task, now) in &process.tasks {
                usage.switches += now.switches - before.tasks.get(task).map_or(0, |then| then.switches);
            }
        }
        usage
    }
}

impl Process {
    fn read(id: u32) -> Result<Process> {
        let read = || -> Result<Process> {
            let directory = format!("/proc/{id}");
            let mut tasks = BTreeMap::new();
            for entry in fs::read_dir(format!("{directory}/task"))? {
                let entry = entry?;
                // A thread may end between the listing and the reading.
                if let Ok(task) = Task::read(&entry.path()) {
                    tasks.insert(entry.file_name().to_string_lossy().parse()?, task);
                }
            }
            Ok(Process { ticks: ticks(&fs::read_to_string(format!("{directory}/stat"))?)?, tasks })
        };
        read().with_context(|| format!("process {id} of the server has ended"))
    }

    fn cpu_since(&self, before: &Process) -> Duration {
        let ended = before.tasks.keys().any(|task| !self.tasks.contains_key(task));
        let precise = || {
            let mut sum = Duration::ZERO;
            for (id, task) in &self.tasks {
                let then = before.tasks.get(id).map_or(Some(Duration::ZERO), |then| then.cpu)?;
                sum += task.cpu?.saturating_sub(then);
            }
            Some(sum)
        };
        let precise = if ended { None } else { precise() };
        precise.unwrap_or_else(|| self.ticks.saturating_sub(before.ticks))
    }
}

impl Task {
    fn read(directory: &Path) -> Result<Task> {
        let schedstat = fs::read_to_string(directory.join("schedstat")).ok();
        let cpu = schedstat.as_deref().and_then(|line| line.split(' ').next()?.parse().ok());
        let status = fs::read_to_string(directory.join("status"))?;
        Ok(Task { cpu: cpu.map(Duration::from_nanos), switches: switches(&status) })
    }
}

/// Memory of these processes in KiB: pages that several share count for each by its part (PSS).
///
/// # Errors
/// One of them has ended.
pub fn memory_kib(processes: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for process in processes {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))
            .with_context(|| format!("process {process} of the server has ended"))?;
        sum += field(&rollup, "Pss:").context("/proc/PID/smaps_rollup has no Pss")?;
    }
    Ok(sum)
}

/// utime and stime of `/proc/PID/stat`.
fn ticks(stat: &str) -> Result<Duration> {
    // The second field is the name in parentheses, and may hold anything; utime and stime are fields 14 and 15.
    let (_, after_name) = stat.rsplit_once(") ").context("/proc/PID/stat has a name")?;
    let mut ticks = 0;
    for field in after_name.split(' ').skip(11).take(2) {
        ticks += field.parse::<u64>()?;
    }
    Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
}

/// Both kinds of context switches of `/proc/PID/status`.
fn switches(status: &str) -> u64 {
    ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"]
        .into_iter()
        .filter_map(|name| field(status, name))
        .sum()
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        assert_eq!(
            ticks(stat).unwrap(),
            Duration::from_secs(200) / rustix::param::clock_ticks_per_second() as u32
        );
        assert!(ticks("nonsense").is_err());
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(switches(status), 7);
        assert_eq!(field("Rss:  10 kB\nPss:   409 kB\nPss_Dirty: 1 kB\n", "Pss:"), Some(409));
    }

    #[test]
    fn what_this_process_uses_is_seen() {
        let me = [std::process::id()];
        let before = Snapshot::take(&me).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(40) {
            std::hint::spin_loop();
        }
        let used = Snapshot::take(&me).unwrap().since(&before);
        assert!(used.cpu >= Duration::from_millis(5), "{used:?}");
        assert!(memory_kib(&me).unwrap() > 100);
    }

    #[test]
    fn an_ended_thread_leaves_its_time_in_the_ticks() {
        let task = |ms| Task { cpu: Some(Duration::from_millis(ms)), switches: 0 };
        let process = |ticks, tasks: &[(u32, u64)]| Process {
            ticks: Duration::from_millis(ticks),
            tasks: tasks.iter().map(|&(id, ms)| (id, task(ms))).collect(),
        };
        let before = process(20, &[(1, 11), (2, 12)]);
        assert_eq!(process(50, &[(1, 21), (2, 12), (3, 5)]).cpu_since(&before), Duration::from_millis(15));
        assert_eq!(process(50, &[(1, 21)]).cpu_since(&before), Duration::from_millis(30));
    }
}
