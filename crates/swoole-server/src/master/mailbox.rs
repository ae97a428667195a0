//! How the master's threads speak to each other: a list and a waker; nobody waits for an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use swoole_reactor::Waker;

use crate::crash::PacketInHand;
use crate::gate::Visitors;
use crate::listening::Listening;
use crate::session::Arrival;

/// From the main thread to a reactor thread.
#[derive(Debug)]
pub(super) enum Command {
    /// A new connection is yours.
    Adopt { socket: OwnedFd, arrival: Arrival },
    /// You receive the datagrams of this listener, and send those that leave by it.
    Datagrams { socket: OwnedFd, listener: u16 },
    /// You have that socket no more.
    CloseDatagrams { listener: u16 },
    /// These are the addresses from now on, and that is where clients are counted who leave.
    Relist { listening: Arc<Listening>, visitors: Visitors },
    /// This worker has started.
    Up { worker: u16 },
    /// This worker is dead and reaped. Settle what it left and say so.
    Settle { worker: u16 },
    /// Take no new packets, and say when all that came is answered.
    Drain,
    /// All workers are gone. Let clients take what was sent, within this time, and end.
    Finish { within: Duration },
}

/// From a reactor thread to the main thread.
#[derive(Debug)]
pub(super) enum Note {
    /// [`Command::Settle`] is done; what was lost with the worker.
    Settled { worker: u16, in_hand: Vec<PacketInHand> },
    /// All that clients have sent is answered.
    Drained,
    /// This worker's link carries nonsense: the worker has to go.
    Fault { worker: u16, reason: String },
    /// A connection is gone, and somebody waits for that.
    Room,
    /// The thread ends; what went wrong, if anything did.
    Ended { reactor: u8, error: Option<String> },
}

/// Where a thread gets its mail. Made after the fork, and only the master's threads share it: a `parking_lot` lock is
/// good for nothing else in this program.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    mail: Mutex<Vec<T>>,
    waker: Waker,
}

impl<T> Mailbox<T> {
    pub(super) fn new(waker: Waker) -> Arc<Mailbox<T>> {
        Arc::new(Mailbox { mail: Mutex::new(Vec::new()), waker })
    }

    pub(super) fn post(&self, mail: T) {
        self.mail.lock().push(mail);
        self.waker.wake();
    }

    /// Everything that has come, in its order.
    pub(super) fn collect(&self) -> Vec<T> {
        std::mem::take(&mut *self.mail.lock())
    }
}

/// How many connections a reactor has: the main thread adds, the reactor takes away. Sequentially consistent, because
/// the two agree through it and a second flag on who admits those that wait.
#[derive(Debug, Default)]
pub(super) struct Occupancy(CachePadded<AtomicUsize>);

impl Occupancy {
    pub(super) fn enter(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use swoole_reactor::{Backend, Options, Reactor};

    use super::*;

    /// All threads at once, for the sanitizers' eyes too.
    #[test]
    fn every_mail_wakes_and_comes_once_and_in_order() {
        const MAILS: usize = 2_000;
        let mut reactor = Reactor::new(Options { backend: Backend::Epoll, ..Options::default() }).unwrap();
        let (mailbox, occupancy) = (Mailbox::new(reactor.waker()), Occupancy::default());
        let mut next = [0; 3];
        let deadline = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            let senders = [0, 1, 2].map(|sender| {
                let (mailbox, occupancy) = (&mailbox, &occupancy);
                scope.spawn(move || {
                    for number in 0..MAILS {
                        occupancy.enter();
                        mailbox.post((sender, Box::new(number)));
                    }
                })
            });
            while next != [MAILS; 3] {
                // Longer than all of it takes: only a wake-up ends it in time.
                let left = deadline.saturating_duration_since(Instant::now());
                reactor.turn(Some(left), |_, _| {}).unwrap();
                assert!(Instant::now() < deadline, "a mail is lost, or its wake-up: {next:?}");
                for (sender, number) in mailbox.collect() {
                    assert_eq!(*number, next[sender]);
                    next[sender] += 1;
                    occupancy.leave();
                }
            }
            // The sanitizer sees that they have ended by this, and not by the scope's end.
            senders.into_iter().for_each(|sender| sender.join().unwrap());
        });
        assert_eq!(occupancy.get(), 0);
    }
}
