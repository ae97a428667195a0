//! What a packet tells the testbed to do.
//!
//! | packet | what happens, and the reply |
//! | --- | --- |
//! | `echo TEXT` | `TEXT` |
//! | `whoami` | `worker=ID pid=PID generation=G handled=N` |
//! | `session`, `session SESSION` | `session=ID reactor=R port=P peer=ADDR connected=UNIX_MS recv=BYTES sent=BYTES`, `uid=UID` if it is bound, and more |
//! | `tls`, `tls SESSION` | `tls=PROTOCOL cipher=NAME alpn=NAME sni=HOST resumed=BOOL`, `cert=SHA256 cn=NAME names=NAME,…` if it has shown a certificate; or `tls=none` |
//! | `sessions COUNT`, `sessions COUNT SESSION` | a page of so many sessions, the first or the one after SESSION: `ID,ID,...` |
//! | `pause`, `resume`, `confirm`, `protect`, `unprotect`, `reset`, each also with a SESSION | does that with this session, or that one; `ok` |
//! | `bind UID`, `bind UID SESSION` | binds this session, or that one, to a user; `ok` |
//! | `unbind` | binds this session to nobody; `ok` |
//! | `at WISH COMMAND` | COMMAND, wherever WISH sends it to ([`super::wishes`]) |
//! | `send SESSION TEXT` | TEXT goes to that session; `ok` |
//! | `sendto LISTENER ADDRESS TEXT` | TEXT goes as a datagram by the listener of this number to `IP:PORT`, `/PATH` or `@NAME`; `ok` |
//! | `sendfile PATH`, `sendfile PATH OFFSET LENGTH` | the file's bytes, or those of them |
//! | `sendfileto SESSION PATH` | they go to that session, and with OFFSET and LENGTH; `ok` |
//! | `broadcast TEXT` | TEXT goes to every other session, in one broadcast; `sent N` |
//! | `sendall TEXT` | the same, sent to one after the other |
//! | `subscribe TOPIC`, `unsubscribe TOPIC` | the sender, to that topic; `ok` |
//! | `publish TOPIC TEXT` | TEXT goes to all who are subscribed, but the sender; `ok` |
//! | `close`, `close SESSION` | closes it after what was sent before; only the second replies, `ok` |
//! | `sleep MS`, `spin MS` | blocks the worker, idle or busy; `slept MS`, `spun MS` |
//! | `nap US` | blocks it for so many microseconds; `napped US` |
//! | `crash panic`, `abort`, `segv`, `kill`, `exit N` | the worker dies that way |
//! | `die_at POINT` | `ok`; then the worker dies when it comes to that point (with the feature `breakpoints`) |
//! | `hold TEXT` | no reply |
//! | `after MS TEXT` | `timer ID`, and after MS `timer ID TEXT`; `sleep MS` as TEXT blocks the worker before that |
//! | `tick MS N TEXT` | `timer ID`, then N times `timer ID TEXT` |
//! | `clear ID` | `ok`, or `error: no such timer` |
//! | `reply MS TEXT` | `TEXT` after MS; the reply is open till then |
//! | `forget` | `ok`, and a reply is open for ever |
//! | `task TEXT` | `task ID`, and when it is done `finish ID RESULT`: TEXT in upper case. As TEXT: `sleep MS`, `crash ...`, `fail WHY`, `big N`, `whoami`, `die_at POINT`; `early TEXT` is finished before its end, after `leave` the task worker is replaced, `ask TEXT` and `asks N TEXT` ask other task workers, `say TEXT` prints a line, `message TO TEXT` and `messages TO N BYTES` send messages, `send SESSION TEXT`, `close SESSION`, `exists SESSION`, `tls SESSION`, `broadcast TEXT`, `publish TOPIC TEXT` and `sendto ...` are about clients; `after MS TEXT`, `tick MS N TEXT` and `clear ID` are done by the task worker, which prints `timer task=ID TIMER TEXT` and does TEXT |
//! | `taskto TASKWORKER TEXT` | the same, by that one |
//! | `taskwait MS TEXT` | `result RESULT`, or `error: timeout` after MS |
//! | `taskall MS TEXT\|TEXT\|...` | `results RESULT\|RESULT\|...` |
//! | `taskload N MS BYTES` | N tasks of so many bytes are in flight for so long; `tasks=COUNT us=TIME` |
//! | `taskwaits MS BYTES` | the worker waits for one after the other; the same, and `p50=` and `p99=` in nanoseconds |
//! | `message TO TEXT` | TEXT goes to worker TO, `tTO` for a task worker or `pTO` for a user process, which does what it says ([`super::messages`]); `ok` |
//! | `messages TO N BYTES` | N numbered messages of so many bytes go there, or as many as are taken; `sent N` |
//! | `spawn MS` | the worker starts a process that lives for so long; `pid=PID` |
//! | `big N` | N bytes of `x` |
//! | `leak N` | the worker keeps N bytes of memory for as long as it lives; `leaked N` |
//! | `sum BYTES...` | the crc32 of the bytes, in hex |
//! | `try WHAT` | what a worker may not do in a sandbox ([`super::attempt`]); `ok`, or the name of the error |
//! | `stats` | the server's statistics, one line of JSON |
//! | `reload`, `reload task`, `shutdown` | `ok`, then it happens; `task`: only of task workers |
//! | `stop`, `stop WORKER` | `ok`, then that worker retires and is replaced |
//!
//! All else gets `error: ...`. A datagram is a packet, with or without a line end, and is answered by one, likewise; to it
//! `session` is `listener=L peer=ADDRESS`.

