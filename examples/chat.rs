//! A chat over TCP: rooms are topics, and what concerns everybody is broadcast.
//!
//! ```text
//! $ cargo run --release --example chat &
//! $ nc 127.0.0.1 9501
//! * welcome: /nick NAME, /join ROOM, /part ROOM, /all TEXT, /who, /quit; anything else goes to your room
//! /nick ann
//! * you are ann
//! /join cats
//! * you have joined cats
//! hello
//! ```
//!
//! Open another one, give it another name, and join the same room. Then kill all workers (`pkill -9 -f 'swoole: worker'`):
//! nobody is thrown out of a room, because subscriptions are kept where the connections are, in the master, and nobody
//! loses a name, because those stand in a table that all workers share.

use swoole_server::config::{Config, Framing, Sources};
use swoole_server::{Audience, Error, Handler, Result, Server, Session, Worker};
use swoole_table::{Bytes, Options, Row, Table};

/// Clients at one time.
const MEMBERS: usize = 10_000;

/// What is known of a client, by its session.
#[derive(Row)]
struct Member {
    name: Bytes<32>,
    /// Where what it says goes; empty for nowhere.
    room: Bytes<64>,
}

struct Chat {
    members: Table<Member>,
}

const WELCOME: &str = "* welcome: /nick NAME, /join ROOM, /part ROOM, /all TEXT, /who, /quit; anything else goes to your room\n";

impl Handler for Chat {
    fn on_connect(&mut self, worker: &mut Worker, client: Session) -> Result<()> {
        let name = Bytes::new(format!("guest-{client}").as_bytes()).map_err(Error::other)?;
        self.keep(client, &Member { name, room: Bytes::default() })?;
        worker.send(client, WELCOME.as_bytes())
    }

    fn on_receive(&mut self, worker: &mut Worker, client: Session, line: &[u8]) -> Result<()> {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let answer = match command {
            "/nick" => self.rename(worker, client, rest),
            "/join" => self.join(worker, client, rest),
            "/part" => self.part(worker, client, rest),
            "/all" => {
                let text = format!("{} to all: {rest}\n", self.name(client)?);
                return worker.broadcast(Audience::all().except(client), text.as_bytes());
            }
            "/who" => self.who(),
            "/quit" => return worker.close(client),
            _ if command.starts_with('/') => Err(format!("there is no {command}").into()),
            _ => return self.say(worker, client, line),
        };
        match answer {
            Ok(answer) => worker.send(client, format!("* {answer}\n").as_bytes()),
            Err(error) => worker.send(client, format!("! {error}\n").as_bytes()),
        }
    }

    fn on_close(&mut self, worker: &mut Worker, client: Session) -> Result<()> {
        let Ok(member) = self.member(client) else { return Ok(()) };
        self.members.del(key(client)).map_err(Error::other)?;
        if member.room.is_empty() {
            return Ok(());
        }
        worker.publish(member.room, format!("* {} has left\n", text(&member.name)).as_bytes())
    }
}

impl Chat {
    fn member(&self, client: Session) -> Result<Member> {
        self.members.get(key(client)).map_err(Error::other)?.ok_or_else(|| "who are you?".into())
    }

    fn keep(&self, client: Session, member: &Member) -> Result<()> {
        self.members.set(key(client), member).map_err(Error::other)
    }

    fn name(&self, client: Session) -> Result<String> {
        Ok(text(&self.member(client)?.name))
    }

    fn rename(&mut self, worker: &mut Worker, client: Session, name: &str) -> Result<String> {
        let mut member = self.member(client)?;
        let before = text(&member.name);
        member.name = checked(name)?;
        self.keep(client, &member)?;
        self.tell_room(worker, client, &member, &format!("* {before} is {name} now"))?;
        Ok(format!("you are {name}"))
    }

    fn join(&mut self, worker: &mut Worker, client: Session, room: &str) -> Result<String> {
        let mut member = self.member(client)?;
        member.room = checked(room)?;
        worker.subscribe(client, room)?;
        self.keep(client, &member)?;
        self.tell_room(worker, client, &member, &format!("* {} has joined {room}", text(&member.name)))?;
        Ok(format!("you have joined {room}"))
    }

    fn part(&mut self, worker: &mut Worker, client: Session, room: &str) -> Result<String> {
        let mut member = self.member(client)?;
        worker.unsubscribe(client, room)?;
        if &*member.room == room.as_bytes() {
            self.tell_room(worker, client, &member, &format!("* {} has left", text(&member.name)))?;
            member.room = Bytes::default();
            self.keep(client, &member)?;
        }
        Ok(format!("you have left {room}"))
    }

    fn who(&self) -> Result<String> {
        let names = self.members.iter().map(|member| Ok(text(&member.map_err(Error::other)?.1.name)));
        let mut names = names.collect::<Result<Vec<String>>>()?;
        names.sort();
        Ok(names.join(", "))
    }

    fn say(&mut self, worker: &mut Worker, client: Session, line: &str) -> Result<()> {
        let member = self.member(client)?;
        if member.room.is_empty() {
            return worker.send(client, b"! join a room first: /join ROOM\n");
        }
        self.tell_room(worker, client, &member, &format!("{}: {line}", text(&member.name)))
    }

    /// Tells everybody in the member's room but itself.
    fn tell_room(&self, worker: &mut Worker, client: Session, member: &Member, line: &str) -> Result<()> {
        if member.room.is_empty() {
            return Ok(());
        }
        let others = Audience::topic(&member.room).except(client);
        worker.broadcast(others, format!("{line}\n").as_bytes())
    }
}

/// A name, if it is one.
fn checked<const N: usize>(name: &str) -> Result<Bytes<N>> {
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err("a name is one word".into());
    }
    Bytes::new(name.as_bytes()).map_err(Error::other)
}

fn text<const N: usize>(bytes: &Bytes<N>) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn key(client: Session) -> String {
    client.to_string()
}

fn main() -> Result<()> {
    let options = Options::new(MEMBERS).key_max(20).name("members");
    let members = Table::with(&options).map_err(Error::other)?;
    let mut defaults = Config::default();
    defaults.listen = vec!["tcp://127.0.0.1:9501".parse().map_err(Error::other)?];
    defaults.worker_num = 2;
    defaults.framing = Framing::Eof;
    defaults.package_eof = b"\n".to_vec();
    defaults.package_max_length = 4096;
    defaults.max_connection = MEMBERS;
    Server::new(Sources::new(defaults).load_process()?).run(Chat { members })
}
