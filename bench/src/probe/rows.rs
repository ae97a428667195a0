//! A million rows that several processes share: `swoole-table`, against what one would take otherwise: a map under a mutex,
//! which only the threads of one process can share, and Redis, which answers over a socket.
//!
//! Keys are of 16 bytes, chosen at random for each operation; rows are a number and a string.

use super::pair::Child;
use super::redis;
use crate::account::{Snapshot, memory_kib};
use crate::sample::{OPERATION_CPU, OPERATIONS, ROW_MEMORY, Sample};
use anyhow::{Context, Result, ensure};
use rustix::process::getpid;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::hint::black_box;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use swoole_ipc::words::Words;
use swoole_table::{Bytes, Row, Table};

/// How many there are.
pub const ROWS: usize = 1_000_000;
/// Operations between two looks at the clock; what Redis is asked at once.
const BATCH: usize = 64;
const WARM_UP: Duration = Duration::from_millis(200);

/// What holds the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `swoole_table::Table`.
    Table,
    /// `std::sync::Mutex<HashMap>`.
    Map,
    /// Redis on a unix socket, pipelined.
    Redis,
}

/// What is done with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A whole row is read.
    Get,
    /// One is added to a number.
    Incr,
    /// A whole row is written.
    Set,
}

/// All subjects, with their names.
pub const SUBJECTS: &[(&str, Subject)] =
    &[("table", Subject::Table), ("mutex-hashmap", Subject::Map), ("redis", Subject::Redis)];

/// All operations, with their names.
pub const ACTS: &[(&str, Operation)] =
    &[("get", Operation::Get), ("incr", Operation::Incr), ("set", Operation::Set)];

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Subject, String> {
        let found = SUBJECTS.iter().find(|(name, _)| *name == text);
        found.map(|(_, subject)| *subject).ok_or_else(|| format!("{text:?} is unknown"))
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Operation, String> {
        let found = ACTS.iter().find(|(name, _)| *name == text);
        found.map(|(_, operation)| *operation).ok_or_else(|| format!("{text:?} is unknown"))
    }
}

#[derive(Row, Clone, Copy)]
struct Online {
    uid: u64,
    name: Bytes<32>,
}

impl Online {
    fn new(uid: u64) -> Online {
        Online { uid, name: Bytes::new([b'n'; 24]).unwrap_or_default() }
    }
}

pub(super) type Key = [u8; 16];

/// A word, and a row's number in eight letters. Made of two halves that are read as they were written: put together byte by
/// byte, a key would have to leave the store buffer before it can be hashed, and that would be measured instead.
pub(super) fn key(row: usize) -> Key {
    let mut letters = row as u64;
    for (shift, mask) in [(16, 0x0000_FFFF_0000_FFFF), (8, 0x00FF_00FF_00FF_00FF), (4, 0x0F0F_0F0F_0F0F_0F0F)]
    {
        letters = (letters | letters << shift) & mask;
    }
    letters += u64::from_ne_bytes([b'a'; 8]);
    (u128::from(u64::from_le_bytes(*b"user no ")) | u128::from(letters) << 64).to_le_bytes()
}

/// Measures what `workers` processes (threads, for the map) do at a time.
///
/// # Errors
/// Redis is not there, or something has answered wrongly.
pub fn measure(subject: Subject, operation: Operation, workers: usize, seconds: f64) -> Result<Sample> {
    let time = Duration::from_secs_f64(seconds);
    match subject {
        Subject::Table => table(operation, workers, time),
        Subject::Map => map(operation, workers, time),
        Subject::Redis => {
            let server = redis::Server::start()?;
            let before = memory_kib(&[server.pid()])?;
            server.connect()?.fill(ROWS)?;
            let memory = memory_kib(&[server.pid()])? - before;
            let work = |seed, count: &mut dyn FnMut()| {
                let (mut client, mut random) = (server.connect()?, fastrand::Rng::with_seed(seed));
                loop {
                    client.batch(operation, (0..BATCH).map(|_| key(random.usize(..ROWS))))?;
                    count();
                }
            };
            in_processes(workers, time, &[server.pid()], memory, work)
        }
    }
}

