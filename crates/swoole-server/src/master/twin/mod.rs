//! A deterministic twin of a server: the real dealer, dispatcher, session table, links with their ends on both sides,
//! roster, leases, and the supervisor's policy, without event loops, processes and clocks. Who takes a step is up to a seed.
//!
//! A *schedule* is what one seed makes of it: some 150 random steps (a client connects, sends or leaves; a reactor
//! reads, hands over, takes replies, or does what the master says; a worker takes one micro-step; the manager hears
//! of something; the master looks at its children; its descriptors run out or come back; time passes; a worker or the manager dies, hangs, retires, is
//! reloaded), then a time without accidents until all is answered, then a stop, in which somebody may die again. Some are
//! stopped amid all that. Each step is held against what was promised ([`ledger`], [`tally::Kind`]).
//!
//! Handlers reply, tell clients of other reactors something, who may have left, and flush. Links are rings of two sizes,
//! and sockets, which never block here: who would wait takes its next turn instead.
//!
//! What is not real: the desk and its sockets ([`front`] has the least that does the same), the worker's loop ([`process`]
//! takes its steps one by one), the manager's and the supervisor's shell around policy and staff ([`manager`]), the master's
//! loop and its stages ([`office`]), fork, wait and signals ([`kernel`]). A dead process lets go of its sides of the rings by
//! itself here, because a claim is a process's and all are this one; that it is settled before anybody else comes is checked
//! instead. The master itself does not die: nothing is left to promise then.
//!
//! | file | what |
//! |---|---|
//! | `mod` | schedules, one after another |
//! | `schedule` | one of them: who takes the next step |
//! | `world` | everybody together, and time |
//! | `office` | the master |
//! | `manager` | a manager |
//! | `kernel` | processes, whose children they are, and who is told of their end |
//! | `front` | a reactor |
//! | `process` | a worker |
//! | `ledger` | what clients have sent, and what has become of it |
//! | `stage` | the shared memory, which schedules use one after another |
//! | `tally` | what is counted |
//!
//! `cargo xtask twin` runs it optimised; `cargo test` a small part of it.

mod front;
mod kernel;
mod ledger;
mod manager;
mod office;
mod process;
mod schedule;
mod stage;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use stage::Stages;
use tally::{Breach, Kind, Tally};

/// Steps of a failed schedule that are shown.
const SHOWN: usize = 60;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Plays what this seed says; `trace` hears of each step.
fn play(
    stages: &mut Stages,
    seed: u64,
    tally: &mut Tally,
    trace: Option<&mut Vec<String>>,
) -> Result<(), Breach> {
    let played = catch_unwind(AssertUnwindSafe(|| schedule::play(stages, seed, tally, trace)));
    played.unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|what| (*what).to_owned()));
        Err(Breach { kind: Kind::Panic, what: what.unwrap_or_default() })
    })
}

/// What there is to know about a schedule that failed among others.
fn explain(seed: u64, first: u64, breach: &Breach) -> String {
    let mut steps = Vec::new();
    let again = play(&mut Stages::default(), seed, &mut Tally::default(), Some(&mut steps));
    let shown = steps[steps.len().saturating_sub(SHOWN)..].join("\n");
    let repeat = match again {
        Err(again) => format!("by itself:\n  cargo xtask twin --seed {seed}\n{again}"),
        Ok(()) => {
            let count = seed.wrapping_sub(first) + 1;
            format!("only after others:\n  cargo xtask twin --schedules {count} --seed {first}")
        }
    };
    format!("{breach}\nits last steps:\n{shown}\nseed {seed} fails {repeat}")
}

#[test]
fn every_schedule_keeps_every_promise() {
    let schedules = variable("SWOOLE_TWIN_SCHEDULES").unwrap_or(1_000);
    let first = variable("SWOOLE_TWIN_SEED").unwrap_or(1);
    let (mut stages, mut tally) = (Stages::default(), Tally::default());
    for seed in (0..schedules).map(|number| first.wrapping_add(number)) {
        if let Err(breach) = play(&mut stages, seed, &mut tally, None) {
            *tally.breaches.entry(breach.kind).or_default() += 1;
            panic!("{tally}\n{}", explain(seed, first, &breach));
        }
    }
    println!("{tally}");
}
