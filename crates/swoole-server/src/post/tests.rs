use proptest::prelude::*;

use super::packet::PIECE;
use super::*;
use crate::config::Mode;

fn shared(mode: Mode) -> Arc<Shared> {
    let mut config = Config { mode, worker_num: 2, reactor_num: 2, task_worker_num: 1, ..Config::default() };
    config.listen.push("tcp://127.0.0.1:9501".parse().unwrap());
    (config.max_connection, config.ring_size) = (50, 16384);
    let (shared, _links, _hold) = Shared::create_for_test(config.clone()).unwrap();
    Arc::new(shared)
}

/// The posts of the two workers and of the task worker.
fn posts(shared: &Arc<Shared>) -> Vec<Post> {
    (0..shared.config.seats()).map(|seat| Post::open(shared, seat, 1).unwrap()).collect()
}

fn session(number: u64) -> crate::Session {
    crate::Session::from_raw(number)
}

fn all(post: &mut Post) -> Vec<Parcel> {
    std::iter::from_fn(|| post.next()).collect()
}

#[test]
fn parcels_of_any_size_arrive_whole_and_in_order_although_senders_mix() {
    let shared = shared(Mode::Base);
    let [one, two, task] = &mut posts(&shared)[..] else { unreachable!() };
    let large = vec![7; 300_000];
    two.sender.send(0, session(1), &large).unwrap();
    task.sender.send(0, session(2), &large[..100_000]).unwrap();
    task.sender.message(Peer::Worker(0), &large[..PIECE + 1]).unwrap();
    task.sender.send(0, session(3), b"").unwrap();
    task.sender.close(0, session(3)).unwrap();
    let mut came = Vec::new();
    while {
        two.sender.pump();
        task.sender.pump();
        came.extend(all(one));
        two.sender.is_blocked() || task.sender.is_blocked()
    } {}
    let position = |parcel: &Parcel| came.iter().position(|came| came == parcel).unwrap();
    position(&Parcel::Send(session(1), large.clone()));
    let in_order = [
        Parcel::Send(session(2), large[..100_000].to_vec()),
        Parcel::Message(Peer::TaskWorker(0), large[..PIECE + 1].to_vec()),
        Parcel::Send(session(3), Vec::new()),
        Parcel::Close(session(3)),
    ];
    assert!(in_order.iter().map(position).is_sorted());
    assert_eq!(came.len(), 5);
}

#[test]
fn a_reactor_of_its_own_has_a_box_of_its_own() {
    let shared = shared(Mode::Process);
    let mut posts = posts(&shared);
    posts[2].sender.send(1, session(9), b"for a client").unwrap();
    posts[2].sender.message(Peer::Worker(1), b"for a worker").unwrap();
    posts[2].sender.pump();
    let mut reactor = Receiver::new(&shared, shared.config.box_of_reactor(1));
    assert_eq!(reactor.next(), Some(Parcel::Send(session(9), b"for a client".to_vec())));
    assert_eq!(reactor.next(), None);
    let message = Parcel::Message(Peer::TaskWorker(0), b"for a worker".to_vec());
    assert_eq!(all(&mut posts[1]), [message]);
}

