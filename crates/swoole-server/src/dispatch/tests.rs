use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::board::Board;
use crate::session::{Arrival, SessionTable};

const IDLE: Load = Load { busy: false, in_flight: 0 };

fn new(mode: DispatchMode, workers: u16, reactor: u8, reactors: u8) -> Dispatcher {
    let config = Config {
        dispatch_mode: mode,
        worker_num: workers,
        reactor_num: reactors,
        dispatch_key_offset: 2,
        dispatch_key_length: 4,
        ..Config::default()
    };
    Dispatcher::new(&config, reactor)
}

fn dispatcher(mode: DispatchMode, up: &[bool]) -> Dispatcher {
    let mut dispatcher = new(mode, up.len() as u16, 0, 1);
    up.iter().enumerate().for_each(|(worker, &up)| dispatcher.set_up(worker as u16, up));
    dispatcher
}

fn from(home: u16) -> Query<'static> {
    Query { home, uid: 0, packet: &[] }
}

fn any_mode() -> impl Strategy<Value = DispatchMode> {
    proptest::sample::select(vec![
        DispatchMode::Fixed,
        DispatchMode::RoundRobin,
        DispatchMode::Idle,
        DispatchMode::IpHash,
        DispatchMode::Uid,
        DispatchMode::LeastInFlight,
        DispatchMode::ConsistentHash,
        DispatchMode::Custom,
    ])
}

#[test]
fn fixed_stays_at_home() {
    let mut dispatcher = dispatcher(DispatchMode::Fixed, &[true; 4]);
    let homes: Vec<u16> = (0..8).map(|_| dispatcher.home(None, |_| IDLE)).collect();
    assert_eq!(homes, [0, 1, 2, 3, 0, 1, 2, 3]);
    assert!((0..8).all(|_| dispatcher.choose(from(2), |_| IDLE) == 2));
}

#[test]
fn reactors_share_the_workers_out() {
    let homes = |workers, reactor, reactors| {
        let mut dispatcher = new(DispatchMode::Fixed, workers, reactor, reactors);
        (0..workers).for_each(|worker| dispatcher.set_up(worker, true));
        (0..4).map(|_| dispatcher.home(None, |_| IDLE)).collect::<Vec<_>>()
    };
    assert_eq!((homes(4, 0, 2), homes(4, 1, 2)), (vec![0, 2, 0, 2], vec![1, 3, 1, 3]));
    assert_eq!((homes(3, 0, 2), homes(3, 1, 2)), (vec![0, 1, 2, 0], vec![1, 2, 0, 1]));
    assert_eq!((homes(1, 0, 3), homes(2, 2, 4)), (vec![0; 4], vec![0; 4]));
    assert_eq!(homes(2, 2, 3), [0, 1, 0, 1]);
}

#[test]
fn without_an_own_worker_another_one_serves() {
    let mut dispatcher = new(DispatchMode::Fixed, 4, 1, 2);
    [0, 2].into_iter().for_each(|worker| dispatcher.set_up(worker, true));
    assert!((0..4).all(|_| [0, 2].contains(&dispatcher.home(None, |_| IDLE))));
    dispatcher.set_up(3, true);
    assert!((0..4).all(|_| dispatcher.home(None, |_| IDLE) == 3));
}

#[test]
fn round_robin_takes_turns_among_those_that_serve() {
    let mut dispatcher = dispatcher(DispatchMode::RoundRobin, &[true, false, true]);
    let chosen: Vec<u16> = (0..6).map(|_| dispatcher.choose(from(1), |_| IDLE)).collect();
    assert_eq!(chosen, [0, 2, 2, 0, 2, 2]);
}

#[test]
fn idle_prefers_who_has_nothing_to_do() {
    let mut dispatcher = dispatcher(DispatchMode::Idle, &[true; 3]);
    let load = |worker| Load { busy: worker != 1, in_flight: usize::from(worker) };
    assert!((0..6).all(|_| dispatcher.choose(from(0), load) == 1 && dispatcher.home(None, load) == 1));
    let all_busy = |worker| Load { busy: true, in_flight: [3, 2, 1][usize::from(worker)] };
    assert!((0..6).all(|_| dispatcher.choose(from(0), all_busy) == 2));
}

