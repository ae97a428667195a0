//! What the testbed's processes write to each other, and what they do when something has come.
//!
//! | message | what the process does that gets it |
//! |---|---|
//! | `send SESSION TEXT`, `close SESSION` | to that client |
//! | `sendto LISTENER ADDRESS TEXT` | a datagram, as the packet of that name |
//! | `sleep MS`, `crash HOW` | as the packets of that name |
//! | `pass PEER TEXT` | sends TEXT to that one |
//! | `number N BYTES...` | counts it, and looks whether it is the one that had to come |
//! | `tally SESSION` | tells that client what it has counted: `tally PEER=COUNT,... wrong=COUNT` |
//! | anything else | prints `on_pipe_message worker=ID from=PEER TEXT` |

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use swoole_server::{DatagramClient, Error, Peer, Result, Session, TaskWorker, UserProcess, Worker};

use super::command::{Crash, split_word};

/// What workers, task workers and user processes have in common.
pub(crate) trait Role {
    fn name(&self) -> String;
    fn send(&mut self, session: Session, bytes: &[u8]) -> Result<()>;
    fn close(&mut self, session: Session) -> Result<()>;
    fn send_to(&mut self, to: &DatagramClient, bytes: &[u8]) -> Result<()>;
    fn send_message(&mut self, to: Peer, message: &[u8]) -> Result<()>;
}

macro_rules! role {
    ($role:ty, $name:literal) => {
        impl Role for $role {
            fn name(&self) -> String {
                format!(concat!($name, "={}"), self.id())
            }

            fn send(&mut self, session: Session, bytes: &[u8]) -> Result<()> {
                self.send(session, bytes)
            }

            fn close(&mut self, session: Session) -> Result<()> {
                self.close(session)
            }

            fn send_to(&mut self, to: &DatagramClient, bytes: &[u8]) -> Result<()> {
                self.send_to(to, bytes)
            }

            fn send_message(&mut self, to: Peer, message: &[u8]) -> Result<()> {
                self.send_message(to, message)
            }
        }
    };
}
role!(Worker<'_>, "worker");
role!(TaskWorker<'_>, "task");
role!(UserProcess, "process");

/// What this process has written and got.
#[derive(Default)]
pub(crate) struct Messages {
    /// The number of the next one to each.
    numbers: HashMap<Peer, u64>,
    /// How many have come of each, and the number that has to come next.
    came: BTreeMap<Peer, (u64, u64)>,
    wrong: u64,
}

impl Messages {
    /// Sends so many numbered ones of so many bytes, or as many as are taken: how many.
    pub(crate) fn flood(&mut self, role: &mut impl Role, to: Peer, count: u64, bytes: usize) -> Result<u64> {
        let number = self.numbers.entry(to).or_default();
        let filling = "m".repeat(bytes);
        for sent in 0..count {
            match role.send_message(to, format!("number {number} {filling}").as_bytes()) {
                Ok(()) => *number += 1,
                Err(Error::PeerFull { .. }) => return Ok(sent),
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Does what a message says.
    pub(crate) fn came(
        &mut self,
        role: &mut impl Role,
        (from, message): (Peer, &[u8]),
        line_end: &[u8],
    ) -> Result<()> {
        let (word, rest) = split_word(message);
        let (first, text) = split_word(rest);
        let session = || std::str::from_utf8(first)?.parse::<Session>().map_err(Error::other);
        let number = || -> Result<u64> { Ok(std::str::from_utf8(first)?.parse()?) };
        match word {
            b"send" => role.send(session()?, &[text, line_end].concat()),
            b"close" => role.close(session()?),
            b"sendto" => {
                let (to, text) = super::datagrams::parse(rest).ok_or("sendto LISTENER ADDRESS TEXT")?;
                role.send_to(&to, text)
            }
            b"pass" => {
                let to = parse_peer(first).ok_or("pass PEER TEXT")?;
                role.send_message(to, text)
            }
            b"sleep" => {
                std::thread::sleep(Duration::from_millis(number()?));
                Ok(())
            }
            b"crash" => super::crash(Crash::parse(rest)?),
            b"number" => {
                let number = number()?;
                let (count, next) = self.came.entry(from).or_default();
                // A sender that has died begins anew, and a receiver begins with whatever comes.
                let is_next = number == *next || number == 0 || *count == 0;
                let is_whole = text.iter().all(|byte| *byte == b'm');
                self.wrong += u64::from(!is_next || !is_whole);
                (*count, *next) = (*count + 1, number + 1);
                Ok(())
            }
            b"tally" => {
                let of = |(peer, (count, _)): (&Peer, &(u64, u64))| format!("{peer}={count}");
                let counts: Vec<String> = self.came.iter().map(of).collect();
                let line = format!("tally {} wrong={}", counts.join(","), self.wrong);
                role.send(session()?, &[line.as_bytes(), line_end].concat())
            }
            _ => {
                let text = String::from_utf8_lossy(message);
                super::say(format!("on_pipe_message {} from={from} {text}", role.name()))
            }
        }
    }
}

/// `3` is a worker, `t3` a task worker, `p3` a user process.
pub(crate) fn parse_peer(text: &[u8]) -> Option<Peer> {
    let text = std::str::from_utf8(text).ok()?;
    let id = |prefix| text.strip_prefix(prefix).and_then(|id| id.parse().ok());
    let other = id('t').map(Peer::TaskWorker).or_else(|| id('p').map(Peer::UserProcess));
    other.or_else(|| text.parse().ok().map(Peer::Worker))
}
