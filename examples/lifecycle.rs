//! Who sees what: a fork copies the parent's state, and from then on processes share none.
//!
//! Each callback prints the state that its process has, and then changes it. Run it, and in another terminal
//! `kill -USR1 MASTER` (reload), then `kill -TERM MASTER` (stop):
//!
//! - The first worker sees neither the master's nor the manager's changes: it was forked before any callback ran.
//! - The second worker, forked at the reload by the manager, sees the manager's.
//! - Nobody ever sees the master's or a worker's but they themselves.

use swoole_server::{Handler, Manager, Master, Result, Server, Session, Worker};

struct Lifecycle {
    base: String,
    master_to_manager: String,
    manager_to_worker: String,
}

impl Lifecycle {
    fn print_all(&self, callback: &str) {
        let Lifecycle { base, master_to_manager, manager_to_worker } = self;
        println!(
            "{callback} base={base:?} master_to_manager={master_to_manager:?} manager_to_worker={manager_to_worker:?}"
        );
    }
}

impl Handler for Lifecycle {
    fn on_start(&mut self, _: &mut Master) -> Result<()> {
        println!("on_start base={:?}", self.base);
        self.base = "changed by master".into();
        self.master_to_manager = "from master".into();
        Ok(())
    }

    fn on_manager_start(&mut self, _: &mut Manager) -> Result<()> {
        println!("on_manager_start base={:?} master_to_manager={:?}", self.base, self.master_to_manager);
        self.base = "changed by manager".into();
        self.master_to_manager = "changed by manager".into();
        self.manager_to_worker = "from manager".into();
        Ok(())
    }

    fn on_worker_start(&mut self, _: &mut Worker) -> Result<()> {
        self.print_all("on_worker_start");
        self.master_to_manager = "changed by worker".into();
        self.manager_to_worker = "changed by worker".into();
        Ok(())
    }

    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        worker.send(client, packet)
    }

    fn on_worker_stop(&mut self, _: &mut Worker) -> Result<()> {
        self.print_all("on_worker_stop");
        Ok(())
    }

    fn on_manager_stop(&mut self, _: &mut Manager) -> Result<()> {
        self.print_all("on_manager_stop");
        Ok(())
    }

    fn on_shutdown(&mut self, _: &mut Master) -> Result<()> {
        self.print_all("on_shutdown");
        Ok(())
    }
}

fn main() -> Result<()> {
    let lifecycle = Lifecycle {
        base: "set before start".into(),
        master_to_manager: String::new(),
        manager_to_worker: String::new(),
    };
    Server::listen("tcp://127.0.0.1:0")?.worker_num(1).run(lifecycle)
}