#[test]
fn an_address_has_its_worker_and_while_that_is_gone_the_next_one() {
    let mut all = dispatcher(DispatchMode::IpHash, &[true; 4]);
    let mut some = dispatcher(DispatchMode::IpHash, &[true, true, false, true]);
    for number in 0..8 {
        let peer = Ipv4Addr::from_bits(0x0a00_0000 + number);
        let worker = (number % 4) as u16;
        assert_eq!(all.home(Some(peer.into()), |_| IDLE), worker, "as Swoole has it");
        let mapped = peer.to_ipv6_mapped();
        assert_eq!(all.home(Some(mapped.into()), |_| IDLE), worker, "the same client by a socket for both");
        assert_eq!(some.home(Some(peer.into()), |_| IDLE), if worker == 2 { 3 } else { worker });
    }
    let six = |number: u128| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) + number));
    let homes: Vec<u16> = (0..400).map(|number| all.home(Some(six(number)), |_| IDLE)).collect();
    assert!((0..4).all(|worker| homes.iter().filter(|home| **home == worker).count() > 50), "{homes:?}");
    let unix: Vec<u16> = (0..4).map(|_| all.home(None, |_| IDLE)).collect();
    assert_eq!(unix, [0, 1, 2, 3]);
}

#[test]
fn a_user_has_one_worker_whether_it_serves_or_not() {
    let mut dispatcher = dispatcher(DispatchMode::Uid, &[true, false, true]);
    let mut of = |uid| dispatcher.choose(Query { uid, ..from(2) }, |_| IDLE);
    assert_eq!([0, 1, 2, 3, u64::MAX].map(&mut of), [2, 1, 2, 0, 0]);
}

#[test]
fn of_two_the_one_with_less_to_do() {
    let mut two = dispatcher(DispatchMode::LeastInFlight, &[true; 2]);
    let load = |worker| Load { busy: worker == 0, in_flight: usize::from(worker) };
    assert!((0..20).all(|_| two.choose(from(1), load) == 0 && two.home(None, load) == 0));
    let equal = |worker| Load { busy: worker == 0, in_flight: 1 };
    assert!((0..20).all(|_| two.choose(from(0), equal) == 1));
    let mut many = dispatcher(DispatchMode::LeastInFlight, &[true; 8]);
    let all_but_one = |worker| Load { busy: true, in_flight: usize::from(worker != 5) };
    assert!((0..20).all(|_| many.choose(from(0), all_but_one) == 5), "whoever is drawn");
    let mut none = dispatcher(DispatchMode::LeastInFlight, &[false; 3]);
    assert_eq!(none.choose(from(2), |_| IDLE), 2);
}

/// Balls into bins: with one choice the fullest of 64 bins has some 12 more than the mean of 16, with two 2 or 3 more.
#[test]
fn two_choices_are_almost_as_good_as_all() {
    let mut dispatcher = dispatcher(DispatchMode::LeastInFlight, &[true; 64]);
    let mut bins = [0_usize; 64];
    for _ in 0..64 * 16 {
        let load = |worker: u16| Load { busy: true, in_flight: bins[usize::from(worker)] };
        let chosen = dispatcher.choose(from(0), load);
        bins[usize::from(chosen)] += 1;
    }
    let most = bins.iter().max().copied().unwrap_or(0);
    assert!((17..=20).contains(&most), "{bins:?}");
}

#[test]
fn keys_spread_evenly() {
    let mut dispatcher = dispatcher(DispatchMode::ConsistentHash, &[true; 5]);
    let mut by_worker = BTreeMap::new();
    for key in 0..10_000_u32 {
        let packet = [&[1, 2][..], &key.to_le_bytes()].concat();
        *by_worker.entry(dispatcher.choose(Query { packet: &packet, ..from(0) }, |_| IDLE)).or_insert(0) += 1;
    }
    assert!(
        by_worker.len() == 5 && by_worker.values().all(|count| (1_800..2_200).contains(count)),
        "{by_worker:?}"
    );
}

