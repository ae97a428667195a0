//! A rate limiter: so many requests of one address in so many seconds, whichever workers they meet.
//!
//! Try `nc 127.0.0.1 9503` in several terminals: they share one allowance, because all workers count in one table. Killing
//! workers (`pkill -9 -f 'swoole: worker'`) gives nobody a new one.
//!
//! The table is made before the server runs, so that all processes have it by the fork. (If the *manager* dies, this program
//! is executed once more to replace it, and makes another table: the workers that are forked from then on begin anew.)

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use swoole_server::{Error, Handler, Result, Server, Session, TimerId, Worker};
use swoole_table::{Options, Row, Table};

const REQUESTS: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);
/// Addresses that are kept in mind at a time.
const ADDRESSES: usize = 100_000;

/// What an address has asked for.
#[derive(Row)]
struct Client {
    /// When the period began, milliseconds since the Unix epoch.
    since: u64,
    requests: u32,
}

struct Limiter {
    clients: Table<Client>,
}

impl Limiter {
    /// Which request of its period this one is.
    fn count(&self, address: IpAddr) -> Result<u32, swoole_table::Error> {
        let now = now();
        self.clients.upsert(key(address), Client { since: now, requests: 0 }, |client| {
            if is_over(client, now) {
                *client = Client { since: now, requests: 0 };
            }
            client.requests = client.requests.saturating_add(1);
            client.requests
        })
    }
}

impl Handler for Limiter {
    fn on_worker_start(&mut self, worker: &mut Worker) -> Result<()> {
        // One is enough to forget those who have not come back.
        if worker.id() == 0 {
            worker.tick(PERIOD)?;
        }
        Ok(())
    }

    fn on_receive(&mut self, worker: &mut Worker, client: Session, _: &[u8]) -> Result<()> {
        let Some(peer) = worker.session(client)?.peer else {
            return Err("a client without an address".into());
        };
        let count = match self.count(peer.ip()) {
            Ok(count) => count,
            // Better too many requests than none.
            Err(swoole_table::Error::Full { .. }) => 1,
            Err(error) => return Err(Error::other(error)),
        };
        if count > REQUESTS {
            return worker.send(client, b"refused: too many requests\n");
        }
        worker.send(client, format!("request {count} of {REQUESTS}\n").as_bytes())
    }

    fn on_timer(&mut self, _: &mut Worker, _: TimerId) -> Result<()> {
        let now = now();
        for row in &self.clients {
            let (key, client) = row.map_err(Error::other)?;
            if is_over(&client, now) {
                // It may have come back this moment.
                self.clients.remove_if(key, |client| is_over(client, now)).map_err(Error::other)?;
            }
        }
        Ok(())
    }
}

fn is_over(client: &Client, now: u64) -> bool {
    now.saturating_sub(client.since) >= PERIOD.as_millis() as u64
}

fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn main() -> Result<()> {
    let options = Options::new(ADDRESSES).key_max(16).name("clients");
    let clients = Table::with(&options).map_err(Error::other)?;
    Server::listen("tcp://127.0.0.1:9503")?.worker_num(4).run(Limiter { clients })
}
