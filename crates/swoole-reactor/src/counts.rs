//! The timers as a server uses them, for `cargo xtask counts` to count their instructions.
//!
//! Compiled with the feature `internals` only: what is counted here is nobody's interface.

use std::hint::black_box;

use crate::timer::Timers;

/// A name, and a function that prepares the operation and does it so many times.
pub type Benchmark = (&'static str, fn(usize));

/// What there is to count.
pub const BENCHMARKS: &[Benchmark] =
    &[("timer/start-cancel-10000", start_and_cancel), ("timer/start-expire-10000", start_and_expire)];

/// Timers that run at any time.
const LIVE: u64 = 10_000;

/// A connection's idle timer, which its next packet puts off.
fn start_and_cancel(times: usize) {
    let mut timers = Timers::default();
    let mut ids: Vec<_> = (0..LIVE).map(|deadline| timers.start(deadline)).collect();
    let mut connection = 0;
    for now in (0..).take(times) {
        // Far from the one before, and each once before any comes again.
        connection = (connection + 6_007) % ids.len();
        assert!(black_box(&mut timers).cancel(ids[connection]));
        ids[connection] = timers.start(black_box(LIVE + now));
    }
}

/// Periodic work, which starts its timer again whenever it is due.
fn start_and_expire(times: usize) {
    let mut timers = Timers::default();
    for deadline in 0..LIVE {
        timers.start(deadline);
    }
    for now in (0..).take(times) {
        assert!(black_box(&mut timers).expire(black_box(now)).is_some());
        timers.start(now + LIVE);
    }
}