/// What the user's function says of an empty packet, with two workers of which the second serves.
fn ask(function: impl Fn(&Dispatch<'_>) -> Choice + Send + Sync + 'static) -> Verdict {
    let sessions = SessionTable::create(1, 1).unwrap();
    let session = sessions.name(0, 0, 1);
    sessions.open(session, &Arrival { listener: 3, port: 0, peer: None, connected_at: 0 });
    sessions.bind(session, 77);
    let board = Board::create(2, 1, 1).unwrap();
    let scene = Scene {
        sessions: &sessions,
        board: &board,
        in_flight: &|worker| usize::from(worker) + 5,
        serves: &|worker| worker == 1,
        worker_num: 2,
    };
    Custom::new(function).ask((session, None), 1, b"packet", &scene)
}

#[test]
fn a_function_is_total() {
    assert_eq!(ask(|_| Choice::Worker(0)), Verdict::Worker(0));
    assert_eq!(ask(|_| Choice::Worker(u64::MAX)), Verdict::Worker(1));
    assert_eq!(ask(|_| Choice::Home), Verdict::Worker(1));
    assert_eq!(ask(|_| Choice::Drop), Verdict::Drop);
    assert_eq!(ask(|_| Choice::Close), Verdict::Close);
    assert_eq!(ask(|_| panic!("on purpose, in a test")), Verdict::Close);
}

#[test]
fn a_function_sees_what_it_needs() {
    let verdict = ask(|dispatch| {
        assert_eq!((dispatch.worker_num(), dispatch.home, dispatch.packet), (2, 1, &b"packet"[..]));
        let info = dispatch.info().unwrap();
        assert_eq!((info.listener, info.uid), (3, Some(77)));
        assert_eq!([0, 1, 2].map(|worker| dispatch.is_serving(worker)), [false, true, false]);
        assert_eq!([0, 1, 2].map(|worker| dispatch.in_flight(worker)), [5, 6, 0]);
        assert_eq!([0, 2].map(|worker| dispatch.is_idle(worker)), [false, false]);
        Choice::Drop
    });
    assert_eq!(verdict, Verdict::Drop, "or something above is not so");
}

#[test]
fn loads_are_those_of_all_reactors() {
    let loads = Arc::new(Loads::new(2));
    let [mut one, mut other] = [1, 1].map(|worker| Gauge::new(&loads, worker));
    one.set(5);
    other.set(2);
    one.set(1);
    assert_eq!((loads.in_flight(0), loads.in_flight(1)), (0, 3));
    drop(one);
    assert_eq!(loads.in_flight(1), 2);
}

proptest! {
    #[test]
    fn a_choice_is_a_worker_and_serves_if_any_does(
        up in proptest::collection::vec(any::<bool>(), 1..9),
        mode in any_mode(),
        loads in proptest::collection::vec((any::<bool>(), 0usize..4), 9),
        peer in any::<Option<IpAddr>>(),
        uid: u64,
        packet in proptest::collection::vec(any::<u8>(), 0..9),
        times in 1usize..40,
    ) {
        let mut dispatcher = dispatcher(mode, &up);
        let load = |worker: u16| {
            let (busy, in_flight) = loads[usize::from(worker)];
            Load { busy, in_flight }
        };
        for _ in 0..times {
            let home = dispatcher.home(peer, load);
            let chosen = dispatcher.choose(Query { home, uid, packet: &packet }, load);
            prop_assert!(usize::from(home) < up.len() && usize::from(chosen) < up.len());
            prop_assert!(up[usize::from(home)] || !up.contains(&true));
            prop_assert!(up[usize::from(chosen)] || !up.contains(&true) || mode == DispatchMode::Uid);
            prop_assert!(chosen == home || !mode.is_by_connection());
        }
    }

    /// Whoever comes and goes, a key moves only from who goes, and back to who comes.
    #[test]
    fn a_death_moves_no_other_ones_keys(
        workers in 2usize..20,
        dead: prop::sample::Index,
        keys in proptest::collection::vec(any::<[u8; 4]>(), 1..50),
    ) {
        let mut dispatcher = dispatcher(DispatchMode::ConsistentHash, &vec![true; workers]);
        let dead = dead.index(workers) as u16;
        let all = |dispatcher: &mut Dispatcher| -> Vec<u16> {
            let of = |key: &[u8; 4]| {
                let packet = [b"..", &key[..], b"what follows"].concat();
                dispatcher.choose(Query { packet: &packet, ..from(0) }, |_| IDLE)
            };
            keys.iter().map(of).collect()
        };
        let before = all(&mut dispatcher);
        dispatcher.set_up(dead, false);
        let without = all(&mut dispatcher);
        for (before, without) in before.iter().zip(&without) {
            prop_assert!(*without != dead && (before == without || *before == dead));
        }
        dispatcher.set_up(dead, true);
        prop_assert_eq!(all(&mut dispatcher), before);
    }

    /// The bytes around the key do not matter, and one that is cut short is a key all the same.
    #[test]
    fn a_key_is_its_bytes(
        key in proptest::collection::vec(any::<u8>(), 0..5),
        before: [[u8; 2]; 2],
        after in proptest::collection::vec(any::<u8>(), 0..5),
        home in 0u16..7,
    ) {
        let mut dispatcher = dispatcher(DispatchMode::ConsistentHash, &[true; 7]);
        let asked = Cell::new(0);
        let mut of = |packet: &[u8]| {
            let load = |_| { asked.set(asked.get() + 1); IDLE };
            dispatcher.choose(Query { packet, ..from(home) }, load)
        };
        let after = if key.len() == 4 { &after[..] } else { &[] };
        let chosen = of(&[&before[0], &key[..]].concat());
        prop_assert_eq!(of(&[&before[1], &key[..], after].concat()), chosen);
        prop_assert!(!key.is_empty() || chosen == home);
        prop_assert_eq!(asked.get(), 0);
    }
}
