//! What a master hands to a manager that it has executed: everything that a forked one would have inherited.
//!
//! Numbers and names travel as TOML in a memfd, which says how many descriptors follow; those follow in messages of a
//! socketpair, in the order of [`Charter::offer`]. What the two must agree on without being told, the shared memory's
//! layout, has a number ([`LAYOUT`]), and a manager that knows another one refuses.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use swoole_ipc::Memory;
use swoole_ipc::socketpair::{self, Endpoint, FDS_MAX, Kind};
use swoole_supervisor::Adopted;

use crate::config::{Config, Framings, Ipc, Listen};
use crate::confine::Account;
use crate::error::{Error, Result};
use crate::link::Lane;
use crate::listening::Listening;
use crate::manager::{seat_of, slot_of};
use crate::plan::{LAYOUT, Plan};
use crate::post::Boxes;
use crate::shared::{Lifeline, Links, Parts, Shared};
use crate::stats::WorkerState;
use crate::task::attic::Attic;
use crate::task::courier::{Courier, Record};

/// What the kernel is asked to hold; enough for the descriptors of the largest server.
const BUFFER: usize = 1 << 20;
/// How long the next part of the charter may take: the master has sent it before it executed the manager.
const PATIENCE: Duration = Duration::from_secs(5);

/// What stands in the memfd.
#[derive(Serialize, Deserialize)]
struct Text {
    layout: u32,
    master: i32,
    connection_limit: usize,
    /// Descriptors that follow.
    descriptors: usize,
    user_processes: Vec<String>,
    config: Config,
    account: Option<Account>,
    addresses: Vec<Listen>,
    heirs: Vec<Heir>,
    post: Option<Record>,
    /// Large tasks may be in memory.
    attic: bool,
}

/// The last process of a seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Heir {
    pub(crate) generation: u32,
    pub(crate) pid: i32,
    /// It serves. If not, the master tells how it ended as soon as that is settled.
    pub(crate) alive: bool,
}

/// What a summoned manager has received.
pub(crate) struct Charter {
    pub(crate) shared: Shared,
    pub(crate) links: Links,
    pub(crate) control: Endpoint,
    pub(crate) master: Pid,
    pub(crate) adopted: Vec<Adopted>,
}

