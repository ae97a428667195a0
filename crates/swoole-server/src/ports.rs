//! A handler for each address.

use std::collections::HashMap;

use crate::config::Listen;
use crate::datagram::DatagramClient;
use crate::error::{Error, Result};
use crate::handler::{Handler, Manager, Master, WorkerError};
use crate::post::Peer;
use crate::session::Session;
use crate::task::{TaskId, TaskResult, TaskWorker};
use crate::worker::{TimerId, Worker};

/// One [`Handler`] for the server, and others for clients who come by certain addresses.
///
/// An address says what it is called, `tcp://127.0.0.1:9502?name=admin` ([`Listen::name`]); several may have one name. What
/// its clients do is told to the handler of that name, everything else to the main one.
///
/// ```no_run
/// use swoole_server::{Config, Error, Handler, Ports, Result, Server, Session, Worker};
///
/// struct Echo;
/// struct Admin;
///
/// impl Handler for Echo {
///     fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
///         worker.send(client, packet)
///     }
/// }
///
/// impl Handler for Admin {
///     fn on_receive(&mut self, worker: &mut Worker, client: Session, _: &[u8]) -> Result<()> {
///         let stats = worker.stats().to_json();
///         worker.send(client, (stats + "\n").as_bytes())
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let mut config = Config::default();
/// for address in ["tcp://127.0.0.1:9501", "tcp://127.0.0.1:9502?framing=line&name=admin"] {
///     config.listen.push(address.parse().map_err(Error::other)?);
/// }
/// Server::new(config).run(Ports::new(Echo).port("admin", Admin))
/// # }
/// ```
///
/// | callback | who is called |
/// |---|---|
/// | [`on_connect`](Handler::on_connect), [`on_receive`](Handler::on_receive), [`on_packet`](Handler::on_packet), [`on_buffer_full`](Handler::on_buffer_full), [`on_buffer_empty`](Handler::on_buffer_empty), [`on_close`](Handler::on_close) | the handler of the client's address |
/// | [`on_worker_start`](Handler::on_worker_start), [`on_worker_stop`](Handler::on_worker_stop) | all, at the start the main one first, at the stop last |
/// | everything else: timers, tasks, messages, the callbacks of other processes | the main one, whoever has asked for it |
///
/// All of them are in the same processes: which worker gets a packet, [`dispatch_mode`](crate::Config::dispatch_mode) says,
/// and not the address. A name that no address has is an error at the start, so that nobody waits for clients who cannot
/// come; unless a [reload](crate::Server::reload_config) may bring such an address. Swoole: callbacks of a `Server\Port`.
///
/// The close of a client who had connected to another process of this worker, one that is dead by now, is told to the main
/// handler if the client's place has been taken meanwhile: nobody knows then by which address it had come.
pub struct Ports<H> {
    main: H,
    ports: Vec<(String, Box<dyn Handler>)>,
    routes: Routes,
}

/// Whose clients are whose; handlers by their index, `None` for the main one.
#[derive(Default)]
struct Routes {
    by_listener: Vec<Option<usize>>,
    /// Who has connected here and is not the main one's: when they have left, their place may be somebody else's.
    clients: HashMap<Session, usize>,
}

impl Routes {
    fn new(addresses: &[Listen], ports: &[(String, Box<dyn Handler>)]) -> Routes {
        let port = |listen: &Listen| ports.iter().position(|(name, _)| listen.name.as_ref() == Some(name));
        Routes { by_listener: addresses.iter().map(port).collect(), clients: HashMap::new() }
    }

    fn connected(&mut self, session: Session, listener: Option<u16>) -> Option<usize> {
        let port = self.of(session, listener)?;
        self.clients.insert(session, port);
        Some(port)
    }

    /// `listener`: by which the session came in, if it is not forgotten.
    fn of(&self, session: Session, listener: Option<u16>) -> Option<usize> {
        match listener {
            Some(listener) => *self.by_listener.get(usize::from(listener))?,
            None => self.clients.get(&session).copied(),
        }
    }

    fn closed(&mut self, session: Session, listener: Option<u16>) -> Option<usize> {
        self.clients.remove(&session).or_else(|| self.of(session, listener))
    }
}

/// By which address it has come, if its place is still its own.
fn listener(worker: &Worker, session: Session) -> Option<u16> {
    worker.duty.shared.sessions.listener(session)
}

