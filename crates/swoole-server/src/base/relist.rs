//! Addresses that a reload adds and removes, in Base mode.
//!
//! Each worker has sockets of its own, and gets those that there are when it is forked. So a new address needs nothing but
//! sockets: clients wait in them for the workers that the reload brings. One that is removed is what its workers have until
//! they retire; who comes after them lets in who has connected meanwhile, and closes it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use swoole_supervisor::{Control, Scope};

use super::office::Office;
use super::{Tenure, add_stalls};
use crate::config::Listen;
use crate::error::Result;
use crate::handler::Handler;
use crate::listeners;
use crate::listening::{Change, Reread};

impl<H: Handler> Office<H> {
    /// Has all workers replaced, and addresses as the program wants them by now.
    pub(super) fn reload(&mut self, control: &mut Control) {
        if let Some(reread) = self.reread.clone()
            && let Err(error) = self.look(&reread)
        {
            tracing::error!("addresses stay as they are: {error}");
        }
        control.reload(Scope::All, None);
    }

    fn look(&mut self, reread: &Reread) -> Result<()> {
        let now = self.shared().listening();
        let Some(change) = reread.look(&now)? else { return Ok(()) };
        let opened = listeners::open_more(&now, &change)?;
        let found = opened.iter().map(|(_, found)| found.clone()).collect();
        let prepare = || {
            let then = now.changed(&change, found, &reread.functions)?;
            let stalls = change.open.iter().zip(&opened).map(|(opening, (socket, found))| {
                let stalls = |socket| listeners::open_stalls(now.config(), &opening.wanted, (socket, found));
                socket.as_ref().map(stalls).transpose()
            });
            let stalls = stalls.collect::<Result<Vec<_>>>()?;
            self.shared().tls.load_if_any(&then)?;
            Ok((then, stalls))
        };
        let prepared: Result<_> = prepare();
        let (then, stalls) = prepared.inspect_err(|_| listeners::put_away_unused(&opened))?;
        self.shared().set_listening(Arc::new(then));
        self.install(&change, stalls);
        Ok(())
    }

    fn install(&mut self, change: &Change, stalls: Vec<Option<Vec<OwnedFd>>>) {
        let listening = self.shared().listening();
        let url = |listener: u16| listening.address(listener).map(Listen::url).unwrap_or_default();
        for closed in &change.close {
            tracing::info!("Server leaves {}", url(*closed));
            listening.wanted(*closed).into_iter().for_each(listeners::put_away);
            let all = self.stalls.iter_mut().flatten();
            all.filter(|stall| stall.listener == *closed).for_each(|stall| stall.tenure = Tenure::Ends);
        }
        for (opening, sockets) in change.open.iter().zip(stalls) {
            match (sockets, opening.instead_of) {
                (Some(sockets), _) => add_stalls(&mut self.stalls, opening.number, sockets),
                (None, Some(before)) => {
                    let all = self.stalls.iter_mut().flatten();
                    for stall in all.filter(|stall| stall.listener == before) {
                        stall.listener = opening.number;
                        let set = listeners::set_again(&listening, opening.number, stall.socket.as_fd());
                        set.unwrap_or_else(|error| tracing::error!("{error}"));
                    }
                }
                (None, None) => {}
            }
            tracing::info!("Server is ready on {}, too", url(opening.number));
        }
    }

    pub(super) fn reload_begun(&mut self) {
        self.turn(Tenure::Ends, Tenure::Ending);
    }

    /// Each worker has come after the removal.
    pub(super) fn reload_ended(&mut self) {
        self.stalls.iter_mut().for_each(|own| own.retain(|stall| stall.tenure != Tenure::Ending));
    }

    /// Not each of them: the next reload ends it.
    pub(super) fn reload_aborted(&mut self) {
        self.turn(Tenure::Ending, Tenure::Ends);
    }

    fn turn(&mut self, before: Tenure, then: Tenure) {
        let all = self.stalls.iter_mut().flatten();
        all.filter(|stall| stall.tenure == before).for_each(|stall| stall.tenure = then);
    }
}