impl Charter {
    /// Puts everything for a new manager into a channel, whose other end is for the manager, and must be dropped here when
    /// that has been executed: it holds copies of all descriptors until then. `heirs` has a process for each worker that is
    /// alive. Waits for nobody.
    pub(crate) fn offer(
        shared: &Shared,
        links: &Links,
        control: &Endpoint,
        heirs: &[(Heir, Option<&OwnedFd>)],
    ) -> Result<(Endpoint, OwnedFd)> {
        let memory = links.memory().ok_or_else(|| broken("the shared memory is closed here"))?;
        let mut descriptors =
            vec![control.as_fd(), memory.as_fd(), shared.lifeline.as_fd(), shared.manager_bell.as_fd()];
        let Shared { bells, rooms, reactor_bells, task_bells, process_bells, .. } = shared;
        let bells = [bells, rooms, reactor_bells, task_bells, process_bells];
        descriptors.extend(bells.into_iter().flatten().map(|bell| bell.as_fd()));
        descriptors.extend(shared.boxes.fds());
        descriptors.extend(links.sockets().iter().flatten().flat_map(|lane| lane.fds()));
        let post = shared.tasks.courier();
        descriptors.extend(post.into_iter().flat_map(Courier::fds));
        let attic = shared.tasks.spill().attic();
        descriptors.extend(attic.map(Attic::as_fd));
        descriptors.extend(heirs.iter().filter_map(|(_, process)| process.map(OwnedFd::as_fd)));
        let listening = shared.listening();
        let text = Text {
            layout: LAYOUT,
            master: std::process::id().cast_signed(),
            connection_limit: shared.connection_limit,
            descriptors: descriptors.len(),
            user_processes: shared.config.user_processes.clone(),
            config: listening.config().clone(),
            account: shared.account.clone(),
            addresses: listening.addresses().to_vec(),
            heirs: heirs.iter().map(|(heir, _)| *heir).collect(),
            post: post.map(Courier::record),
            attic: attic.is_some(),
        };
        let failed = |error: swoole_ipc::Error| Error::setup("make a new manager's charter", error);
        let text =
            toml::to_string(&text).map_err(|error| Error::setup("write a manager's charter", error))?;
        let file = memfd_create("swoole-charter", MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
        let mut file = File::from(file);
        file.write_all(text.as_bytes())?;
        let (mut ours, mut theirs) = socketpair::pair(Kind::SeqPacket).map_err(failed)?;
        for end in [&mut ours, &mut theirs] {
            end.set_buffer_sizes(BUFFER).map_err(failed)?;
        }
        let descriptors = [&[file.as_fd()], &descriptors[..]].concat();
        for batch in descriptors.chunks(FDS_MAX) {
            ours.send_with_fds(b"charter", batch, Some(Duration::ZERO)).map_err(failed)?;
        }
        let theirs = theirs.as_fd().try_clone_to_owned()?;
        Ok((ours, theirs))
    }

    /// Takes what was put into this channel. `keep`: descriptors of this program's own.
    pub(crate) fn accept(channel: OwnedFd, keep: Vec<RawFd>) -> Result<Charter> {
        let failed = |error: swoole_ipc::Error| Error::setup("receive the manager's charter", error);
        let mut channel = Endpoint::from_fd(Kind::SeqPacket, channel).map_err(failed)?;
        let (mut message, mut descriptors) = (Vec::new(), Vec::<OwnedFd>::new());
        let mut receive = |descriptors: &mut Vec<OwnedFd>| -> Result<()> {
            let more = channel.recv_with_fds(&mut message, Some(PATIENCE)).map_err(failed)?;
            if more.is_empty() {
                return Err(broken("it is cut off"));
            }
            descriptors.extend(more);
            Ok(())
        };
        receive(&mut descriptors)?;
        let text = read(descriptors.remove(0))?;
        while descriptors.len() < text.descriptors {
            receive(&mut descriptors)?;
        }
        text.unfold(descriptors, keep)
    }
}

fn broken(what: &str) -> Error {
    Error::setup("hand over a manager's charter", what)
}

fn read(file: OwnedFd) -> Result<Text> {
    let (mut file, mut text) = (File::from(file), String::new());
    file.rewind()?;
    file.read_to_string(&mut text)?;
    let table: toml::Table =
        text.parse().map_err(|error| Error::setup("read the manager's charter", error))?;
    let layout = table.get("layout").and_then(toml::Value::as_integer);
    if layout != Some(LAYOUT.into()) {
        return Err(Error::Layout { running: layout.unwrap_or(0), ours: LAYOUT });
    }
    table.try_into().map_err(|error| Error::setup("read the manager's charter", error))
}

impl Text {
    /// Gives the descriptors their names.
    fn unfold(self, descriptors: Vec<OwnedFd>, keep: Vec<RawFd>) -> Result<Charter> {
        let Text {
            user_processes,
            mut config,
            account,
            addresses,
            connection_limit,
            heirs,
            master,
            post,
            attic,
            ..
        } = self;
        config.user_processes = user_processes;
        let plan = Plan::new(&config, connection_limit)?;
        let mut rest = descriptors.into_iter();
        let mut next = || rest.next().ok_or_else(|| broken("descriptors are missing"));
        let failed = |error: swoole_ipc::Error| Error::setup("take up what the server shares", error);
        let control = Endpoint::from_fd(Kind::SeqPacket, next()?).map_err(failed)?;
        let memory = Memory::from_fd("swoole", next()?).map_err(failed)?;
        let (lifeline, manager_bell) = (Lifeline::new(next()?), next()?);
        let mut several = |count: usize| (0..count).map(|_| next()).collect::<Result<Vec<_>>>();
        let [bells, rooms, reactor_bells, task_bells, process_bells] = plan.bell_nums();
        let (bells, rooms) = (several(bells)?, several(rooms)?);
        let (reactor_bells, task_bells) = (several(reactor_bells)?, several(task_bells)?);
        let process_bells = several(process_bells)?;
        let boxes = Boxes::from_fds(&config, &mut next)?;
        let mut socket = || Lane::from_fds(next()?, next()?).map(Arc::new).map_err(failed);
        let sockets = if config.ipc == Ipc::SocketPair {
            let lanes = (0..plan.workers).map(|_| (0..plan.links).map(|_| socket()).collect());
            lanes.collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        let post_num = if post.is_some() { Courier::fd_num(&config) } else { 0 };
        let post = Some((post, (0..post_num).map(|_| next()).collect::<Result<Vec<_>>>()?));
        let attic = if attic { Some(next()?) } else { None };
        let adopt = |(heir, seat): (Heir, u16)| {
            let Heir { generation, pid, alive } = heir;
            let pid = Pid::from_raw(pid).ok_or_else(|| broken("a worker has no pid"))?;
            let pidfd = if alive { Some(next()?) } else { None };
            Ok(Adopted { slot: slot_of(seat, &config), generation, pid, pidfd, leaving: false })
        };
        let mut adopted = heirs.into_iter().zip(0..).map(adopt).collect::<Result<Vec<_>>>()?;
        let parts = Parts {
            memory,
            lifeline,
            manager_bell,
            bells,
            rooms,
            reactor_bells,
            task_bells,
            process_bells,
            boxes,
            sockets,
            post,
            attic,
        };
        let listening = Listening::new(&config, addresses, Framings::none());
        let master = Pid::from_raw(master).ok_or_else(|| broken("there is no master"))?;
        let (shared, links) = Shared::assemble((config, account), listening, keep, master, plan, parts)?;
        for worker in &mut adopted {
            // Whatever it was asked for by the last manager, that one cannot see it through.
            let seat = seat_of(worker.slot, &shared.config);
            worker.leaving = shared.board.worker_state(seat) == WorkerState::Retiring;
        }
        Ok(Charter { shared, links, control, master, adopted })
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;
    use crate::shared::ManagerBell;

    fn config(ipc: Ipc) -> Config {
        let mut config = Config { worker_num: 2, reactor_num: 2, ring_size: 16384, ipc, ..Config::default() };
        config.listen.push("tcp://127.0.0.1:9501".parse().unwrap());
        (config.max_connection, config.package_eof) = (50, b"\0\n".to_vec());
        config.user_processes = vec!["metrics".into()];
        config
    }

    #[test]
    fn what_is_offered_is_what_arrives() {
        for ipc in [Ipc::Ring, Ipc::SocketPair] {
            let config = config(ipc);
            let (shared, links, _hold) = Shared::create_for_test(config.clone()).unwrap();
            shared.board.set_worker_pid(1, 4711);
            shared.board.set_worker_state(1, WorkerState::Retiring);
            shared.manager_bell.ring().unwrap();
            let (ours, theirs) = crate::control::pair().unwrap();
            let process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
            let heir = |generation, alive| Heir { generation, pid: 77, alive };
            let heirs = [(heir(3, true), Some(&process)), (heir(9, false), None)];
            let (charter, channel) = Charter::offer(&shared, &links, &theirs, &heirs).unwrap();
            drop((charter, theirs));

            let charter = Charter::accept(channel, vec![]).unwrap();
            assert_eq!(charter.shared.config, shared.config);
            assert_eq!(charter.shared.listening().addresses(), shared.listening().addresses());
            assert_eq!(charter.shared.board.worker_pid(1), 4711);
            assert_eq!(charter.master, getpid());
            let adopted = charter.adopted.iter();
            let adopted = adopted.map(|it| (it.slot.slot, it.generation, it.pidfd.is_some(), it.leaving));
            assert_eq!(adopted.collect::<Vec<_>>(), [(0, 3, true, false), (1, 9, false, true)]);
            assert_eq!(charter.links.open(1).unwrap().len(), 2);
            // The bells are the same ones, and so is the channel.
            shared.bells[1].arm();
            assert!(charter.shared.bells[1].is_armed());
            shared.process_bells[0].arm();
            assert!(charter.shared.process_bells[0].is_armed());
            let is_rung = |bell: &ManagerBell| {
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)).unwrap() > 0
            };
            assert!(is_rung(&charter.shared.manager_bell), "rung before there was anybody to hear it");
            charter.shared.manager_bell.silence();
            assert!(!is_rung(&shared.manager_bell));
            crate::control::send_news(&charter.control, &crate::control::News::Started).unwrap();
            let news = crate::control::Orders::new(ours).next_news().unwrap();
            assert_eq!(news, Some(crate::control::News::Started));
        }
    }

    #[test]
    fn another_layout_is_refused() {
        let file = memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, b"layout = 999\nwhatever = 1\n").unwrap();
        let error = read(file).map(|_| ()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "take over a server: its shared memory has layout 999, this program knows layout {LAYOUT} only"
            )
        );
    }
}
