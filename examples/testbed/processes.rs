//! The testbed's user processes: what each does, its name says with a word behind it.

use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use swoole_server::{Error, Result, Server, UserProcess};

use super::messages::Messages;
use super::{Crash, crash, say};

/// The rhythm of those that have one.
const BEAT: Duration = Duration::from_millis(20);

/// What a user process does from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Conduct {
    /// Waits to be asked to leave.
    Wait,
    /// The same, in an event loop of its own.
    Poll,
    /// Does what messages say.
    Mail,
    /// Never waits, and looks again and again whether it was asked.
    Spin,
    /// Has a task worker say its name in each beat, and once more as it leaves.
    Ask,
    /// Does not leave.
    Hang,
    /// Returns at once.
    Return,
    /// Returns an error at once.
    Fail,
    /// Dies at once.
    Crash(Crash),
}

/// `NAME`, or `NAME:WHAT`.
pub(crate) fn parse(text: &str) -> std::result::Result<(&str, Conduct), String> {
    let (name, what) = text.split_once(':').unwrap_or((text, "wait"));
    let conduct = match what {
        "wait" => Conduct::Wait,
        "poll" => Conduct::Poll,
        "mail" => Conduct::Mail,
        "spin" => Conduct::Spin,
        "ask" => Conduct::Ask,
        "hang" => Conduct::Hang,
        "return" => Conduct::Return,
        "fail" => Conduct::Fail,
        how => Conduct::Crash(Crash::parse(how.as_bytes())?),
    };
    Ok((name, conduct))
}

/// Adds those of a list with commas, or of the file that it names.
pub(crate) fn add_all(mut server: Server, list: Option<String>) -> Result<Server> {
    let list = match list.as_deref().map(|list| (list, list.strip_prefix('@'))) {
        None => return Ok(server),
        Some((_, Some(file))) => std::fs::read_to_string(file)?,
        Some((list, None)) => list.to_owned(),
    };
    for process in list.split(',') {
        let (name, conduct) =
            parse(process).map_err(|error| Error::from(format!("flag --processes: {error}")))?;
        server = server.add_process(name, move |process| run(process, conduct));
    }
    Ok(server)
}

fn run(process: &mut UserProcess, conduct: Conduct) -> Result<()> {
    let (name, pid, generation) = (process.name().to_owned(), process.pid(), process.generation());
    say(format!("on_process_start process={name} pid={pid} generation={generation}"))?;
    match conduct {
        Conduct::Wait => while process.wait(Duration::MAX)? {},
        Conduct::Poll => {
            while !process.is_asked_to_leave()? {
                let _ = poll(&mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)], None);
            }
        }
        Conduct::Mail => {
            let mut messages = Messages::default();
            while !process.is_asked_to_leave()? {
                if let Some((from, message)) = process.receive(Duration::MAX)? {
                    messages.came(process, (from, &message), b"\n")?;
                }
            }
        }
        Conduct::Spin => while !process.is_asked_to_leave()? {},
        Conduct::Ask => {
            let text = format!("say {name}");
            while process.wait(BEAT)? {
                process.ask(text.as_bytes())?;
            }
            // It may be refused when so many were asked for in vain.
            let _ = process.ask(text.as_bytes());
        }
        Conduct::Hang => loop {
            std::thread::park();
        },
        Conduct::Return => return Ok(()),
        Conduct::Fail => return Err("as its name says".into()),
        Conduct::Crash(how) => return crash(how),
    }
    say(format!("on_process_stop process={name} pid={pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_behind_the_name_says_what_it_does() {
        assert_eq!(parse("a"), Ok(("a", Conduct::Wait)));
        assert_eq!(parse("a:spin"), Ok(("a", Conduct::Spin)));
        assert_eq!(parse(":crash"), Err("usage: crash panic, abort, segv, kill, or exit CODE".into()));
        assert_eq!(parse("a:exit 3"), Ok(("a", Conduct::Crash(Crash::Exit(3)))));
    }
}
