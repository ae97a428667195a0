//! What /proc tells about the server's processes (proc(5)).

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Debug, PartialEq)]
pub(super) struct Stat {
    pub(super) state: char,
    pub(super) parent: i32,
    pub(super) session: i32,
    /// User and system time so far, in clock ticks.
    pub(super) ticks: u64,
    /// Threads of the process.
    pub(super) threads: usize,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name is free text in parentheses: the last one closes it.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: i32::try_from(number(1)?).ok()?,
        session: i32::try_from(number(3)?).ok()?,
        ticks: number(11)? + number(12)?,
        threads: usize::try_from(number(17)?).ok()?,
    })
}

pub(super) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

pub(super) fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Whether the process exists and runs: a zombie has ended.
pub(super) fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

fn everyone() -> Vec<(i32, Stat)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, stat(pid)?))
        })
        .collect()
}

/// The running processes below `root`, itself not counted.
pub(super) fn descendants(root: i32) -> Vec<i32> {
    let everyone = everyone();
    let mut family = BTreeSet::from([root]);
    loop {
        let before = family.len();
        family.extend(
            everyone
                .iter()
                .filter(|(_, stat)| family.contains(&stat.parent))
                .map(|(pid, _)| pid)
                .copied()
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    family.remove(&root);
    let running = |pid: &i32| everyone.iter().any(|(other, stat)| other == pid && stat.state != 'Z');
    family.into_iter().filter(running).collect()
}

/// Kills a process and all below it as if at one moment: none of them sees another one die.
pub(super) fn kill_family(root: i32) -> Result<()> {
    let family = [vec![root], descendants(root)].concat();
    for number in [Signal::STOP, Signal::KILL] {
        family.iter().try_for_each(|pid| signal(*pid, number))?;
    }
    Ok(())
}

/// The running children of a process.
pub(super) fn children(parent: i32) -> Vec<i32> {
    let mine = |(pid, stat): (i32, Stat)| (stat.parent == parent && stat.state != 'Z').then_some(pid);
    everyone().into_iter().filter_map(mine).collect()
}

/// Waits for the dead among our own children. Orphans of a server become ours, since the runner is a subreaper. Only to
/// be called when no [`std::process::Child`] is waited for.
pub(super) fn reap_orphans() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// What the process is called (`/proc/PID/cmdline`, its words apart by blanks); empty if it is gone.
pub(super) fn title(pid: i32) -> String {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.trim_end_matches('\0').replace('\0', " ")
}

pub(super) fn signal(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).ok_or_else(|| anyhow!("{pid} is no process id"))?;
    rustix::process::kill_process(pid, signal).with_context(|| format!("send {signal:?} to process {pid:?}"))
}

/// Makes a process stand still, as it does when this returns, until it gets SIGCONT.
pub(super) fn halt(pid: i32) -> Result<()> {
    signal(pid, Signal::STOP)?;
    let halted = || stat(pid).is_some_and(|stat| stat.state == 'T');
    until("a process to stand still", Duration::from_secs(5), || halted().then_some(()))
}

/// The names of a process's threads; the kernel's own io_uring helpers, which it lists among them, are left out.
pub(super) fn threads(pid: i32) -> Result<Vec<String>> {
    let dir = format!("/proc/{pid}/task");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {dir}"))? {
        let comm = entry?.path().join("comm");
        let name = fs::read_to_string(&comm).unwrap_or_default();
        if !name.starts_with("iou-") {
            names.push(name.trim().to_owned());
        }
    }
    Ok(names)
}

/// Whether a process with one thread is in a sleep that it asked for: the kernel names the function where it waits.
pub(super) fn sleeps(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|name| name.contains("nanosleep"))
}

/// What a process's descriptors stand for: paths of files, and what the kernel calls all else.
pub(super) fn files(pid: i32) -> Result<Vec<PathBuf>> {
    let dir = format!("/proc/{pid}/fd");
    let mut files = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {dir}"))? {
        // It may have been closed in the meantime.
        files.extend(fs::read_link(entry?.path()));
    }
    Ok(files)
}

/// Sets how many descriptors a process may have (`RLIMIT_NOFILE`); those that it has beyond stay. What it was.
pub(super) fn limit_files(pid: i32, count: Option<u64>) -> Result<Option<u64>> {
    limit(pid, Resource::Nofile, count)
}

/// Sets how large files may become by what a process writes, in bytes (`RLIMIT_FSIZE`). What it was.
pub(super) fn limit_file_size(pid: i32, bytes: Option<u64>) -> Result<Option<u64>> {
    limit(pid, Resource::Fsize, bytes)
}

fn limit(pid: i32, resource: Resource, current: Option<u64>) -> Result<Option<u64>> {
    let process = Pid::from_raw(pid).ok_or_else(|| anyhow!("{pid} is no process id"))?;
    // Only root may have a higher limit than before: this one comes back.
    let limit = Rlimit { current, maximum: getrlimit(resource).maximum };
    let before = rustix::process::prlimit(Some(process), resource, limit);
    Ok(before.with_context(|| format!("limit {resource:?} of process {pid} to {current:?}"))?.current)
}

/// The number of the next descriptor that a process gets.
pub(super) fn lowest_free(pid: i32) -> Result<u64> {
    let dir = format!("/proc/{pid}/fd");
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {dir}"))? {
        taken.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    (0..).find(|number| !taken.contains(number)).context("no number is free")
}

