//! Where packets go under `--dispatch-mode custom`: wherever they wish to.

use swoole_server::{Choice, Dispatch};

use super::command::split_word;

/// `at WISH COMMAND`: WISH is a worker's number, or one of these. All else goes home.
pub(crate) fn choose(dispatch: &Dispatch<'_>) -> Choice {
    let (b"at", rest) = split_word(dispatch.packet) else { return Choice::Home };
    match split_word(rest).0 {
        b"drop" => Choice::Drop,
        b"close" => Choice::Close,
        b"panic" => panic!("a packet wishes it"),
        b"idle" => match (0..dispatch.worker_num()).find(|worker| dispatch.is_idle(*worker)) {
            Some(worker) => Choice::Worker(worker.into()),
            None => Choice::Home,
        },
        number => match std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()) {
            Some(worker) => Choice::Worker(worker),
            None => Choice::Home,
        },
    }
}
