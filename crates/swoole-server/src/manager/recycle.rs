//! Workers that have served long enough, or have grown too large: `max_request`, `max_memory`.
//!
//! Neither is a reason to stop at once. Such a worker goes on serving, and the supervisor asks it to retire when its turn
//! comes, so that never more than `reload_parallel` are on their way out or in. A worker counts its packets by itself,
//! and says so on the board when they are enough; how large it is, the manager looks up.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use rustix::param::page_size;
use swoole_supervisor::Control;

use super::staff::{name, slot_of};
use super::timer::Timer;
use crate::error::{Error, Result};
use crate::shared::Shared;

/// How often the manager looks how large workers are.
const PERIOD: Duration = Duration::from_secs(1);
/// How long that may take in one go, while nobody is reaped or replaced. To find out what is private, the kernel looks at
/// every page, 25 ms for a gigabyte, and meanwhile the process gets no other memory; so that is asked only of those that
/// have enough pages in all, which costs some microseconds.
const GO: Duration = Duration::from_millis(10);

/// Finds out who is due.
pub(crate) struct Recycler {
    scale: Option<Scale>,
}

impl Recycler {
    pub(crate) fn new(shared: &Shared) -> Result<Recycler> {
        // What user processes keep in memory is what they are for.
        let (limit, seats) = (shared.config.max_memory as u64, shared.config.seat_of_user_process(0));
        let scale = if limit > 0 { Some(Scale::new(limit, seats)?) } else { None };
        Ok(Recycler { scale })
    }

    /// Has [`look`](Recycler::look) called when there is a reason.
    pub(crate) fn watch(&self, shared: &Shared, control: &mut Control) {
        control.watch(shared.manager_bell.as_fd().as_raw_fd());
        if let Some(scale) = &self.scale {
            control.watch(scale.timer.as_fd().as_raw_fd());
        }
    }

    /// Looks who is due, if this descriptor says that there is a reason.
    pub(crate) fn look(&mut self, fd: RawFd, shared: &Shared, control: &mut Control) -> bool {
        if fd == shared.manager_bell.as_fd().as_raw_fd() {
            // First, so that whoever says so from here on rings anew.
            shared.manager_bell.silence();
            look_at_board(shared, control);
            return true;
        }
        let Some(scale) = self.scale.as_mut().filter(|scale| scale.timer.is(fd)) else { return false };
        scale.timer.hear();
        scale.weigh(shared, control);
        true
    }
}

fn look_at_board(shared: &Shared, control: &mut Control) {
    for seat in 0..shared.config.seats() {
        // What a worker has written there can cost itself its place, and nobody else.
        let generation = shared.board.due(seat);
        if generation != 0 {
            control.recycle(slot_of(seat, &shared.config), generation);
        }
    }
}

/// Looks how large workers are, each in turn.
struct Scale {
    timer: Timer,
    limit: u64,
    /// Whose turn it is.
    next: u16,
    /// The generation that was last found too large, by seat.
    told: Vec<u32>,
}

impl Scale {
    fn new(limit: u64, seats: u16) -> Result<Scale> {
        // Where the kernel does not tell, that is to be known at the start.
        size_above("self", 0)
            .map_err(|error| Error::setup("look how large workers are (max_memory)", error))?;
        let timer = Timer::every(PERIOD).map_err(|error| {
            Error::setup("look how large workers are (timerfd)", std::io::Error::from(error))
        })?;
        Ok(Scale { timer, limit, next: 0, told: vec![0; seats.into()] })
    }

    fn weigh(&mut self, shared: &Shared, control: &mut Control) {
        let begun = Instant::now();
        for _ in 0..self.told.len() {
            let seat = self.next;
            self.next = (seat + 1) % self.told.len() as u16;
            let slot = slot_of(seat, &shared.config);
            let process = control.pids().iter().find(|(live, ..)| *live == slot);
            // The board knows nobody who is gone and not yet accounted for, and whose number may be anybody's.
            if let Some(&(_, generation, pid)) = process
                && self.told[usize::from(seat)] != generation
                && shared.board.worker_pid(seat) == pid.as_raw_pid()
            {
                self.told[usize::from(seat)] = if self.is_large(&name(slot, &shared.config), pid.as_raw_pid())
                {
                    control.recycle(slot, generation);
                    generation
                } else {
                    0
                };
            }
            if begun.elapsed() >= GO {
                return;
            }
        }
    }

    /// Whether this process is larger than it may be; then the log says so.
    fn is_large(&self, name: &str, pid: i32) -> bool {
        let size = size_above(&pid.to_string(), self.limit).unwrap_or_else(|error| {
            // It may have ended this very moment.
            tracing::debug!("{name} (pid {pid}): {error}");
            None
        });
        if let Some(size) = size {
            tracing::warn!(
                "{name} (pid {pid}) has {} of private memory, more than max_memory = {}: it is replaced when its turn comes",
                mebibytes(size),
                mebibytes(self.limit)
            );
        }
        size.is_some()
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Bytes that this process has for itself alone, if they are more than `limit`.
fn size_above(pid: &str, limit: u64) -> std::io::Result<Option<u64>> {
    let resident = read(pid, "statm", |text| text.split(' ').nth(1)?.parse::<u64>().ok())?;
    if resident.saturating_mul(page_size() as u64) <= limit {
        return Ok(None);
    }
    let private = read(pid, "smaps_rollup", sum_private)?;
    Ok(Some(private).filter(|private| *private > limit))
}

/// What a file says of a process.
fn read(pid: &str, name: &str, parse: impl Fn(&str) -> Option<u64>) -> std::io::Result<u64> {
    let path = format!("/proc/{pid}/{name}");
    let named = |error: std::io::Error| std::io::Error::new(error.kind(), format!("read {path}: {error}"));
    let text = fs::read_to_string(&path).map_err(named)?;
    parse(&text).ok_or_else(|| named(std::io::Error::other("it does not say how much memory there is")))
}

/// The sum of `Private_Clean` and `Private_Dirty`, in bytes (proc_pid_smaps(5)).
fn sum_private(text: &str) -> Option<u64> {
    let value = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    value("Private_Clean")?.checked_add(value("Private_Dirty")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_is_clean_and_dirty() {
        let text = "55d6a0c4f000-7ffd1d5f5000 ---p 00000000 00:00 0                          [rollup]\n\
                    Rss:                1772 kB\n\
                    Shared_Clean:       1580 kB\n\
                    Private_Clean:         8 kB\n\
                    Private_Dirty:       184 kB\n\
                    Private_Hugetlb:       0 kB\n";
        assert_eq!(sum_private(text), Some(192 << 10));
        assert_eq!(sum_private(&text.replace("Private_Dirty", "Private_Dusty")), None);
        assert_eq!(sum_private(&text.replace("184 kB", "184")), None);
        assert_eq!(sum_private(&text.replace("184", &u64::MAX.to_string())), None);
    }

    #[test]
    fn a_process_has_what_it_has_written() {
        const MUCH: u64 = 32 << 20;
        let before = size_above("self", 0).unwrap().unwrap();
        let bytes = std::hint::black_box(vec![1_u8; MUCH as usize]);
        let after = size_above("self", 0).unwrap().unwrap();
        // Other tests may give some back meanwhile.
        assert!(after > before + MUCH / 2, "{} is after {before}, {after}", bytes.len());
        assert!(size_above("self", MUCH / 2).unwrap().is_some());
        assert_eq!(size_above("self", 1 << 40).unwrap(), None);
        let error = size_above("0", 0).unwrap_err().to_string();
        assert!(error.starts_with("read /proc/0/statm: "), "{error}");
    }
}
