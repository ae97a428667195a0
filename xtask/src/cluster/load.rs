//! Steady traffic beside a scenario, in which every request must be answered exactly once.

use super::client::{Address, Client, Closed};
use super::proc;
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Requests that a client sends before it reads replies.
const PIPELINE: u64 = 16;

pub(super) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<u64>>>,
}

/// What the traffic came to.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    /// Requests that got their reply.
    pub(super) answered: u64,
    /// Connections that the server closed, each with its open requests. Their clients have come back with a new one.
    pub(super) cut: u64,
}

impl Load {
    /// Starts this many clients, each on a thread and a connection of its own.
    pub(super) fn start(address: &Address, clients: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let clients = (0..clients).map(|client| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let (address, mut connection) = (address.clone(), Client::connect(address)?);
            let work = move || {
                let (mut round, mut cut) = (0_u64, 0);
                loop {
                    let last = stop.load(Ordering::Relaxed);
                    let done = if last {
                        no_more(&mut connection)
                    } else {
                        exchange(&mut connection, client, round)
                    };
                    match done.with_context(|| format!("load client {client}, round {round}")) {
                        Ok(()) if last => return Ok(cut),
                        Ok(()) => _ = answered.fetch_add(PIPELINE, Ordering::Relaxed),
                        Err(error) if error.downcast_ref::<Closed>().is_some() => {
                            cut += 1;
                            connection = Client::connect(&address)?;
                        }
                        Err(error) => return Err(error),
                    }
                    round += 1;
                }
            };
            Ok(std::thread::spawn(work))
        });
        let clients = clients.collect::<Result<_>>()?;
        Ok(Self { stop, answered, clients })
    }

    /// Waits until this many more requests have been answered, or until a client has failed.
    pub(super) fn wait_more(&self, count: u64) -> Result<()> {
        let goal = self.answered.load(Ordering::Relaxed) + count;
        proc::until(&format!("{count} more replies under load"), Duration::from_secs(30), || {
            let failed = self.clients.iter().any(JoinHandle::is_finished);
            (failed || self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        })
    }

    /// Ends the traffic. A reply that never came, came twice or answers nothing is an error.
    pub(super) fn finish(mut self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        let mut cut = 0;
        for client in self.clients.drain(..) {
            cut += client.join().map_err(|_| anyhow!("a load client panicked"))??;
        }
        Ok(Outcome { answered: self.answered.load(Ordering::Relaxed), cut })
    }

    /// Ends traffic of which nothing may have been lost, not even a connection.
    pub(super) fn finish_unharmed(self) -> Result<()> {
        let outcome = self.finish()?;
        ensure!(outcome.cut == 0, "the server closed connections under load: {outcome:?}");
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends a pipeline of distinct packets and reads one reply to each, in any order: several workers may share them.
fn exchange(connection: &mut Client, client: u32, round: u64) -> Result<()> {
    let texts: Vec<String> = (0..PIPELINE).map(|index| format!("{client}.{round}.{index}")).collect();
    let packets: String = texts.iter().map(|text| format!("echo {text}\n")).collect();
    connection.send(packets.as_bytes())?;
    let mut open: BTreeSet<String> = texts.into_iter().collect();
    while !open.is_empty() {
        let reply =
            connection.line().with_context(|| format!("{} of {PIPELINE} requests unanswered", open.len()))?;
        ensure!(open.remove(&reply), "the reply {reply:?} answers nothing open: {open:?}");
    }
    Ok(())
}

/// After one last question nothing else may come: a late second answer would come before it.
fn no_more(connection: &mut Client) -> Result<()> {
    connection.expect("echo last", "last")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    /// A server that answers each line with what `reply` makes of it.
    fn serve(reply: fn(&str) -> String) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                // The client may be gone already: its verdict is what counts.
                let _ = writer.write_all(reply(line.strip_prefix("echo ").unwrap()).as_bytes());
            }
        });
        address
    }

    #[test]
    fn honest_answers_pass() {
        let load = Load::start(&serve(|text| format!("{text}\n")), 1).unwrap();
        load.wait_more(100).unwrap();
        let outcome = load.finish().unwrap();
        assert!(outcome.answered >= 100 && outcome.cut == 0, "{outcome:?}");
    }

    #[test]
    fn a_repeated_answer_is_found() {
        let twice =
            |text: &str| if text == "0.3.5" { format!("{text}\n{text}\n") } else { format!("{text}\n") };
        let load = Load::start(&serve(twice), 1).unwrap();
        load.wait_more(100).unwrap();
        let error = format!("{:#}", load.finish().unwrap_err());
        assert!(error.contains("0.3.5"), "{error}");
    }

    #[test]
    fn a_cut_connection_is_counted_and_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let honest = serve(|text| format!("{text}\n"));
        let Address::Tcp(honest) = honest else { unreachable!("it is a TCP address") };
        std::thread::spawn(move || {
            // The first one is closed in the middle of its requests, the second goes to who answers.
            drop(listener.accept().unwrap());
            let (mut client, _) = listener.accept().unwrap();
            let mut server = std::net::TcpStream::connect(honest).unwrap();
            let (mut replies, mut requester) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut replies, &mut requester));
            std::io::copy(&mut client, &mut server)
        });
        let load = Load::start(&address, 1).unwrap();
        load.wait_more(100).unwrap();
        assert_eq!(load.finish().unwrap().cut, 1);
    }
}
