//! What clients have sent, and what has become of it: whoever does something for a message says so here, and is held
//! against all that was said before.

use std::collections::HashMap;

use crate::crash::Fate;
use crate::session::Session;

use super::tally::{Breach, Kind, Tally, breach};

/// Bytes in front of a packet: its length as framing wants it, its client, its number.
pub(super) const PACKET_HEADER: usize = 12;
/// Bytes in front of a reply: client, packet, which of how many, length.
pub(super) const REPLY_HEADER: usize = 16;

/// What messages are filled with. No two pieces of it look alike.
static PATTERN: [u8; 32 * 1024] = pattern();

const fn pattern() -> [u8; 32 * 1024] {
    let (mut bytes, mut at, mut word) = ([0; 32 * 1024], 0, 0x9e37_79b9_u32);
    while at < bytes.len() {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes[at] = (word >> 24) as u8;
        at += 1;
    }
    bytes
}

/// The filling of a message, by which one can tell it from any other.
fn filling(client: u32, number: u32, part: u16, len: usize) -> &'static [u8] {
    let start = (client * 977 + number * 131 + u32::from(part) * 29) as usize % 8192;
    &PATTERN[start..start + len]
}

/// A message of a client: its connect is number 0, its packets follow, its close is the last.
#[derive(Debug, Default)]
pub(super) struct Item {
    pub(super) size: usize,
    /// Bytes of each reply.
    pub(super) replies: Vec<usize>,
    /// Before which of its replies every worker dies that handles it.
    pub(super) poison: Option<usize>,
    /// It is on a link: from now on it may not be lost but by policy.
    dealt: bool,
    committed: bool,
    /// The client has all replies.
    answered: bool,
    /// Workers that have died on it.
    pub(super) deaths: u32,
    lost: Option<Fate>,
}

impl Item {
    pub(super) fn new(size: usize, replies: Vec<usize>, poison: Option<usize>) -> Item {
        Item { size, replies, poison, ..Item::default() }
    }

    /// Whether it is with a worker, or on its way to one.
    fn is_under_way(&self) -> bool {
        self.dealt && !self.committed && self.lost.is_none()
    }
}

#[derive(Debug)]
struct Client {
    session: Session,
    is_open: bool,
    items: Vec<Item>,
    /// Items before this one were dealt.
    next: usize,
    /// What was committed last, and answered last.
    committed: Option<u32>,
    answered: Option<u32>,
    /// What a reactor has sent it in its present turn.
    received: Vec<u8>,
}

/// Names a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Name {
    pub(super) client: u32,
    pub(super) number: u32,
}

/// The number of a close.
pub(super) const CLOSE: u32 = u32::MAX;

#[derive(Default)]
pub(super) struct Ledger {
    clients: Vec<Client>,
    closes: Vec<Item>,
    by_session: HashMap<Session, u32>,
    /// One worker handles all messages of a client, so in their order.
    ordered: bool,
    /// Who was sent something in the present turn.
    touched: Vec<u32>,
    pub(super) tally: Tally,
}

impl Ledger {
    pub(super) fn new(ordered: bool) -> Ledger {
        Ledger { ordered, ..Ledger::default() }
    }

    pub(super) fn connect(&mut self, session: Session, greeting: Vec<usize>) -> Result<u32, Breach> {
        let client = self.clients.len() as u32;
        if let Some(before) = self.by_session.insert(session, client) {
            return breach(
                Kind::Session,
                format!("{session:?} is given to client {client}, and was {before}'s"),
            );
        }
        self.clients.push(Client {
            session,
            is_open: true,
            items: vec![Item { replies: greeting, ..Item::default() }],
            next: 0,
            committed: None,
            answered: None,
            received: Vec::new(),
        });
        self.closes.push(Item::default());
        self.tally.connections += 1;
        Ok(client)
    }

    pub(super) fn of(&self, session: Session) -> Option<u32> {
        self.by_session.get(&session).copied()
    }