fn table(operation: Operation, workers: usize, time: Duration) -> Result<Sample> {
    let this = getpid().as_raw_pid().unsigned_abs();
    let before = memory_kib(&[this])?;
    let options = swoole_table::Options::new(ROWS).key_max(16).name("bench").huge_pages(true);
    let table: Table<Online> = Table::with(&options)?;
    for row in 0..ROWS {
        table.set(key(row), &Online::new(row as u64))?;
    }
    let memory = memory_kib(&[this])? - before;
    in_processes(workers, time, &[], memory, |seed, count| {
        let mut random = fastrand::Rng::with_seed(seed);
        loop {
            for _ in 0..BATCH {
                let row = random.usize(..ROWS);
                match operation {
                    Operation::Get => {
                        let found = table.get(key(row))?.context("a row is missing")?;
                        ensure!(found.uid == row as u64, "another row was found");
                        black_box(found);
                    }
                    Operation::Incr => drop(black_box(table.incr(key(row), Online::UID, 1)?)),
                    Operation::Set => table.set(key(row), &Online::new(random.u64(..)))?,
                }
            }
            count();
        }
    })
}

/// Runs `work` in so many children, until they are killed: it is given a seed, and a function that it calls after each
/// [`BATCH`].
fn in_processes(
    workers: usize,
    time: Duration,
    servers: &[u32],
    memory_kib: u64,
    work: impl Fn(u64, &mut dyn FnMut()) -> Result<()>,
) -> Result<Sample> {
    // A line for each.
    let counts = Words::create("counts", workers * 8)?;
    let children = (0..workers).map(|index| {
        Child::fork(|| {
            let count = &counts[index * 8];
            work(index as u64, &mut || {
                count.store(count.load(Ordering::Relaxed) + BATCH as u64, Ordering::Relaxed);
            })
        })
    });
    let children = children.collect::<Result<Vec<_>>>()?;
    let processes: Vec<u32> = children.iter().filter_map(Child::pid).chain(servers.iter().copied()).collect();
    let total = || -> u64 { (0..workers).map(|index| counts[index * 8].load(Ordering::Relaxed)).sum() };
    thread::sleep(WARM_UP);
    let (before, done_before, begin) = (Snapshot::take(&processes)?, total(), Instant::now());
    thread::sleep(time);
    let (done, took) = (total() - done_before, begin.elapsed());
    let cpu = Snapshot::take(&processes)?.since(&before).cpu;
    drop(children);
    sample(done, took, cpu, memory_kib)
}

fn sample(done: u64, took: Duration, cpu: Duration, memory_kib: u64) -> Result<Sample> {
    ensure!(done > 0, "nothing was done");
    Ok(vec![
        (&OPERATIONS, done as f64 / took.as_secs_f64()),
        (&OPERATION_CPU, cpu.as_secs_f64() * 1e9 / done as f64),
        (&ROW_MEMORY, memory_kib as f64 * 1024.0 / ROWS as f64),
    ])
}

fn map(operation: Operation, workers: usize, time: Duration) -> Result<Sample> {
    let this = getpid().as_raw_pid().unsigned_abs();
    let before = memory_kib(&[this])?;
    let map: Mutex<HashMap<Box<[u8]>, Online>> = Mutex::default();
    let lock = || map.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for row in 0..ROWS {
        lock().insert(Box::new(key(row)), Online::new(row as u64));
    }
    let memory = memory_kib(&[this])? - before;
    let work = |seed: u64, end: Instant| -> Result<u64> {
        let (mut random, mut done) = (fastrand::Rng::with_seed(seed), 0);
        while Instant::now() < end {
            for _ in 0..BATCH {
                let row = random.usize(..ROWS);
                let mut rows = lock();
                let found = rows.get_mut(&key(row)[..]).context("a row is missing")?;
                match operation {
                    Operation::Get => {
                        ensure!(found.uid == row as u64, "another row was found");
                        black_box(*found);
                    }
                    Operation::Incr => found.uid += 1,
                    Operation::Set => *found = Online::new(random.u64(..)),
                }
            }
            done += BATCH as u64;
        }
        Ok(done)
    };
    work(99, Instant::now() + WARM_UP)?;
    let (cpu_before, begin) = (cpu_time(), Instant::now());
    let done = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..workers).map(|seed| scope.spawn(move || work(seed as u64, begin + time))).collect();
        let done =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a panic")));
        done.sum::<Result<u64>>()
    })?;
    sample(done, begin.elapsed(), cpu_time() - cpu_before, memory)
}

/// Of all threads of this process, also of those that have ended.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}
