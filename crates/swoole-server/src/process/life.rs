//! A user process's life, in either mode, from the fork to the exit.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::getpid;
use swoole_supervisor::Child;

use super::UserProcess;
use crate::board::Lease;
use crate::error::{Error, Result};
use crate::log::{Identity, Role};
use crate::shared::Shared;
use crate::worker::callbacks;

/// How long a user process may go on when those that look after it are gone: the manager, in Process mode also the master.
const ORPHAN_WAIT: Duration = Duration::from_millis(600);

/// Runs a user process to its end; the exit code. `reign`: that of the manager that has forked it, in Process mode.
pub(crate) fn run(shared: &Arc<Shared>, reign: Option<u64>, mut child: Child) -> i32 {
    let (id, pid) = (child.slot, getpid().as_raw_pid());
    let seat = shared.config.seat_of_user_process(id);
    let taken = Lease::Taken { pid };
    // The manager that has forked it is dead, and the next one fills the slot: there is nobody here.
    if reign.is_some_and(|reign| !shared.board.move_lease(seat, Lease::Free { reign }, taken)) {
        return 0;
    }
    let name = shared.config.user_processes.get(usize::from(id)).cloned().unwrap_or_default();
    introduce(id, &name);
    let mut life = || -> Result<()> {
        let function = shared.processes.function(id).ok_or("the program has no function for it")?;
        let mut process = UserProcess::enter(shared, &child, seat)?;
        process.lookout().outlive_manager(ORPHAN_WAIT)?;
        crate::confine::enter(shared)?;
        // In a stop, those that leave before it may wait for what it does.
        if !process.lookout().wait_for_start(child.generation > 1)? {
            return Ok(());
        }
        if reign.is_some() && !shared.board.move_lease(seat, taken, Lease::Serving { pid }) {
            return Ok(());
        }
        child.ready();
        let result = function(&mut process);
        process.finish();
        result?;
        if !process.is_asked_to_leave()? {
            tracing::info!("user process {name} has returned, and was not asked to: another one follows");
        }
        Ok(())
    };
    match life() {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("user process {name}: {error}");
            1
        }
    }
}

fn introduce(id: u16, name: &str) {
    crate::log::set_identity(Identity { role: Role::UserProcess, id: u32::from(id) });
    // A title is a comfort, not a need.
    let _ = swoole_sys::title::set(&format!("swoole: process {name}"));
    callbacks::log_panics();
}

impl UserProcess {
    /// The first things that it does.
    fn enter(shared: &Arc<Shared>, child: &Child, seat: u16) -> Result<UserProcess> {
        shared.board.enter(seat, child.generation);
        shared
            .protect_from_user_process(child.slot)
            .map_err(|error| Error::setup("make what other processes own read-only", error))?;
        UserProcess::new(shared, child, seat)
    }
}