    pub(super) fn item(&mut self, name: Name) -> &mut Item {
        match name.number {
            CLOSE => &mut self.closes[name.client as usize],
            number => &mut self.clients[name.client as usize].items[number as usize],
        }
    }

    /// A client sends a packet, onto the end of `stream`.
    pub(super) fn send(&mut self, client: u32, item: Item, stream: &mut Vec<u8>) {
        let items = &mut self.clients[client as usize].items;
        let number = items.len() as u32;
        stream.extend((item.size as u32 - 4).to_be_bytes());
        stream.extend([client.to_le_bytes(), number.to_le_bytes()].as_flattened());
        stream.extend(filling(client, number, u16::MAX, item.size - PACKET_HEADER));
        items.push(item);
        self.tally.packets += 1;
    }

    /// So many of the client's messages, the next ones, are on a link.
    pub(super) fn dealt(&mut self, client: u32, count: usize) {
        let client = &mut self.clients[client as usize];
        let next = client.next + count;
        client.items[client.next..next].iter_mut().for_each(|item| item.dealt = true);
        client.next = next;
    }

    /// The server has closed the connection; `announced` if its home will hear of it.
    pub(super) fn closed(&mut self, client: u32, announced: bool) {
        self.clients[client as usize].is_open = false;
        self.closes[client as usize].dealt = announced;
    }