use std::str::FromStr;

use swoole_server::{DatagramClient, Peer, Session};

#[derive(Debug, PartialEq)]
pub(crate) enum Command<'a> {
    Echo(&'a [u8]),
    Whoami,
    Session(Option<Session>),
    Tls(Option<Session>),
    Sessions(Option<Session>, usize),
    Measure(Measure, Option<Session>),
    SendFile(Option<Session>, Part<'a>),
    Bind(u64, Option<Session>),
    Unbind,
    Send(Session, &'a [u8]),
    SendTo(DatagramClient, &'a [u8]),
    Broadcast(&'a [u8]),
    SendAll(&'a [u8]),
    Subscribe(&'a [u8]),
    Unsubscribe(&'a [u8]),
    Publish(&'a [u8], &'a [u8]),
    Close(Option<Session>),
    Sleep(u64),
    Nap(u64),
    Spin(u64),
    Crash(Crash),
    DieAt(&'a str),
    Hold,
    After(u64, &'a [u8]),
    Tick(u64, u64, &'a [u8]),
    Clear(u64),
    Reply(u64, &'a [u8]),
    Forget,
    Task(Option<u16>, &'a [u8]),
    TaskWait(u64, &'a [u8]),
    TaskAll(u64, &'a [u8]),
    TaskLoad(usize, u64, usize),
    TaskWaits(u64, usize),
    Message(Peer, &'a [u8]),
    Messages(Peer, u64, usize),
    Spawn(u64),
    Big(usize),
    Leak(usize),
    Try(&'a str),
    Sum(&'a [u8]),
    Stats,
    Reload,
    ReloadTasks,
    Shutdown,
    Stop(Option<u16>),
}

/// Part of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Part<'a> {
    pub(crate) path: &'a str,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Measure {
    Pause,
    Resume,
    Confirm,
    Protect(bool),
    Reset,
}

/// How a worker is to die.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Crash {
    Panic,
    Abort,
    Segv,
    Kill,
    Exit(u8),
}

/// Bytes of the largest reply that `big` makes, and that `leak` keeps at once.
const BIG_MAX: usize = 1 << 30;

impl<'a> Command<'a> {
    /// Reads a packet, or says what is wrong with it.
    pub(crate) fn parse(packet: &'a [u8]) -> Result<Command<'a>, String> {
        let packet = packet.strip_suffix(b"\r").unwrap_or(packet);
        let packet = match split_word(packet) {
            (b"at", rest) => split_word(rest).1,
            _ => packet,
        };
        let (name, rest) = split_word(packet);
        let unknown = || format!("unknown command `{}`", String::from_utf8_lossy(packet).escape_debug());
        Ok(match name {
            b"echo" => Command::Echo(rest),
            b"broadcast" => Command::Broadcast(rest),
            b"sendall" => Command::SendAll(rest),
            b"subscribe" => Command::Subscribe(rest),
            b"unsubscribe" => Command::Unsubscribe(rest),
            b"publish" => {
                let (topic, text) = split_word(rest);
                Command::Publish(topic, text)
            }
            b"hold" => Command::Hold,
            b"sum" => Command::Sum(rest),
            b"send" => {
                let (session, text) = split_word(rest);
                Command::Send(number(session, "send SESSION TEXT")?, text)
            }
            b"sendto" => {
                let (to, text) =
                    super::datagrams::parse(rest).ok_or_else(|| usage("sendto LISTENER ADDRESS TEXT"))?;
                Command::SendTo(to, text)
            }
            b"bind" => {
                let usage = "bind UID, or bind UID SESSION";
                let (uid, session) = split_word(rest);
                Command::Bind(number(uid, usage)?, optional(session, usage)?)
            }
            b"close" => Command::Close(optional(rest, "close, or close SESSION")?),
            b"session" => Command::Session(optional(rest, "session, or session SESSION")?),
            b"tls" => Command::Tls(optional(rest, "tls, or tls SESSION")?),
            b"sessions" => {
                let usage = "sessions COUNT, or sessions COUNT SESSION";
                let (count, after) = split_word(rest);
                Command::Sessions(optional(after, usage)?, number(count, usage)?)
            }
            b"sendfile" => Command::SendFile(None, part(rest)?),
            b"sendfileto" => {
                let (session, rest) = split_word(rest);
                Command::SendFile(Some(number(session, "sendfileto SESSION PATH")?), part(rest)?)
            }
            b"pause" => Command::Measure(Measure::Pause, optional(rest, "pause, or pause SESSION")?),
            b"resume" => Command::Measure(Measure::Resume, optional(rest, "resume, or resume SESSION")?),
            b"confirm" => Command::Measure(Measure::Confirm, optional(rest, "confirm, or confirm SESSION")?),
            b"reset" => Command::Measure(Measure::Reset, optional(rest, "reset, or reset SESSION")?),
            b"protect" | b"unprotect" => {
                let measure = Measure::Protect(name == b"protect");
                Command::Measure(measure, optional(rest, "protect or unprotect, or with a SESSION")?)
            }
            b"stop" => Command::Stop(optional(rest, "stop, or stop WORKER")?),
            b"nap" => Command::Nap(number(rest, "nap US")?),
            b"sleep" => Command::Sleep(number(rest, "sleep MS")?),
            b"spin" => Command::Spin(number(rest, "spin MS")?),
            b"after" => {
                let (ms, text) = split_word(rest);
                Command::After(number(ms, "after MS TEXT")?, text)
            }
            b"tick" => {
                let usage = "tick MS N TEXT";
                let (ms, rest) = split_word(rest);
                let (times, text) = split_word(rest);
                Command::Tick(number(ms, usage)?, number(times, usage)?, text)
            }
            b"clear" => Command::Clear(number(rest, "clear ID")?),
            b"reply" => {
                let (ms, text) = split_word(rest);
                Command::Reply(number(ms, "reply MS TEXT")?, text)
            }
            b"task" => Command::Task(None, rest),
            b"taskto" => {
                let (task_worker, text) = split_word(rest);
                Command::Task(Some(number(task_worker, "taskto TASKWORKER TEXT")?), text)
            }
            b"taskwait" => {
                let (ms, text) = split_word(rest);
                Command::TaskWait(number(ms, "taskwait MS TEXT")?, text)
            }
            b"taskall" => {
                let (ms, texts) = split_word(rest);
                Command::TaskAll(number(ms, "taskall MS TEXT|TEXT|...")?, texts)
            }
            b"taskload" => {
                let usage = "taskload N MS BYTES";
                let (count, rest) = split_word(rest);
                let (ms, bytes) = split_word(rest);
                Command::TaskLoad(number(count, usage)?, number(ms, usage)?, number(bytes, usage)?)
            }
            b"taskwaits" => {
                let usage = "taskwaits MS BYTES";
                let (ms, bytes) = split_word(rest);
                Command::TaskWaits(number(ms, usage)?, number(bytes, usage)?)
            }
            b"message" => {
                let (to, text) = split_word(rest);
                Command::Message(peer(to, "message TO TEXT")?, text)
            }
            b"messages" => {
                let usage = "messages TO N BYTES";
                let (to, rest) = split_word(rest);
                let (count, bytes) = split_word(rest);
                Command::Messages(peer(to, usage)?, number(count, usage)?, number(bytes, usage)?)
            }
            b"reload" if rest == b"task" => Command::ReloadTasks,
            b"spawn" => Command::Spawn(number(rest, "spawn MS")?),
            b"big" => Command::Big(amount(rest, "big")?),
            b"leak" => Command::Leak(amount(rest, "leak")?),
            b"try" => Command::Try(std::str::from_utf8(rest).map_err(|_| usage("try WHAT"))?),
            b"die_at" => Command::DieAt(std::str::from_utf8(rest).map_err(|_| usage("die_at POINT"))?),
            b"crash" => Command::Crash(Crash::parse(rest)?),
            _ if !rest.is_empty() => return Err(unknown()),
            b"whoami" => Command::Whoami,
            b"unbind" => Command::Unbind,
            b"forget" => Command::Forget,
            b"stats" => Command::Stats,
            b"reload" => Command::Reload,
            b"shutdown" => Command::Shutdown,
            _ => return Err(unknown()),
        })
    }
}

impl Crash {
    pub(crate) fn parse(how: &[u8]) -> Result<Crash, String> {
        match split_word(how) {
            (b"exit", code) => number(code, "crash exit CODE, 0..=255").map(Crash::Exit),
            (b"panic", b"") => Ok(Crash::Panic),
            (b"abort", b"") => Ok(Crash::Abort),
            (b"segv", b"") => Ok(Crash::Segv),
            (b"kill", b"") => Ok(Crash::Kill),
            _ => Err(usage("crash panic, abort, segv, kill, or exit CODE")),
        }
    }
}

/// What stands before the first space, and what after it.
pub(crate) fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b' ') {
        Some(space) => (&text[..space], &text[space + 1..]),
        None => (text, b""),
    }
}

fn number<T: FromStr>(text: &[u8], expected: &str) -> Result<T, String> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| usage(expected))
}

fn peer(text: &[u8], expected: &str) -> Result<Peer, String> {
    super::messages::parse_peer(text).ok_or_else(|| usage(expected))
}

fn optional<T: FromStr>(text: &[u8], expected: &str) -> Result<Option<T>, String> {
    if text.is_empty() { Ok(None) } else { number(text, expected).map(Some) }
}

/// Bytes, for the command of this name.
fn amount(text: &[u8], name: &str) -> Result<usize, String> {
    match number(text, &format!("{name} BYTES"))? {
        bytes if bytes <= BIG_MAX => Ok(bytes),
        _ => Err(format!("{name} takes at most {BIG_MAX} bytes")),
    }
}

fn part(text: &[u8]) -> Result<Part<'_>, String> {
    let expected = "sendfile PATH, or sendfile PATH OFFSET LENGTH";
    let (path, rest) = split_word(text);
    let (offset, length) = if rest.is_empty() { (&b"0"[..], &b"0"[..]) } else { split_word(rest) };
    let path = std::str::from_utf8(path).map_err(|_| usage(expected))?;
    Ok(Part { path, offset: number(offset, expected)?, length: number(length, expected)? })
}

fn usage(expected: &str) -> String {
    format!("usage: {expected}")
}

/// CRC-32 as in zlib and Ethernet: reflected polynomial 0xEDB88320.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xEDB8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |sum, byte| TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8)
}

#[cfg(test)]
mod tests {
    use swoole_server::DatagramPeer;

    use super::*;

    #[test]
    fn commands_with_arguments() {
        let session: Session = "258".parse().unwrap();
        for (packet, command) in [
            (&b"echo"[..], Command::Echo(b"")),
            (b"echo  two  spaces \r", Command::Echo(b" two  spaces ")),
            (b"echo \xff\0", Command::Echo(b"\xff\0")),
            (b"whoami\r", Command::Whoami),
            (b"send 258 hello there", Command::Send(session, b"hello there")),
            (b"send 258", Command::Send(session, b"")),
            (
                b"sendto 1 @name a b",
                Command::SendTo(DatagramClient::new(1, DatagramPeer::Abstract(b"name".into())), b"a b"),
            ),
            (b"close", Command::Close(None)),
            (b"close 258", Command::Close(Some(session))),
            (b"stop 3", Command::Stop(Some(3))),
            (b"sleep 0", Command::Sleep(0)),
            (b"after 5 a b", Command::After(5, b"a b")),
            (b"tick 5 2 a b", Command::Tick(5, 2, b"a b")),
            (b"clear 7", Command::Clear(7)),
            (b"reply 5 a b", Command::Reply(5, b"a b")),
            (b"forget", Command::Forget),
            (b"publish a b c", Command::Publish(b"a", b"b c")),
            (b"task a b", Command::Task(None, b"a b")),
            (b"taskto 1 a b", Command::Task(Some(1), b"a b")),
            (b"taskwait 5 a b", Command::TaskWait(5, b"a b")),
            (b"taskall 5 a|b", Command::TaskAll(5, b"a|b")),
            (b"taskload 64 5 128", Command::TaskLoad(64, 5, 128)),
            (b"taskwaits 5 128", Command::TaskWaits(5, 128)),
            (b"message 1 a b", Command::Message(Peer::Worker(1), b"a b")),
            (b"message p0 a", Command::Message(Peer::UserProcess(0), b"a")),
            (b"messages t1 5 128", Command::Messages(Peer::TaskWorker(1), 5, 128)),
            (b"reload task", Command::ReloadTasks),
            (b"hold what may", Command::Hold),
            (b"big 1073741824", Command::Big(BIG_MAX)),
            (b"try read /etc/shadow", Command::Try("read /etc/shadow")),
            (b"leak 4096", Command::Leak(4096)),
            (b"crash exit 255", Command::Crash(Crash::Exit(255))),
            (b"crash segv", Command::Crash(Crash::Segv)),
            (b"die_at after_commit", Command::DieAt("after_commit")),
            (b"sum a b", Command::Sum(b"a b")),
            (b"bind 7", Command::Bind(7, None)),
            (b"unbind", Command::Unbind),
            (b"session", Command::Session(None)),
            (b"tls 258", Command::Tls(Some(session))),
            (b"sessions 5", Command::Sessions(None, 5)),
            (b"sessions 5 258", Command::Sessions(Some(session), 5)),
            (b"sendfile /a", Command::SendFile(None, Part { path: "/a", offset: 0, length: 0 })),
            (
                b"sendfileto 258 /a 1 2",
                Command::SendFile(Some(session), Part { path: "/a", offset: 1, length: 2 }),
            ),
            (b"pause", Command::Measure(Measure::Pause, None)),
            (b"unprotect 258", Command::Measure(Measure::Protect(false), Some(session))),
            (b"nap 100", Command::Nap(100)),
            (b"at 2 whoami", Command::Whoami),
        ] {
            assert_eq!(Command::parse(packet), Ok(command), "{packet:?}");
        }
    }

    #[test]
    fn what_is_no_command_gets_a_reason_on_one_line() {
        for (packet, reason) in [
            (&b""[..], "unknown command ``"),
            (b" ", "unknown command ` `"),
            (b"Echo x", "unknown command `Echo x`"),
            (b"reload tasks", "unknown command `reload tasks`"),
            (b"taskto x", "usage: taskto TASKWORKER TEXT"),
            (b"message x hello", "usage: message TO TEXT"),
            (b"a\nb\x1b", "unknown command `a\\nb\\u{1b}`"),
            (b"sleep", "usage: sleep MS"),
            (b"sleep -1", "usage: sleep MS"),
            (b"after x", "usage: after MS TEXT"),
            (b"tick 5 a", "usage: tick MS N TEXT"),
            (b"clear", "usage: clear ID"),
            (b"reply a", "usage: reply MS TEXT"),
            (b"sleep 1 ", "usage: sleep MS"),
            (b"bind -1", "usage: bind UID, or bind UID SESSION"),
            (b"at a at b whoami", "unknown command `at b whoami`"),
            (b"big 1073741825", "big takes at most 1073741824 bytes"),
            (b"leak", "usage: leak BYTES"),
            (b"leak 1073741825", "leak takes at most 1073741824 bytes"),
            (b"send", "usage: send SESSION TEXT"),
            (b"send x y", "usage: send SESSION TEXT"),
            (b"sendto 0 localhost x", "usage: sendto LISTENER ADDRESS TEXT"),
            (b"stop 65536", "usage: stop, or stop WORKER"),
            (b"crash", "usage: crash panic, abort, segv, kill, or exit CODE"),
            (b"crash panic now", "usage: crash panic, abort, segv, kill, or exit CODE"),
            (b"crash exit 256", "usage: crash exit CODE, 0..=255"),
        ] {
            assert_eq!(Command::parse(packet), Err(reason.to_owned()), "{packet:?}");
        }
    }

    #[test]
    fn crc32_of_the_check_value() {
        assert_eq!((crc32(b"123456789"), crc32(b"")), (0xCBF4_3926, 0));
    }
}
