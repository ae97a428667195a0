//! Timers on the reactor; the heap has tests of its own.

use std::time::{Duration, Instant};

use swoole_reactor::{Backend, Event};

use crate::{Bed, Seen};

on_each_backend!(
    timers_fire_in_order_and_never_early,
    a_cancelled_timer_does_not_fire,
    a_timer_of_no_time_fires_once_a_turn,
    a_timer_does_not_keep_a_short_turn_waiting,
);

fn timers_fire_in_order_and_never_early(backend: Backend) {
    let mut bed = Bed::new(backend);
    let mut random = fastrand::Rng::with_seed(5);
    let mut timers = Vec::new();
    for _ in 0..50 {
        let after = Duration::from_micros(random.u64(0..60_000));
        let due = Instant::now() + after;
        timers.push((bed.reactor.timer(after), due));
    }
    let mut fired = Vec::new();
    bed.repeat("all timers", |bed| {
        bed.reactor
            .turn(None, |_, event| match event {
                Event::Timer { id } => fired.push((id, Instant::now())),
                event => panic!("unexpected {event:?}"),
            })
            .unwrap();
        fired.len() == timers.len()
    });
    timers.sort_by_key(|&(_, due)| due);
    for ((id, due), (fired, at)) in timers.into_iter().zip(fired) {
        assert_eq!(fired, id);
        // `due` was taken before the timer was started.
        assert!(at >= due, "{:?} early", due - at);
    }
}

fn a_cancelled_timer_does_not_fire(backend: Backend) {
    let mut bed = Bed::new(backend);
    let early = bed.reactor.timer(Duration::from_millis(1));
    let late = bed.reactor.timer(Duration::from_millis(3));
    assert!(bed.reactor.cancel(early));
    assert!(!bed.reactor.cancel(early));
    bed.until_seen("the other timer", |seen| matches!(seen, Seen::Timer(id) if *id == late));
    assert_eq!(bed.seen.len(), 1, "{:?}", bed.seen);
    assert!(!bed.reactor.cancel(late));

    // Also when it was due in the same turn.
    let [first, second] = [(); 2].map(|()| bed.reactor.timer(Duration::ZERO));
    let mut fired = Vec::new();
    bed.reactor
        .turn(None, |reactor, event| {
            if let Event::Timer { id } = event {
                fired.push(id);
                reactor.cancel(second);
            }
        })
        .unwrap();
    bed.fence();
    assert_eq!(fired, [first]);
}

fn a_timer_of_no_time_fires_once_a_turn(backend: Backend) {
    let mut bed = Bed::new(backend);
    bed.reactor.timer(Duration::ZERO);
    for _ in 0..10 {
        let mut fired = 0;
        bed.reactor
            .turn(None, |reactor, event| {
                if let Event::Timer { .. } = event {
                    fired += 1;
                    reactor.timer(Duration::ZERO);
                }
            })
            .unwrap();
        assert_eq!(fired, 1);
    }
}

fn a_timer_does_not_keep_a_short_turn_waiting(backend: Backend) {
    let mut bed = Bed::new(backend);
    bed.reactor.timer(Duration::from_secs(3600));
    let start = Instant::now();
    let events = bed.reactor.turn(Some(Duration::from_millis(5)), |_, event| panic!("{event:?}")).unwrap();
    assert_eq!(events, 0);
    assert!(start.elapsed() >= Duration::from_millis(5), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(60));
}
