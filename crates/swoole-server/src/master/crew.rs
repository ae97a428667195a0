//! The reactor threads, seen from the main thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use swoole_reactor::Reactor;

use super::mailbox::{Command, Mailbox, Note, Occupancy};
use super::reactor_thread::{self, Seat};
use crate::error::{Error, Result};
use crate::gate::Visitors;
use crate::shared::{Lanes, Shared};

struct Member {
    mail: Arc<Mailbox<Command>>,
    occupancy: Arc<Occupancy>,
    thread: JoinHandle<()>,
}

pub(super) struct Crew {
    members: Vec<Member>,
    /// A connection waits for another one to leave.
    crowded: Arc<AtomicBool>,
}

impl Crew {
    pub(super) fn start(
        shared: &Arc<Shared>,
        lanes: &Lanes,
        notes: &Arc<Mailbox<Note>>,
        visitors: &Visitors,
    ) -> Result<Crew> {
        let crowded = Arc::new(AtomicBool::new(false));
        let start = |id: u8| {
            let occupancy = Arc::new(Occupancy::default());
            let seat = Seat {
                id,
                shared: Arc::clone(shared),
                lanes: lanes.iter().map(|of_worker| Arc::clone(&of_worker[usize::from(id)])).collect(),
                main: Arc::clone(notes),
                occupancy: Arc::clone(&occupancy),
                visitors: visitors.clone(),
                crowded: Arc::clone(&crowded),
            };
            let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
                Error::setup(format!("start reactor thread {id}"), error)
            };
            // A reactor is made in the thread that turns it; its mailbox comes back from there.
            let (sender, receiver) = mpsc::channel();
            let thread = thread::Builder::new()
                .name(format!("reactor {id}"))
                .spawn(move || match Reactor::new(seat.shared.reactor_options()) {
                    Err(error) => drop(sender.send(Err(error))),
                    Ok(reactor) => {
                        let mail = Mailbox::new(reactor.waker());
                        let _ = sender.send(Ok(Arc::clone(&mail)));
                        reactor_thread::run(seat, reactor, mail);
                    }
                })
                .map_err(|error| failed(error.into()))?;
            let mail = receiver
                .recv()
                .map_err(|error| failed(error.into()))?
                .map_err(|error| failed(error.into()))?;
            Ok(Member { mail, occupancy, thread })
        };
        let mut members = Vec::new();
        for id in 0..shared.config.reactor_num {
            match start(id) {
                Ok(member) => members.push(member),
                Err(error) => {
                    let mut crew = Crew { members, crowded };
                    crew.tell(|| Command::Finish { within: Duration::ZERO });
                    crew.join();
                    return Err(error);
                }
            }
        }
        Ok(Crew { members, crowded })
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn tell(&self, command: impl Fn() -> Command) {
        self.members.iter().for_each(|member| member.mail.post(command()));
    }

    pub(super) fn tell_one(&self, reactor: usize, command: Command) {
        if let Some(member) = self.members.get(reactor) {
            member.mail.post(command);
        }
    }

    /// Connections that all of them have.
    pub(super) fn total(&self) -> usize {
        self.members.iter().map(|member| member.occupancy.get()).sum()
    }

    /// Whether one more connection may come. If not, [`Note::Room`] tells when one has left.
    pub(super) fn has_room(&self, limit: usize) -> bool {
        if self.total() < limit {
            return true;
        }
        // Raised before the second look: who leaves in between sees it, or is seen.
        self.crowded.store(true, Ordering::SeqCst);
        self.total() < limit
    }

    /// Gives a connection to the reactor that has the fewest.
    pub(super) fn deal(&self, adopt: Command) {
        if let Some(member) = self.members.iter().min_by_key(|member| member.occupancy.get()) {
            member.occupancy.enter();
            member.mail.post(adopt);
        }
    }

    /// Waits for the threads, which have been told to end; false if one panicked.
    pub(super) fn join(&mut self) -> bool {
        let panicked = self.members.drain(..).filter_map(|member| member.thread.join().err());
        panicked.count() == 0
    }
}
