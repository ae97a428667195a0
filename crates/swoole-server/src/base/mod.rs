//! Base mode: run-to-completion workers, and no master in the data path.
//!
//! ```text
//! manager ──fork──> worker 0 .. n-1
//!   the process       each: accept → read → Handler → write, in one thread,
//!   that starts       with a listening socket of its own for each address
//! ```
//!
//! The handler, its callbacks and their order are those of Process mode; so are sessions, reload, back-off and stop.
//! What differs is what a death costs: a worker has its clients with it. One that *retires* (reload, `max_request`, ...)
//! hands them over to its successor, with every byte that was read and not handled, and no client notices.
//!
//! Listening sockets belong to the manager, one for each worker (`SO_REUSEPORT`, socket(7)), so that connections in the
//! backlog of a worker that is being replaced wait for its successor. A unix socket is one for all.
//!
//! | file | process | what |
//! |---|---|---|
//! | `mod` | manager | what exists before the first fork; the boot |
//! | `office` | manager | the supervisor's program: callbacks, signals, the end |
//! | `relist` | manager | addresses that a reload adds and removes |
//! | `life` | worker | from the fork to the exit |
//! | `hands` | worker | takes packets off the desk and handles them at once |
//! | `till` | worker | what a callback sends, until it returns |
//! | `estate` | worker | clients, from one generation to the next |

mod estate;
mod hands;
mod life;
mod office;
mod relist;
mod till;

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use swoole_supervisor::Supervisor;

use crate::board::Phase;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::listeners;
use crate::listening::Reread;
use crate::log::{Identity, Role};
use crate::master::Listeners;
use crate::shared::Shared;
use estate::Estate;
use office::Office;
pub(crate) use till::Till;

/// A listening socket of one worker.
pub(crate) struct Stall {
    listener: u16,
    socket: OwnedFd,
    tenure: Tenure,
}

/// Whether workers to come have it, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tenure {
    Stays,
    /// It is removed: who comes next lets in who has connected, and closes it.
    Ends,
    /// And all of those come in the reload that is going on.
    Ending,
}

/// Those of each worker (outer).
pub(crate) type Stalls = Vec<Vec<Stall>>;

/// Opens what the workers have besides the first one of each address.
pub(crate) fn open_stalls(config: &Config, listeners: &Listeners) -> Result<Stalls> {
    let mut stalls: Stalls = (0..config.worker_num).map(|_| Vec::new()).collect();
    for (((socket, found), wanted), listener) in listeners.iter().zip(&config.listen).zip(0..) {
        add_stalls(&mut stalls, listener, listeners::open_stalls(config, wanted, (socket, found))?);
    }
    Ok(stalls)
}

/// Each worker has one more.
fn add_stalls(stalls: &mut Stalls, listener: u16, sockets: Vec<OwnedFd>) {
    for (own, socket) in stalls.iter_mut().zip(sockets) {
        own.push(Stall { listener, socket, tenure: Tenure::Stays });
    }
}

/// What a worker of Base mode has in common with its successors; exists before the first fork.
pub(crate) struct Premises {
    /// By worker.
    estates: Vec<Estate>,
}

impl Premises {
    fn create(shared: &Shared) -> Result<Premises> {
        let workers = usize::from(shared.config.worker_num);
        Ok(Premises { estates: (0..workers).map(|_| Estate::create()).collect::<Result<_>>()? })
    }

    /// The descriptors of it that a worker keeps.
    fn keep(&self, worker: usize) -> Vec<RawFd> {
        self.estates[worker].keep()
    }
}

/// Runs the server until it has stopped.
pub(crate) fn run<H: Handler>(
    handler: H,
    shared: Arc<Shared>,
    stalls: Stalls,
    reread: Option<Reread>,
) -> Result<()> {
    crate::log::set_identity(Identity { role: Role::Manager, id: 0 });
    // A title is a comfort, not a need.
    let _ = swoole_sys::title::set("swoole: manager");
    shared.board.set_manager(shared.board.master_pid());
    let premises = Rc::new(Premises::create(&shared)?);
    let office = Office::new(handler, Arc::clone(&shared), premises, (stalls, reread))?;
    let (options, groups) = office.staff.options();
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::setup("run the manager", error);
    let supervisor = Supervisor::new(options, groups, office).map_err(|error| failed(error.into()))?;
    let outcome = supervisor.run().map_err(|error| failed(error.into()))?;
    shared.board.set_phase(Phase::Stopping);
    outcome.program.finish()
}

fn raw<'a>(descriptors: impl IntoIterator<Item = &'a OwnedFd>) -> impl Iterator<Item = RawFd> {
    descriptors.into_iter().map(|descriptor| descriptor.as_fd().as_raw_fd())
}