impl<H: Handler> Ports<H> {
    /// This handler for everything.
    pub fn new(main: H) -> Ports<H> {
        Ports { main, ports: Vec::new(), routes: Routes::default() }
    }

    /// And that one for the clients of the addresses of this name. It is in place of another one that has had the name.
    #[must_use]
    pub fn port(mut self, name: &str, handler: impl Handler + 'static) -> Ports<H> {
        self.ports.retain(|(known, _)| known != name);
        self.ports.push((name.into(), Box::new(handler)));
        self
    }

    fn handler(&mut self, port: Option<usize>) -> &mut dyn Handler {
        match port.and_then(|port| self.ports.get_mut(port)) {
            Some((_, handler)) => handler.as_mut(),
            None => &mut self.main,
        }
    }
}

impl<H: Handler> Handler for Ports<H> {
    fn on_start(&mut self, master: &mut Master) -> Result<()> {
        let is_there =
            |name: &String| master.addresses().iter().any(|listen| listen.name.as_ref() == Some(name));
        if let Some((name, _)) = self.ports.iter().find(|(name, _)| !is_there(name)) {
            let missing = format!("no address has the name {name} (tcp://...?name={name})");
            if !master.shared().rereads {
                return Err(Error::Start(missing));
            }
            tracing::info!("{missing} yet");
        }
        self.main.on_start(master)
    }

    fn on_worker_start(&mut self, worker: &mut Worker) -> Result<()> {
        self.routes = Routes::new(&worker.addresses(), &self.ports);
        self.main.on_worker_start(worker)?;
        self.ports.iter_mut().try_for_each(|(_, handler)| handler.on_worker_start(worker))
    }

    fn on_worker_stop(&mut self, worker: &mut Worker) -> Result<()> {
        // Each has something to put away, whatever became of the others.
        let results: Vec<_> =
            self.ports.iter_mut().map(|(_, handler)| handler.on_worker_stop(worker)).collect();
        let main = self.main.on_worker_stop(worker);
        results.into_iter().chain([main]).collect()
    }

    fn on_connect(&mut self, worker: &mut Worker, session: Session) -> Result<()> {
        let port = self.routes.connected(session, listener(worker, session));
        self.handler(port).on_connect(worker, session)
    }

    fn on_receive(&mut self, worker: &mut Worker, session: Session, packet: &[u8]) -> Result<()> {
        let port = self.routes.of(session, listener(worker, session));
        self.handler(port).on_receive(worker, session, packet)
    }

    fn on_close(&mut self, worker: &mut Worker, session: Session) -> Result<()> {
        let port = self.routes.closed(session, listener(worker, session));
        self.handler(port).on_close(worker, session)
    }

    fn on_buffer_full(&mut self, worker: &mut Worker, session: Session) -> Result<()> {
        let port = self.routes.of(session, listener(worker, session));
        self.handler(port).on_buffer_full(worker, session)
    }

    fn on_buffer_empty(&mut self, worker: &mut Worker, session: Session) -> Result<()> {
        let port = self.routes.of(session, listener(worker, session));
        self.handler(port).on_buffer_empty(worker, session)
    }

    fn on_packet(&mut self, worker: &mut Worker, from: &DatagramClient, packet: &[u8]) -> Result<()> {
        let port = self.routes.by_listener.get(usize::from(from.listener)).copied().flatten();
        self.handler(port).on_packet(worker, from, packet)
    }

    fn on_ready(&mut self, master: &mut Master) -> Result<()> {
        self.main.on_ready(master)
    }

    fn on_before_shutdown(&mut self, master: &mut Master) -> Result<()> {
        self.main.on_before_shutdown(master)
    }

    fn on_shutdown(&mut self, master: &mut Master) -> Result<()> {
        self.main.on_shutdown(master)
    }

    fn on_manager_start(&mut self, manager: &mut Manager) -> Result<()> {
        self.main.on_manager_start(manager)
    }

    fn on_manager_stop(&mut self, manager: &mut Manager) -> Result<()> {
        self.main.on_manager_stop(manager)
    }

    fn on_worker_error(&mut self, manager: &mut Manager, error: &WorkerError) -> Result<()> {
        self.main.on_worker_error(manager, error)
    }

    fn on_before_reload(&mut self, manager: &mut Manager) -> Result<()> {
        self.main.on_before_reload(manager)
    }

    fn on_after_reload(&mut self, manager: &mut Manager) -> Result<()> {
        self.main.on_after_reload(manager)
    }

