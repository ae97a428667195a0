//! Does one operation of a hot path over and over, for callgrind to count its instructions: `cargo xtask counts`, which
//! starts this and judges the counts.
//!
//! `swoole-counts --list` names the operations. `swoole-counts NAME` prepares one and does it n times, then prepares it
//! anew and does it 2n times, and prints n: what the second time takes more is n operations and nothing else.
//!
//! A new operation is a line in the `BENCHMARKS` of its crate (of a module here, if what it needs is public), and a
//! `cargo xtask counts --bless`.

use std::hint::black_box;
use std::process::ExitCode;

mod framers;
mod ring;
mod table;

/// A name, and a function that prepares the operation and does it so many times.
type Benchmark = (&'static str, fn(usize));

const BENCHMARKS: [&[Benchmark]; 5] = [
    ring::BENCHMARKS,
    table::BENCHMARKS,
    framers::BENCHMARKS,
    swoole_server::counts::BENCHMARKS,
    swoole_reactor::counts::BENCHMARKS,
];

/// n: a multiple of every batch size.
const OPERATIONS: usize = 4096;

/// Callgrind writes down what it has counted, and begins anew, whenever this is called.
#[inline(never)]
fn boundary() {
    // Something that the optimiser may not leave out.
    black_box(());
}

fn measure(run: fn(usize)) {
    // What happens once in a process is not counted: memchr's look at the processor, the heap's growth.
    run(OPERATIONS);
    boundary();
    run(OPERATIONS);
    boundary();
    run(2 * OPERATIONS);
    boundary();
}

fn main() -> ExitCode {
    let mut all = BENCHMARKS.into_iter().flatten();
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "--list" {
        all.for_each(|(name, _)| println!("{name}"));
    } else if let Some((_, run)) = all.find(|(name, _)| *name == argument) {
        measure(*run);
        println!("{OPERATIONS}");
    } else {
        eprintln!("no operation is named {argument:?}; --list names them");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
