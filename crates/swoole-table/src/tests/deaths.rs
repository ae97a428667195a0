//! A process that dies before any of its stores, whatever it is at, and what others find then.
//!
//! The process is this program, executed anew for the one test [`child`], which gets the table's memory by its descriptor.

use std::os::fd::AsRawFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::{env, fs};

use swoole_ipc::Memory;

use super::*;
use crate::step;

const ROWS: usize = 14;
/// Four buckets of six entries have a chain among them, if one gets more: these are many enough for that.
const KEYS: usize = 12;

/// What dies.
const OPS: [&str; 9] = [
    "insert",
    "set",
    "incr",
    "incr-new",
    "update",
    "upsert-new",
    "remove-in-chain",
    "remove-before-chain",
    "remove",
];

fn key(index: usize) -> String {
    format!("key {index}")
}

/// As many words of it are unlike those of each row that was there, so that it takes the same steps in place of any.
fn other(uid: u64) -> Online {
    Online { name: "another name".parse().unwrap(), ..online(uid) }
}

/// A table that has a chain, and three keys in it: one in the chain, one before it, one in a bucket without a chain.
fn prepared() -> (Memory, Table<Online>, [String; 3]) {
    loop {
        let memory = Memory::create("deaths", options(ROWS).memory_size::<Online>()).unwrap();
        let table = Table::open(&options(ROWS), &memory, 0).unwrap();
        for index in 0..KEYS {
            table.set(key(index), &online(index as u64)).unwrap();
        }
        // The seed decides which keys meet.
        let keys = places(&table);
        if let Some(keys) = keys {
            return (memory, table, keys);
        }
    }
}

fn places(table: &Table<Online>) -> Option<[String; 3]> {
    let (mut chained, mut before, mut alone) = (None, None, None);
    for key in (0..KEYS).map(key) {
        let (in_chain, has_chain) = table.place(&key);
        let place = match (in_chain, has_chain) {
            (true, _) => &mut chained,
            (_, true) => &mut before,
            _ => &mut alone,
        };
        *place = Some(key);
    }
    Some([chained?, before?, alone?])
}

fn operate(table: &Table<Online>, op: &str, [chained, before, alone]: &[String; 3]) {
    match op {
        "insert" => assert!(table.insert("new", &other(77)).unwrap()),
        "set" => table.set(before, &other(78)).unwrap(),
        "incr" => drop(table.incr(alone, Online::UID, 1000).unwrap()),
        "incr-new" => drop(table.incr("new", Online::UID, 1000).unwrap()),
        "update" => table.update(chained, |row| *row = other(79)).unwrap().unwrap(),
        "upsert-new" => table.upsert("new", other(80), |row| row.seen += 1).unwrap(),
        "remove-in-chain" => assert!(table.del(chained).unwrap()),
        "remove-before-chain" => assert!(table.del(before).unwrap()),
        "remove" => assert!(table.del(alone).unwrap()),
        "recover" => assert!(table.recover() <= 1),
        other => panic!("{other}?"),
    }
}

/// The life of the process that dies.
#[test]
#[ignore = "run by the other tests here, in a process of its own"]
fn child() {
    let Ok(plan) = env::var("SWOOLE_TABLE_DEATH") else { return };
    let [path, op, step, keys @ ..] = &plan.split('|').map(str::to_owned).collect::<Vec<_>>()[..] else {
        panic!("{plan}?");
    };
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let memory = Memory::from_fd("deaths", file.into()).unwrap();
    let table = Table::open(&options(ROWS), &memory, 0).unwrap();
    let keys = keys.to_vec().try_into().unwrap();
    step::armed::arm(step.parse().unwrap());
    operate(&table, op, &keys);
}

/// Whether it died at this step; it ends well if there are not so many.
fn dies(memory: &Memory, op: &str, step: usize, keys: &[String; 3]) -> bool {
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsFd::as_fd(memory).as_raw_fd());
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "tests::deaths::child", "--ignored", "--quiet"]);
    command.env("SWOOLE_TABLE_DEATH", format!("{path}|{op}|{step}|{}", keys.join("|")));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let status = output.status;
    match status.signal() {
        Some(9) => true,
        _ if status.success() => false,
        _ => panic!("{op}, step {step}: {status}\n{}", String::from_utf8_lossy(&output.stdout)),
    }
}

/// What the table holds before and after the operation.
fn expected(op: &str, table: &Table<Online>, keys: &[String; 3]) -> [Vec<(Vec<u8>, Online)>; 2] {
    let before = content(table);
    let other: Table<Online> = Table::with(&options(ROWS)).unwrap();
    for (key, row) in &before {
        other.set(key, row).unwrap();
    }
    operate(&other, op, keys);
    [before, content(&other)]
}

/// Whatever stands there, it is all of the one or all of the other, and stays that; true if it is the new one.
fn judge(table: &Table<Online>, [old, new]: &[Vec<(Vec<u8>, Online)>; 2], context: &str) -> bool {
    let found = content(table);
    let is_new = found == *new;
    assert!(is_new || found == *old, "{context}: neither before nor after:\n{found:?}");
    for (key, row) in if is_new { new } else { old } {
        assert_eq!(table.get(key).unwrap().as_ref(), Some(row), "{context}");
    }
    is_new
}

fn each_step(op: &str) {
    let mut has_happened = false;
    for step in 1.. {
        let (memory, table, keys) = prepared();
        let expected = expected(op, &table, &keys);
        let died = dies(&memory, op, step, &keys);
        let context = format!("{op}, died at step {step}");
        // Some look at once, others write first; some are told to repair.
        match step % 3 {
            0 => drop(table.update(&keys[step / 3 % 3], |_| ())),
            1 => drop(table.recover()),
            _ => {}
        }
        let is_new = judge(&table, &expected, &context);
        assert!(is_new || !has_happened, "{context}: it had happened at an earlier step");
        assert!(is_new || died, "{context}: it has not happened at all");
        has_happened = is_new;
        table.recover();
        assert_eq!(table.recover(), 0, "{context}: nothing is left to repair");
        assert_eq!(judge(&table, &expected, &context), is_new, "{context}: another outcome after the repair");
        check_capacity(&table);
        for key in &keys {
            table.set(key, &online(1)).unwrap();
            assert_eq!(table.get(key).unwrap(), Some(online(1)));
        }
        if !died {
            assert!(step > 3, "{op}: {step} steps are no operation");
            return;
        }
    }
}

#[test]
fn a_death_at_any_step_leaves_the_row_before_or_after() {
    OPS.into_iter().for_each(each_step);
}

/// Whoever repairs may die as well.
#[test]
fn a_death_at_any_step_of_a_repair_is_repaired() {
    for op in ["insert", "set", "remove-before-chain"] {
        // Every third: the deaths of an operation are all in the other test.
        for step in (4..).step_by(3) {
            let mut died = false;
            for repair_step in 1.. {
                let (memory, table, keys) = prepared();
                let expected = expected(op, &table, &keys);
                died = dies(&memory, op, step, &keys);
                let repair_died = died && dies(&memory, "recover", repair_step, &keys);
                let context = format!("{op}, died at step {step}, the repair at step {repair_step}");
                let is_new = judge(&table, &expected, &context);
                table.recover();
                assert_eq!(judge(&table, &expected, &context), is_new, "{context}: another outcome");
                check_capacity(&table);
                if !repair_died {
                    break;
                }
            }
            if !died {
                break;
            }
        }
    }
}