#[test]
fn a_process_that_does_not_read_costs_the_sender_an_error_and_no_more() {
    let shared = shared(Mode::Base);
    let mut posts = posts(&shared);
    let mut sent = 0;
    let error = loop {
        match posts[0].sender.send(1, session(9), &[1; 10_000]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        posts[0].sender.pump();
    };
    assert!(matches!(&error, Error::PeerFull { peer, .. } if peer == "worker 1"), "{error}");
    // Others are not meant.
    posts[0].sender.message(Peer::TaskWorker(0), b"hello").unwrap();
    posts[0].sender.pump();
    assert_eq!(all(&mut posts[2]).len(), 1);
    let is_roomy = |post: &Post| {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds =
            [rustix::event::PollFd::from_borrowed_fd(post.sender.room(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&now)).unwrap() > 0
    };
    assert!(!is_roomy(&posts[0]));
    let mut came = 0;
    while posts[0].sender.is_blocked() {
        came += all(&mut posts[1]).len();
        assert!(is_roomy(&posts[0]), "who waits for room is told of it");
        posts[0].sender.pump();
    }
    came += all(&mut posts[1]).len();
    assert_eq!(came, sent);
    assert!(!is_roomy(&posts[0]));
    posts[0].sender.send(1, session(9), &[1; 10_000]).unwrap();
}

#[test]
fn what_is_under_way_survives_both_ends() {
    let shared = shared(Mode::Base);
    let mut posts = posts(&shared);
    let large = vec![7; 2_000_000];
    posts[0].sender.send(1, session(1), &large).unwrap();
    posts[0].sender.message(Peer::Worker(1), b"behind it").unwrap();
    posts[0].sender.pump();
    assert_eq!(posts[1].next(), None, "it has begun, and there is no room for all of it");
    for seat in 0..2 {
        let mail = posts[usize::from(seat)].leave();
        assert!(mail != Mail::default());
        posts[usize::from(seat)] = Post::open(&shared, seat, 2).unwrap();
        posts[usize::from(seat)].inherit(mail);
    }
    let mut came = Vec::new();
    while {
        posts[0].sender.pump();
        came.extend(all(&mut posts[1]));
        posts[0].sender.is_blocked()
    } {}
    let behind = Parcel::Message(Peer::Worker(0), b"behind it".to_vec());
    assert!(came == [Parcel::Send(session(1), large), behind]);
}

#[test]
fn who_leaves_knows_what_is_under_way() {
    let shared = shared(Mode::Process);
    let mut posts = posts(&shared);
    shared.board.enter(0, 1);
    shared.board.set_worker_pid(0, 77);
    posts[0].sender.message(Peer::Worker(1), &vec![1; 2_000_000]).unwrap();
    posts[0].sender.pump();
    assert_eq!((posts[1].next(), posts[0].under_way(), posts[1].under_way()), (None, 1, 1));
    // Its sender is dead: the rest will never come.
    shared.board.set_worker_pid(0, 0);
    assert_eq!(posts[1].under_way(), 0);
}

#[test]
fn the_rest_of_a_dead_senders_parcel_is_nobodys() {
    let shared = shared(Mode::Base);
    let mut posts = posts(&shared);
    posts[0].sender.message(Peer::Worker(1), &vec![1; 2_000_000]).unwrap();
    posts[0].sender.pump();
    posts[0] = Post::open(&shared, 0, 2).unwrap();
    posts[0].sender.message(Peer::Worker(1), b"whole").unwrap();
    posts[0].sender.finish(std::time::Duration::ZERO);
    let mut came = all(&mut posts[1]);
    posts[0].sender.pump();
    came.extend(all(&mut posts[1]));
    assert_eq!(came, [Parcel::Message(Peer::Worker(0), b"whole".to_vec())]);
}

#[test]
fn nobody_writes_to_whom_there_is_not() {
    let shared = shared(Mode::Process);
    let mut post = Post::open(&shared, 0, 1).unwrap();
    for peer in [Peer::Worker(2), Peer::TaskWorker(1), Peer::Manager] {
        let error = post.sender.message(peer, b"").unwrap_err();
        assert!(matches!(error, Error::NoSuchPeer(it) if it == peer), "{error}");
    }
    assert!(!post.sender.is_blocked());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_that_comes_is_believed(packets in proptest::collection::vec(
        (0..4_u8, 0..4_u8, 0..5_u16, 0..3_u32, 0..20_u64, proptest::collection::vec(any::<u8>(), 0..20)), 0..20))
    {
        let shared = shared(Mode::Base);
        let mut receiver = Receiver::new(&shared, 0);
        for (kind, flags, sender, generation, about, bytes) in packets {
            let [low, high] = sender.to_le_bytes();
            let packet = [
                &[kind, flags, low, high][..],
                &generation.to_le_bytes(),
                &about.to_le_bytes(),
                &bytes,
            ];
            if let Some(Parcel::Message(_, message)) = receiver.take(&packet.concat()) {
                prop_assert_eq!(message.len() as u64, about);
            }
            receiver.take(&bytes);
        }
    }
}
