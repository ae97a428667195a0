//! Sends every client what it sends. Try `nc 127.0.0.1 9501`.

use swoole_server::{Handler, Result, Server, Session, Worker};

struct Echo;

impl Handler for Echo {
    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        worker.send(client, packet)
    }
}

fn main() -> Result<()> {
    Server::listen("tcp://127.0.0.1:9501")?.worker_num(4).run(Echo)
}
