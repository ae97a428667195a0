//! The table and the locks between processes, some of which are killed.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

#[path = "../../swoole-sys/tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use swoole_sys::process::{Fork, fork, run_child};
use swoole_table::{Atomic32, Bytes, Error, Mutex, Options, Row, RwLock, Table};

tests![
    increments_of_many_processes_add_up,
    nobody_sees_half_a_row,
    random_kills_cost_nothing,
    who_has_ended_need_not_be_reaped,
    a_mutex_outlives_its_holder,
    a_holder_that_is_stopped_is_waited_for,
    a_guard_is_not_inherited,
    an_update_is_not_inherited,
    a_readers_writer_lock_outlives_both,
    a_wake_reaches_other_processes,
];

/// All columns follow from the first.
#[derive(Row, Clone, Debug, PartialEq)]
struct Wide {
    number: u64,
    text: Bytes<40>,
    half: f64,
    negative: i64,
    more: Bytes<100>,
}

fn wide(number: u64) -> Wide {
    let digits = format!("{number:020}");
    Wide {
        number,
        text: Bytes::new(digits.repeat(2)).unwrap(),
        half: number as f64 / 2.0,
        negative: -(number as i64),
        more: Bytes::new(digits.repeat((number % 6) as usize)).unwrap(),
    }
}

fn is_whole(row: &Wide) -> bool {
    *row == wide(row.number)
}

/// A child, which lives as `life` says; what it panics of is its exit code 101.
fn spawn(life: impl FnOnce()) -> Pid {
    match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => run_child(|| {
            life();
            0
        }),
    }
}

fn join(pid: Pid) {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0), "a child has found something wrong");
}

/// Kills it, and reaps it.
fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
    waitpid(Some(pid), WaitOptions::empty()).unwrap();
}