/// The mappings of a process that it shares with others, or could: rings, boards, queues of io_uring.
pub(super) fn shared_mappings(pid: i32) -> Result<usize> {
    let file = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let shared = |line: &&str| line.split_whitespace().nth(1).is_some_and(|rights| rights.ends_with('s'));
    Ok(text.lines().filter(shared).count())
}

/// How many mappings a process has that it shares and that are as large as this: a ring is mapped once with its counters, and
/// once more behind itself, as large as it is.
pub(super) fn views(pid: i32, bytes: u64) -> Result<usize> {
    let file = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let is_such = |line: &&str| {
        let (range, rest) = line.split_once(' ')?;
        let (begin, end) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        (rest.get(3..4)? == "s" && address(end)? - address(begin)? == bytes).then_some(())
    };
    Ok(text.lines().filter(|line| is_such(line).is_some()).count())
}

/// The inode numbers of the sockets a process holds.
pub(super) fn socket_inodes(pid: i32) -> Result<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for target in files(pid)? {
        let target = target.to_string_lossy();
        if let Some(inode) = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            inodes.insert(inode.parse()?);
        }
    }
    Ok(inodes)
}

/// One row of `/proc/net/tcp`: ports, connection state, bytes that the peer has not confirmed and that the owner has not
/// read yet.
#[derive(Debug, PartialEq)]
pub(super) struct TcpRow {
    pub(super) local_port: u16,
    pub(super) remote_port: u16,
    pub(super) established: bool,
    pub(super) unsent: u64,
    pub(super) unread: u64,
    pub(super) inode: u64,
}

fn parse_tcp_row(line: &str) -> Option<TcpRow> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = |field: &str| u16::from_str_radix(field.rsplit_once(':')?.1, 16).ok();
    let (unsent, unread) = fields.get(4)?.split_once(':')?;
    Some(TcpRow {
        local_port: port(fields.get(1)?)?,
        remote_port: port(fields.get(2)?)?,
        established: *fields.get(3)? == "01",
        unsent: u64::from_str_radix(unsent, 16).ok()?,
        unread: u64::from_str_radix(unread, 16).ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// All TCP sockets of this network namespace.
pub(super) fn tcp_rows() -> Vec<TcpRow> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let table = read("/proc/net/tcp") + &read("/proc/net/tcp6");
    table.lines().filter_map(parse_tcp_row).collect()
}

/// A line `Key:  123 kB` of `/proc/PID/status`, in bytes.
pub(super) fn memory(pid: i32, key: &str) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    status_value(&text, key).map(|kib| kib * 1024).ok_or_else(|| anyhow!("{file} has no line {key}"))
}

/// Bytes of a process's memory, what it shares with others divided by them; `None` if it is gone.
pub(super) fn proportional(pid: i32) -> Option<u64> {
    status_value(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss").map(|kib| kib * 1024)
}

fn status_value(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How often the threads of these processes have gone to sleep, and how many ticks they have run. A thread that waits
/// cannot make a system call without waking first, so two equal readings mean that nothing happened in between.
pub(super) fn activity(pids: &[i32]) -> Result<Vec<(i32, u64, u64)>> {
    let mut readings = Vec::new();
    for &pid in pids {
        let dir = format!("/proc/{pid}/task");
        let mut switches = 0;
        for entry in fs::read_dir(&dir).with_context(|| format!("list {dir}"))? {
            let status = fs::read_to_string(entry?.path().join("status"))?;
            switches += status_value(&status, "voluntary_ctxt_switches")
                .context("no line voluntary_ctxt_switches")?;
        }
        readings.push((pid, switches, stat(pid).with_context(|| format!("process {pid} is gone"))?.ticks));
    }
    Ok(readings)
}

/// Asks `probe` again and again until it has an answer.
///
/// # Errors
/// After `within`, an error that says what was waited for.
pub(super) fn until<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = probe() {
            return Ok(answer);
        }
        anyhow::ensure!(Instant::now() < deadline, "waited {within:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Waits until these processes do nothing for half a second: doing nothing has no event to wait for, it takes time.
///
/// # Errors
/// They are still active after ten seconds.
pub(super) fn until_calm(what: &str, pids: &[i32]) -> Result<()> {
    until(what, Duration::from_secs(10), || {
        let before = activity(pids).ok()?;
        std::thread::sleep(Duration::from_millis(500));
        (activity(pids).ok()? == before).then_some(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_hostile_name() {
        let line = "42 (a) b (c)) S 7 42 9 0 -1 0 0 0 0 0 5 6 0 0 20 0 3 0 100";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat, Stat { state: 'S', parent: 7, session: 9, ticks: 11, threads: 3 });
    }

    #[test]
    fn own_process_is_alive_and_has_threads() {
        let pid = own_pid();
        assert!(alive(pid));
        assert!(!threads(pid).unwrap().is_empty());
        assert!(memory(pid, "VmRSS").unwrap() > 4096);
    }

    #[test]
    fn a_row_of_the_tcp_table() {
        let line = "  2: 0100007F:251D 0100007F:E9C2 01 00000007:0000001A 00:00000000 00000000     0        0 12345 1 0";
        let row = parse_tcp_row(line).unwrap();
        let (local_port, remote_port) = (9501, 59842);
        let expected =
            TcpRow { local_port, remote_port, established: true, unsent: 7, unread: 26, inode: 12345 };
        assert_eq!(row, expected);
        assert_eq!(parse_tcp_row("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }

    #[test]
    fn until_gives_up_and_says_why() {
        let error = until::<()>("nothing", Duration::from_millis(10), || None).unwrap_err();
        assert!(error.to_string().contains("nothing"));
    }
}
