//! What clients have sent, and what has become of it: whoever does something for a message says so here, and is held
//! against all that was said before.

use std::collections::HashMap;

use crate::crash::Fate;
use crate::session::Session;

use super::tally::{Breach, Kind, Tally, breach};

/// Bytes in front of a packet: its length as framing wants it, its client, its number.
pub(super) const PACKET_HEADER: usize = 12;
/// Bytes in front of a reply: client, packet, which of how many, length. In front of a note: to which client, [`NOTE`] and
/// from which one, which of them and about which packet, length.
pub(super) const REPLY_HEADER: usize = 16;
/// No packet has such a number.
const NOTE: u32 = 1 << 31;

/// What messages are filled with. No two pieces of it look alike.
static PATTERN: [u8; 64 * 1024] = pattern();

const fn pattern() -> [u8; 64 * 1024] {
    let (mut bytes, mut at, mut word) = ([0; 64 * 1024], 0, 0x9e37_79b9_u32);
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

/// What a handler does for a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// Sends its client reply number so much.
    Reply(u16),
    /// Sends somebody note number so much.
    Note(u16),
    /// Lets out what it has sent so far.
    Flush,
    /// Binds its client to this user.
    Bind(u64),
}

/// What a client has a worker tell another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) to: u32,
    pub(super) session: Session,
    size: usize,
    /// How often it was committed, which is once but for workers that die in their commit; and how often it has come.
    sent: u32,
    come: u32,
}

/// A message of a client: its connect is number 0, its packets follow, its close is the last.
#[derive(Debug, Default)]
pub(super) struct Item {
    pub(super) size: usize,
    /// Bytes of each reply.
    pub(super) replies: Vec<usize>,
    pub(super) notes: Vec<Note>,
    /// What its handler does, in this order.
    pub(super) acts: Vec<Act>,
    /// Before which of them every worker dies that handles it.
    pub(super) poison: Option<usize>,
    /// It is on a link: from now on it may not be lost but by policy.
    dealt: bool,
    committed: bool,
    /// How many replies are let out, and were each time that some were; and how many the client has.
    out: usize,
    flushed: Vec<usize>,
    come: usize,
    /// Workers that have died on it.
    pub(super) deaths: u32,
    lost: Option<Fate>,
}

impl Item {
    pub(super) fn new(size: usize, poison: Option<usize>) -> Item {
        Item { size, poison, ..Item::default() }
    }

    /// Its handler sends so many bytes back.
    pub(super) fn reply(&mut self, size: usize) {
        self.acts.push(Act::Reply(self.replies.len() as u16));
        self.replies.push(size);
    }

    pub(super) fn flush(&mut self) {
        self.acts.push(Act::Flush);
    }

    pub(super) fn bind(&mut self, uid: u64) {
        self.acts.push(Act::Bind(uid));
    }