/// `SWOOLE_TABLE_SECONDS`, or one.
fn seconds() -> Duration {
    let given = std::env::var("SWOOLE_TABLE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(given.unwrap_or(1.0))
}

fn increments_of_many_processes_add_up() {
    let table: Table<Wide> = Table::create(100).unwrap();
    let counters: Vec<Pid> = (0..4)
        .map(|_| {
            spawn(|| {
                for round in 0..20_000_u32 {
                    table.incr((round % 8).to_le_bytes(), Wide::NUMBER, 1).unwrap();
                    table.decr((round % 8).to_le_bytes(), Wide::NEGATIVE, 2).unwrap();
                }
            })
        })
        .collect();
    counters.into_iter().for_each(join);
    for key in 0..8_u32 {
        let row = table.get(key.to_le_bytes()).unwrap().unwrap();
        assert_eq!((row.number, row.negative), (10_000, -20_000));
    }
    assert_eq!(table.len(), 8);
}

/// One operation of a writer, on few rows, so that all of them meet.
fn write_something(table: &Table<Wide>, random: &mut Rng) {
    let key = random.u8(0..8).to_string();
    let row = wide(random.u64(..1 << 40));
    match random.u8(0..8) {
        0 => drop(table.del(&key).unwrap()),
        1 => drop(table.insert(&key, &row).unwrap()),
        2 => {
            if let Some(row) = table.remove(&key).unwrap() {
                assert!(is_whole(&row), "half a row was removed: {row:?}");
            }
        }
        3 => drop(
            table
                .update(&key, |old| {
                    assert!(is_whole(old), "half a row is to be updated: {old:?}");
                    *old = wide(old.number + 1);
                })
                .unwrap(),
        ),
        4 => table.upsert(&key, row, |old| *old = wide(old.number + 1)).unwrap(),
        _ => table.set(&key, &row).unwrap(),
    }
}

fn nobody_sees_half_a_row() {
    let table: Table<Wide> = Table::with(&Options::new(16).key_max(8)).unwrap();
    let end = Instant::now() + seconds();
    let writers: Vec<Pid> = (0..4)
        .map(|seed| {
            spawn(|| {
                let mut random = Rng::with_seed(seed);
                while Instant::now() < end {
                    (0..100).for_each(|_| write_something(&table, &mut random));
                }
            })
        })
        .collect();
    let (mut reads, mut found) = (0_u64, 0_u64);
    while Instant::now() < end {
        for key in 0..8_u8 {
            if let Some(row) = table.get(key.to_string()).unwrap() {
                assert!(is_whole(&row), "half a row: {row:?}");
                found += 1;
            }
            reads += 1;
        }
        for row in &table {
            let (key, row) = row.unwrap();
            assert!(key.len() == 1 && is_whole(&row), "half a row: {row:?}");
        }
    }
    writers.into_iter().for_each(join);
    println!("{found} of {reads} reads found a row, and each a whole one");
    assert!(found > 100, "of {reads} reads {found} found a row");
}

/// The table must still be able to take exactly as many rows as it is made for.
fn check(table: &Table<Wide>) {
    let rows: Vec<_> = table.iter().map(Result::unwrap).collect();
    assert_eq!(rows.len(), table.len());
    assert!(rows.iter().all(|(_, row)| is_whole(row)));
    for (key, _) in &rows {
        assert!(table.del(key).unwrap());
    }
    for key in 0..table.capacity() {
        assert!(table.insert(format!("new {key}"), &wide(1)).unwrap());
    }
    assert!(matches!(table.insert("beyond", &wide(1)), Err(Error::Full { .. })));
}

fn random_kills_cost_nothing() {
    let table: Table<Wide> = Table::with(&Options::new(12).key_max(8)).unwrap();
    let life = |seed: u64| {
        let mut random = Rng::with_seed(seed);
        loop {
            write_something(&table, &mut random);
        }
    };
    let mut random = Rng::with_seed(1);
    let mut writers: Vec<Pid> = (0..3).map(|seed| spawn(|| life(seed))).collect();
    let (mut kills, end) = (0, Instant::now() + seconds());
    while Instant::now() < end {
        let index = random.usize(..writers.len());
        std::thread::sleep(Duration::from_micros(random.u64(..2000)));
        kill(writers[index]);
        kills += 1;
        for key in 0..8_u8 {
            let row = table.get(key.to_string()).unwrap();
            assert!(row.is_none_or(|row| is_whole(&row)));
        }
        writers[index] = spawn(|| life(3 + kills));
    }
    writers.into_iter().for_each(kill);
    println!("{kills} kills");
    check(&table);
}

fn who_has_ended_need_not_be_reaped() {
    let mutex = Mutex::create("mutex").unwrap();
    let pid = holder(|| mutex.lock());
    kill_process(pid, Signal::KILL).unwrap();
    assert!(mutex.lock().owner_died());
    assert!(!mutex.lock().owner_died());
    waitpid(Some(pid), WaitOptions::empty()).unwrap();
}

/// A child that takes something, says so, and waits to be killed.
fn holder<G>(take: impl FnOnce() -> G) -> Pid {
    let holds = Atomic32::create("holds", 0).unwrap();
    let pid = spawn(|| {
        let _guard = take();
        holds.store(1);
        holds.wake(1);
        holds.wait(1, None);
    });
    assert!(holds.wait(0, Some(Duration::from_secs(20))), "the child holds nothing");
    pid
}

fn a_mutex_outlives_its_holder() {
    let mutex = Mutex::create("mutex").unwrap();
    let pid = holder(|| mutex.lock());
    assert!(mutex.try_lock().is_none());
    let timeout = mutex.lock_for(Duration::from_millis(40)).unwrap_err();
    assert_eq!(timeout.pid, pid.as_raw_pid(), "it lives");
    kill(pid);
    assert!(mutex.try_lock().unwrap().owner_died());
    assert!(!mutex.lock().owner_died(), "it was told once");

    let pid = holder(|| mutex.lock());
    let waiter = spawn(|| assert!(mutex.lock().owner_died()));
    std::thread::sleep(Duration::from_millis(5));
    let began = Instant::now();
    kill(pid);
    join(waiter);
    assert!(began.elapsed() < Duration::from_secs(5), "the waiter has looked");
}

fn a_holder_that_is_stopped_is_waited_for() {
    let mutex = Mutex::create("mutex").unwrap();
    let pid = holder(|| mutex.lock());
    kill_process(pid, Signal::STOP).unwrap();
    assert_eq!(mutex.lock_for(Duration::from_millis(60)).unwrap_err().pid, pid.as_raw_pid());
    kill(pid);
    assert!(mutex.lock().owner_died());
}

fn a_guard_is_not_inherited() {
    let mutex = Mutex::create("mutex").unwrap();
    let mut guard = Some(mutex.lock());
    join(spawn(|| {
        drop(guard.take());
        assert!(mutex.try_lock().is_none(), "it is the parent's");
    }));
    assert!(mutex.try_lock().is_none());
    drop(guard);
    assert!(!mutex.try_lock().unwrap().owner_died());
}

fn an_update_is_not_inherited() {
    let table: Table<Wide> = Table::create(10).unwrap();
    table.set("a", &wide(1)).unwrap();
    let mut child = None;
    let updated = table.update("a", |row| {
        *row = wide(2);
        match fork().unwrap() {
            Fork::Child => *row = wide(3),
            Fork::Parent(pid) => child = Some(pid),
        }
    });
    let Some(child) = child else { run_child(|| i32::from(updated.unwrap().is_some())) };
    join(child);
    assert_eq!((updated.unwrap(), table.get("a").unwrap()), (Some(()), Some(wide(2))));
    table.set("a", &wide(4)).unwrap();
}

fn a_readers_writer_lock_outlives_both() {
    let lock = RwLock::create("lock", 3).unwrap();
    let readers = [holder(|| lock.read()), holder(|| lock.read())];
    assert!(lock.write_for(Duration::from_millis(20)).is_err());
    drop(lock.read());
    kill(readers[0]);
    assert!(lock.write_for(Duration::from_millis(20)).is_err(), "the other one reads");
    kill(readers[1]);
    assert!(!lock.write().owner_died(), "a reader has changed nothing");

    let writer = holder(|| lock.write());
    assert!(lock.try_read().is_none());
    kill(writer);
    assert!(lock.try_read().unwrap().owner_died());
    assert!(!lock.read().owner_died(), "it was told once");

    kill(holder(|| lock.write()));
    assert!(lock.read().owner_died());
    kill(holder(|| lock.write()));
    assert!(lock.write().owner_died());

    let dead = [0; 3].map(|_| holder(|| lock.read()));
    dead.into_iter().for_each(kill);
    drop(lock.try_read().expect("the dead hold no places"));
    drop(lock.read());
}

fn a_wake_reaches_other_processes() {
    let (number, ready) = (Atomic32::create("number", 0).unwrap(), Atomic32::create("ready", 0).unwrap());
    let waiters: Vec<Pid> = (0..3)
        .map(|_| {
            spawn(|| {
                ready.fetch_add(1);
                ready.wake(1);
                assert!(number.wait(0, Some(Duration::from_secs(20))));
                assert_eq!(number.load(), 1);
            })
        })
        .collect();
    while ready.load() < 3 {
        ready.wait(ready.load(), Some(Duration::from_millis(10)));
    }
    number.store(1);
    number.wake(u32::MAX);
    waiters.into_iter().for_each(join);
}