    fn on_worker_exit(&mut self, worker: &mut Worker) -> Result<()> {
        self.main.on_worker_exit(worker)
    }

    fn on_timer(&mut self, worker: &mut Worker, timer: TimerId) -> Result<()> {
        self.main.on_timer(worker, timer)
    }

    fn on_finish(&mut self, worker: &mut Worker, task: TaskId, result: TaskResult) -> Result<()> {
        self.main.on_finish(worker, task, result)
    }

    fn on_pipe_message(&mut self, worker: &mut Worker, from: Peer, message: &[u8]) -> Result<()> {
        self.main.on_pipe_message(worker, from, message)
    }

    fn on_task_worker_pipe_message(
        &mut self,
        worker: &mut TaskWorker,
        from: Peer,
        message: &[u8],
    ) -> Result<()> {
        self.main.on_task_worker_pipe_message(worker, from, message)
    }

    fn on_task_worker_start(&mut self, worker: &mut TaskWorker) -> Result<()> {
        self.main.on_task_worker_start(worker)
    }

    fn on_task_worker_timer(&mut self, worker: &mut TaskWorker, timer: TimerId) -> Result<()> {
        self.main.on_task_worker_timer(worker, timer)
    }

    fn on_task_worker_exit(&mut self, worker: &mut TaskWorker) -> Result<()> {
        self.main.on_task_worker_exit(worker)
    }

    fn on_task_worker_stop(&mut self, worker: &mut TaskWorker) -> Result<()> {
        self.main.on_task_worker_stop(worker)
    }

    fn on_task(&mut self, worker: &mut TaskWorker, task: TaskId, payload: &[u8]) -> Result<Vec<u8>> {
        self.main.on_task(worker, task, payload)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::shared::Shared;

    struct Nothing;

    impl Handler for Nothing {
        fn on_receive(&mut self, _: &mut Worker, _: Session, _: &[u8]) -> Result<()> {
            Ok(())
        }
    }

    /// The main one's, two of `a`, one of `b`.
    fn routes() -> Routes {
        let addresses =
            ["unix:///0", "unix:///1?name=a", "unix:///2?name=b", "unix:///3?name=a", "unix:///4?name=c"];
        let addresses = addresses.map(|address| address.parse().unwrap());
        let ports = Ports::new(Nothing).port("b", Nothing).port("a", Nothing).port("b", Nothing).ports;
        Routes::new(&addresses, &ports)
    }

    #[test]
    fn a_name_that_no_address_has_is_refused_unless_one_may_come() {
        let listen = vec!["tcp://127.0.0.1:0?name=a".parse().unwrap()];
        let config = Config { listen, worker_num: 1, reactor_num: 1, ..Config::default() };
        let (mut shared, _links, _hold) = Shared::create_for_test(config).unwrap();
        shared.rereads = true;
        let mut shared = Arc::new(shared);
        let start = |shared: &Arc<Shared>, name: &str| {
            let started =
                Ports::new(Nothing).port(name, Nothing).on_start(&mut Master::new(Arc::clone(shared)));
            started.map_err(|error| error.to_string())
        };
        assert_eq!(start(&shared, "b"), Ok(()));
        Arc::get_mut(&mut shared).unwrap().rereads = false;
        assert_eq!(start(&shared, "a"), Ok(()));
        assert!(start(&shared, "b").unwrap_err().contains("no address has the name b (tcp://...?name=b)"));
    }

    #[test]
    fn a_client_is_of_the_handler_that_its_address_names() {
        let routes = routes();
        let of = |listener| routes.of(Session::from_raw(7), Some(listener));
        assert_eq!([0, 1, 2, 3, 4, 5].map(of), [None, Some(0), Some(1), Some(0), None, None]);
    }

    #[test]
    fn a_client_that_has_left_is_still_known_until_its_close_is_told() {
        let mut routes = routes();
        let (client, main) = (Session::from_raw(7), Session::from_raw(8));
        assert_eq!(routes.connected(client, Some(2)), Some(1));
        assert_eq!(routes.connected(main, Some(0)), None);
        // Somebody else has its place.
        assert_eq!(routes.of(client, None), Some(1));
        assert_eq!(routes.closed(client, None), Some(1));
        assert_eq!(routes.closed(main, None), None);
        assert!(routes.clients.is_empty());
        // One that another process has been told of.
        assert_eq!(routes.closed(client, Some(3)), Some(0));
        assert_eq!(routes.closed(client, None), None);
    }
}