    /// Whether the client has all that there is, or all that was let out at some time.
    fn is_whole(&self) -> bool {
        self.come == self.replies.len() || self.flushed.contains(&self.come)
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

/// What a reply consists of, and what a note does.
fn reply(Name { client, number }: Name, index: u16, sizes: &[usize]) -> ([u8; REPLY_HEADER], &'static [u8]) {
    let (count, size) = (sizes.len() as u32, sizes[usize::from(index)]);
    let header = bytes([client, number, u32::from(index) | count << 16, size as u32]);
    (header, filling(client, number, index, size - REPLY_HEADER))
}

fn note(Name { client, number }: Name, index: u16, note: &Note) -> ([u8; REPLY_HEADER], &'static [u8]) {
    let header = bytes([note.to, client | NOTE, u32::from(index) | number << 16, note.size as u32]);
    (header, filling(client, number, index | 1 << 12, note.size - REPLY_HEADER))
}

fn bytes(words: [u32; 4]) -> [u8; REPLY_HEADER] {
    let mut bytes = [0; REPLY_HEADER];
    bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
    bytes
}

fn words(header: &[u8; REPLY_HEADER]) -> [u32; 4] {
    let mut words = [0; 4];
    words.iter_mut().zip(header.as_chunks().0).for_each(|(to, word)| *to = u32::from_le_bytes(*word));
    words
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

    pub(super) fn connect(&mut self, session: Session, greeting: Item) -> Result<u32, Breach> {
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
            items: vec![greeting],
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

    /// How many clients there have been.
    pub(super) fn clients(&self) -> u32 {
        self.clients.len() as u32
    }

    /// The handler of this message sends so many bytes to a client, who may have left by then, or before.
    pub(super) fn note(&self, item: &mut Item, to: u32, size: usize) {
        let session = self.clients[to as usize].session;
        item.acts.push(Act::Note(item.notes.len() as u16));
        item.notes.push(Note { to, session, size, sent: 0, come: 0 });
    }

    /// So many of the client's messages, the next ones, are on a link.
    pub(super) fn dealt(&mut self, client: u32, count: usize) {
        let client = &mut self.clients[client as usize];
        let next = client.next + count;
        client.items[client.next..next].iter_mut().for_each(|item| item.dealt = true);
        client.next = next;
    }

    /// The client's next message is given to nobody, as the rule wants it.
    pub(super) fn passed_over(&mut self, client: u32) {
        self.clients[client as usize].next += 1;
        self.tally.passed_over += 1;
    }

    /// A worker takes a message in hand: a connect comes before all packets, and a close after them.
    pub(super) fn check_turn(&self, name: Name) -> Result<(), Breach> {
        let Name { client, number } = name;
        let (greeting, close) = (&self.clients[client as usize].items[0], &self.closes[client as usize]);
        let too_early = match number {
            0 => None,
            CLOSE => self.clients[client as usize].items.iter().find(|item| item.is_under_way()),
            _ => Some(greeting).filter(|item| item.is_under_way()),
        };
        if let Some(item) = too_early {
            return breach(Kind::Disordered, format!("{name:?} is begun before {item:?}"));
        }
        if number != CLOSE && (close.committed || close.lost.is_some()) {
            return breach(Kind::Disordered, format!("{name:?} is begun after the close"));
        }
        Ok(())
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

    /// The bytes of what a handler sends.
    pub(super) fn compose(&mut self, name: Name, act: Act, into: &mut Vec<u8>) {
        let Name { client, number } = name;
        let item = self.item(name);
        let (head, body) = match act {
            Act::Reply(index) => reply(name, index, &item.replies),
            Act::Note(index) => note(name, index, &item.notes[usize::from(index)]),
            Act::Flush | Act::Bind(_) => unreachable!("client {client} is sent nothing by it in {number}"),
        };
        into.clear();
        into.extend(head);
        into.extend(body);
    }

    /// What a handler has sent can be taken by reactors from now on.
    pub(super) fn let_out(&mut self, name: Name, acts: impl Iterator<Item = Act>) {
        let item = self.item(name);
        for act in acts {
            match act {
                Act::Reply(index) => item.out = usize::from(index) + 1,
                Act::Note(note) => item.notes[usize::from(note)].sent += 1,
                Act::Flush | Act::Bind(_) => {}
            }
        }
        if item.flushed.last() != Some(&item.out) {
            item.flushed.push(item.out);
        }
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
            let (mut rest, mut answered) = (&bytes[..], None);
            while !rest.is_empty() {
                rest = self.take(client, rest, &mut answered)?;
            }
            self.check_whole(client, answered)?;
            self.clients[client as usize].received = bytes;
            self.clients[client as usize].received.clear();
        }
        Ok(())
    }

    /// Takes a reply or a note off the front. `answered` is which message the last reply was to.
    fn take<'a>(
        &mut self,
        client: u32,
        bytes: &'a [u8],
        answered: &mut Option<u32>,
    ) -> Result<&'a [u8], Breach> {
        let torn = |what: &str| breach(Kind::Torn, format!("client {client} gets {what}"));
        let Some((header, _)) = bytes.split_first_chunk::<REPLY_HEADER>() else {
            return torn("a part of a reply");
        };
        let [to, number, which, _] = words(header);
        if to != client {
            return breach(Kind::Misdelivered, format!("client {client} gets what is for {to}: {number:#x}"));
        }
        if number & NOTE != 0 {
            let name = Name { client: number & !NOTE, number: which >> 16 };
            return self.take_note(client, name, which as u16, bytes);
        }
        let Some(item) = self.clients[client as usize].items.get_mut(number as usize) else {
            return torn("a reply to nothing");
        };
        let (index, name) = (which as u16, Name { client, number });
        if usize::from(index) >= item.replies.len() {
            return torn(&format!("reply {index} to {number}, to which there are {}", item.replies.len()));
        }
        let (head, body) = reply(name, index, &item.replies);
        let Some(rest) = bytes.strip_prefix(&head).and_then(|rest| rest.strip_prefix(body)) else {
            return torn(&format!("{} bytes for reply {index} to {number}", bytes.len()));
        };
        if usize::from(index) < item.come {
            return breach(Kind::Duplicated, format!("client {client} gets reply {index} to {number} again"));
        }
        if usize::from(index) > item.come || !item.committed && usize::from(index) >= item.out {
            return torn(&format!("reply {index} to {number}, which is {item:?}"));
        }
        item.come += 1;
        let is_last = item.come == item.replies.len();
        self.tally.answered += u64::from(number > 0 && is_last);
        if *answered != Some(number) {
            self.check_whole(client, answered.replace(number))?;
            let before = self.clients[client as usize].answered.replace(number);
            let goes_on = index > 0 && before == Some(number);
            if self.ordered && before >= Some(number) && !goes_on {
                return breach(
                    Kind::Disordered,
                    format!("client {client} is answered {number} after {before:?}"),
                );
            }
        }
        Ok(rest)
    }

    /// What a client has of the answer to a message was let out together.
    fn check_whole(&self, client: u32, number: Option<u32>) -> Result<(), Breach> {
        let Some(number) = number else { return Ok(()) };
        let item = &self.clients[client as usize].items[number as usize];
        if item.is_whole() {
            return Ok(());
        }
        breach(Kind::Torn, format!("client {client} has a part of what was let out to {number}: {item:?}"))
    }

    fn take_note<'a>(
        &mut self,
        client: u32,
        name: Name,
        index: u16,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], Breach> {
        let items = self.clients.get_mut(name.client as usize).map(|from| &mut from.items);
        let item = items.and_then(|items| items.get_mut(name.number as usize));
        let Some(it) = item.and_then(|item| item.notes.get_mut(usize::from(index))) else {
            return breach(Kind::Torn, format!("client {client} gets note {index} about {name:?}"));
        };
        let (head, body) = note(name, index, it);
        let Some(rest) = bytes.strip_prefix(&head).and_then(|rest| rest.strip_prefix(body)) else {
            return breach(Kind::Torn, format!("client {client} gets {} bytes for {it:?}", bytes.len()));
        };
        it.come += 1;
        if it.come > it.sent {
            return breach(
                Kind::Duplicated,
                format!("client {client} gets what was not let out so often: {it:?}"),
            );
        }
        self.tally.notes += 1;
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
            let owed = |item: &&Item| item.committed && item.come < item.replies.len();
            if let Some(item) = client.items.iter().find(owed).filter(|_| client.is_open) {
                return lost("never answered: a message", item);
            }
            let notes = client.items.iter().flat_map(|item| &item.notes);
            let owed = |note: &&Note| note.come < note.sent && self.clients[note.to as usize].is_open;
            if let Some(note) = notes.into_iter().find(owed) {
                return lost("never told: a note", note);
            }
        }
        Ok(())
    }
}