    /// What a worker has received as a packet: whose it is, and it is what was sent.
    pub(super) fn read(&mut self, session: Session, packet: &[u8]) -> Result<Name, Breach> {
        let word = |at: usize| {
            packet.get(at..at + 4).map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()))
        };
        let (Some(client), Some(number)) = (word(4), word(8)) else {
            return breach(Kind::Torn, format!("a worker gets {} bytes as a packet", packet.len()));
        };
        if self.of(session) != Some(client) {
            return breach(Kind::Misdelivered, format!("a packet of client {client} comes as {session:?}'s"));
        }
        let known = self.clients[client as usize].items.get(number as usize).filter(|_| number > 0);
        let is_whole = known.is_some_and(|item| {
            item.size == packet.len()
                && packet[PACKET_HEADER..] == *filling(client, number, u16::MAX, item.size - PACKET_HEADER)
        });
        if !is_whole {
            return breach(Kind::Torn, format!("packet {number} of client {client} is not what was sent"));
        }
        Ok(Name { client, number })
    }

    /// The bytes of a reply.
    pub(super) fn reply(&mut self, name: Name, index: usize, into: &mut Vec<u8>) {
        let (count, len) = {
            let replies = &self.item(name).replies;
            (replies.len() as u16, replies[index])
        };
        into.clear();
        into.extend([name.client.to_le_bytes(), name.number.to_le_bytes()].as_flattened());
        into.extend([(index as u16).to_le_bytes(), count.to_le_bytes()].as_flattened());
        into.extend((len as u32).to_le_bytes());
        into.extend(filling(name.client, name.number, index as u16, len - REPLY_HEADER));
    }

    /// A worker's handler has returned, and its commit is published.
    pub(super) fn committed(&mut self, name: Name) -> Result<(), Breach> {
        let item = self.item(name);
        if !item.dealt || item.lost.is_some() {
            return breach(Kind::Duplicated, format!("{name:?} is handled, and was {item:?}"));
        }
        if std::mem::replace(&mut item.committed, true) {
            return breach(Kind::Duplicated, format!("{name:?} is handled twice"));
        }
        self.tally.handled += u64::from(!matches!(name.number, 0 | CLOSE));
        let client = &mut self.clients[name.client as usize];
        let before = client.committed.replace(name.number);
        if self.ordered && before >= Some(name.number) {
            return breach(Kind::Disordered, format!("{name:?} is handled after {before:?}"));
        }
        Ok(())
    }

    /// A worker has died on it, and this is what became of it.
    pub(super) fn lost(&mut self, name: Name, fate: Fate) {
        let item = self.item(name);
        if fate == Fate::Retried {
            self.tally.retried += 1;
            return;
        }
        item.lost = Some(fate);
        match fate {
            Fate::Closed => self.tally.closed += 1,
            Fate::Dropped => self.tally.dropped += 1,
            _ => self.tally.poison += 1,
        }
    }

    /// A reactor sends bytes to the connection of this client.
    pub(super) fn deliver(&mut self, client: u32, bytes: &[u8]) {
        self.clients[client as usize].received.extend_from_slice(bytes);
        if self.touched.last() != Some(&client) {
            self.touched.push(client);
        }
    }

    /// A reactor has taken all that there was: everybody has got whole answers, and his own.
    pub(super) fn check_received(&mut self) -> Result<(), Breach> {
        while let Some(client) = self.touched.pop() {
            let bytes = std::mem::take(&mut self.clients[client as usize].received);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                rest = self.answer(client, rest)?;
            }
            self.clients[client as usize].received = bytes;
            self.clients[client as usize].received.clear();
        }
        Ok(())
    }

    /// Takes the replies to one packet off the front.
    fn answer<'a>(&mut self, client: u32, bytes: &'a [u8]) -> Result<&'a [u8], Breach> {
        let torn = |what: &str| breach(Kind::Torn, format!("client {client} gets {what}"));
        let Some(header) = bytes.first_chunk::<REPLY_HEADER>() else { return torn("a part of a reply") };
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (to, number) = (word(0), word(4));
        if to != client {
            return breach(Kind::Misdelivered, format!("client {client} gets a reply to {number} of {to}"));
        }
        let Some(item) = self.clients[client as usize].items.get_mut(number as usize) else {
            return torn("a reply to nothing");
        };
        let mut rest = bytes;
        let count = item.replies.len() as u32;
        for (index, &len) in (0..).zip(&item.replies) {
            let body = filling(client, number, index, len - REPLY_HEADER);
            let head: Vec<u8> = [to, number, u32::from(index) | count << 16, len as u32]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            let is_whole =
                rest.len() >= len && rest[..REPLY_HEADER] == head && rest[REPLY_HEADER..len] == *body;
            if !is_whole {
                return torn(&format!("{} bytes for reply {index} of {count} to {number}", rest.len()));
            }
            rest = &rest[len..];
        }
        if !item.committed {
            return torn(&format!("replies to {number}, which was not committed"));
        }
        if std::mem::replace(&mut item.answered, true) {
            return breach(Kind::Duplicated, format!("client {client} is answered twice to {number}"));
        }
        self.tally.answered += u64::from(number > 0);
        let before = self.clients[client as usize].answered.replace(number);
        if self.ordered && before >= Some(number) {
            return breach(
                Kind::Disordered,
                format!("client {client} is answered {number} after {before:?}"),
            );
        }
        Ok(rest)
    }

    /// Packets that are with workers, or on their way to them.
    pub(super) fn under_way(&self) -> usize {
        let packets = |client: &Client| client.items[1..].iter().filter(|item| item.is_under_way()).count();
        self.clients.iter().map(packets).sum()
    }

    /// Nothing is under way any more: whatever was dealt is done or lost by policy, and whoever is there has all his
    /// answers.
    pub(super) fn check_done(&self) -> Result<(), Breach> {
        for (number, client) in self.clients.iter().enumerate() {
            let lost = |what: &str, item: &dyn std::fmt::Debug| {
                let session = client.session;
                breach(Kind::Lost, format!("{what} of client {number} ({session:?}): {item:?}"))
            };
            if client.is_open && client.next < client.items.len() {
                return lost("never taken: a message", &client.items[client.next]);
            }
            let close = &self.closes[number];
            if let Some(item) = client.items.iter().chain([close]).find(|item| item.is_under_way()) {
                return lost("never done: a message", item);
            }
            let owed = |item: &&Item| item.committed && !item.answered && !item.replies.is_empty();
            if let Some(item) = client.items.iter().find(owed).filter(|_| client.is_open) {
                return lost("never answered: a message", item);
            }
        }
        Ok(())
    }
}
