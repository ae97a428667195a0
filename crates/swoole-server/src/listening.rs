//! The addresses of a server, and what follows for those who come by them; and how a reload adds and removes some.
//!
//! A listener's number is its place among all addresses that there have been. Clients keep it for as long as they stay, so
//! none is taken out or moved: one that is removed is closed, and gets its number again if it comes back as it was. Each
//! process has what was known when it was forked; nobody is accepted by a new address before all workers know it.
//!
//! Pure, but for [`Reread`], which asks the program.

use std::path::PathBuf;
use std::sync::Arc;

use swoole_reactor::listener::Address;

use crate::config::{ByListener, Config, ConfigError, Framings, LengthFuncs, Listen};
use crate::crash::CrashPolicies;
use crate::error::{Error, Result};
use crate::shed::Shed;

/// Addresses that a server can have had in its life.
const LISTENERS_MAX: usize = 1024;
/// Bytes that an address may be written in: master and manager tell each other of it.
const TEXT_MAX: usize = 30_000;

/// All addresses that there are, and those that there have been.
pub(crate) struct Listening {
    /// The server's configuration; its `listen` are all of them, as they were asked for.
    config: Config,
    /// Where they really listen, or have listened.
    addresses: Arc<[Listen]>,
    open: Vec<bool>,
    framings: Framings,
    pub(crate) crash_policies: CrashPolicies,
    pub(crate) sheds: ByListener<Shed>,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.addresses.iter().map(Listen::url)).finish()
    }
}

impl Listening {
    /// What there is at the start: all of them are open. `addresses`: where those of the configuration really are.
    pub(crate) fn new(config: &Config, addresses: Vec<Listen>, framings: Framings) -> Listening {
        let open = vec![true; addresses.len()];
        Listening::of(config.clone(), addresses, open, framings)
    }

    /// The configured ones, at the addresses that were asked for.
    #[cfg(test)]
    pub(crate) fn for_test(config: &Config) -> Listening {
        let framings = config.framings(&LengthFuncs::new()).expect("the configuration is valid");
        Listening::new(config, config.listen.clone(), framings)
    }

    fn of(config: Config, addresses: Vec<Listen>, open: Vec<bool>, framings: Framings) -> Listening {
        Listening {
            crash_policies: CrashPolicies::new(&config, &addresses),
            sheds: Shed::of(&config),
            addresses: addresses.into(),
            open,
            framings,
            config,
        }
    }

    /// By the listeners' numbers.
    pub(crate) fn addresses(&self) -> &Arc<[Listen]> {
        &self.addresses
    }

    pub(crate) fn address(&self, listener: u16) -> Option<&Listen> {
        self.addresses.get(usize::from(listener))
    }

    /// As it was asked for.
    pub(crate) fn wanted(&self, listener: u16) -> Option<&Listen> {
        self.config.listen.get(usize::from(listener))
    }

    /// The server's configuration, with all addresses that there are and have been, as they were asked for.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn framings(&self) -> &Framings {
        &self.framings
    }

    /// Those that nobody has removed, as they were asked for.
    pub(crate) fn open(&self) -> impl Iterator<Item = &Listen> {
        self.config.listen.iter().zip(&self.open).filter(|(_, open)| **open).map(|(listen, _)| listen)
    }

    #[cfg(any(test, feature = "tls"))]
    pub(crate) fn is_open(&self, listener: usize) -> bool {
        self.open.get(listener).is_some_and(|open| *open)
    }

    /// Whether those who come by this address are read from only when a worker has confirmed them.
    pub(crate) fn delays_receive(&self, listener: u16) -> bool {
        let own = self.address(listener).and_then(|listen| listen.enable_delay_receive);
        own.unwrap_or(self.config.enable_delay_receive)
    }

    /// One more address, of which another process tells: it is asked for as `wanted`, and really is at `found`.
    pub(crate) fn with(&self, wanted: Listen, found: Listen) -> Listening {
        let mut config = self.config.clone();
        config.listen.push(wanted);
        let addresses = self.addresses.iter().cloned().chain([found]).collect();
        let open = self.open.iter().copied().chain([true]).collect();
        Listening::of(config, addresses, open, self.framings.clone())
    }

    /// What there is after a change. `found`: where those that it opens really are, in its order.
    pub(crate) fn changed(
        &self,
        change: &Change,
        found: Vec<Listen>,
        functions: &LengthFuncs,
    ) -> Result<Listening> {
        let mut config = self.config.clone();
        let (mut addresses, mut open) = (self.addresses.to_vec(), self.open.clone());
        for closed in &change.close {
            open[usize::from(*closed)] = false;
        }
        for (opening, found) in change.open.iter().zip(found) {
            let number = usize::from(opening.number);
            if number == addresses.len() {
                config.listen.push(opening.wanted.clone());
                addresses.push(found);
                open.push(true);
            } else {
                addresses[number] = found;
                open[number] = true;
            }
            if let Some(before) = opening.instead_of {
                open[usize::from(before)] = false;
            }
        }
        let framings = config.framings(functions)?;
        Ok(Listening::of(config, addresses, open, framings))
    }
}

/// What a reload does about addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// By number.
    pub(crate) close: Vec<u16>,
    pub(crate) open: Vec<Opening>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) number: u16,
    pub(crate) wanted: Listen,
    /// The one that has the same address with other options, and hands its socket over.
    pub(crate) instead_of: Option<u16>,
}

/// What has to be done to have the `wanted` addresses, where those are `known`, and open or not.
fn plan(known: &[(&Listen, bool)], wanted: &[Listen]) -> Result<Change, ConfigError> {
    let mut taken = vec![false; known.len()];
    let mut find = |is_meant: &dyn Fn(usize) -> bool| {
        let found = (0..taken.len()).find(|number| !taken[*number] && is_meant(*number))?;
        taken[found] = true;
        Some(found as u16)
    };
    let is_kept = |wanted: &&Listen| find(&|number| known[number] == (*wanted, true)).is_none();
    let news: Vec<&Listen> = wanted.iter().filter(is_kept).collect();
    let mut change = Change::default();
    let mut next = known.len() as u16;
    for wanted in news {
        let refuse = |why: &str| Err(ConfigError::value("listen", wanted, why));
        let instead_of = find(&|number| known[number].1 && known[number].0.address == wanted.address);
        let before = instead_of.map(|number| known[usize::from(number)].0);
        match before {
            None if matches!(wanted.address, Address::Inherited(_)) => {
                return refuse("a server gets its descriptors at its start only");
            }
            Some(before) if before.address.is_datagram() || !before.has_socket_of(wanted) => {
                return refuse("other options than it has: remove it in one reload and add it in another");
            }
            _ => {}
        }
        // Who asks for a free port gets another one.
        let is_same = |number: usize| !has_free_port(wanted) && known[number] == (wanted, false);
        let number = find(&is_same).unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        change.open.push(Opening { number, wanted: wanted.clone(), instead_of });
    }
    let left = (0..known.len()).filter(|number| known[*number].1 && !taken[*number]);
    change.close = left.map(|number| number as u16).collect();
    Ok(change)
}

fn has_free_port(listen: &Listen) -> bool {
    matches!(listen.address, Address::Tcp(at) | Address::Udp(at) if at.port() == 0)
}

/// How the program reads its configuration anew.
#[derive(Clone)]
pub(crate) struct Reread {
    pub(crate) read: Arc<dyn Fn() -> Result<Config> + Send + Sync>,
    pub(crate) functions: LengthFuncs,
    /// Where the program was started: relative paths are meant from there.
    pub(crate) dir: PathBuf,
}

impl std::fmt::Debug for Reread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reread")
    }
}

impl Reread {
    /// What of the addresses is different now; `None` if nothing is. Says which other keys are, which a server does not
    /// change in its life.
    pub(crate) fn look(&self, now: &Listening) -> Result<Option<Change>> {
        let mut read = (self.read)()?;
        read.make_absolute(&self.dir)?;
        let others = now.config.differs_in(&read);
        if !others.is_empty() {
            tracing::warn!(
                "the configuration differs in {}, too: a reload takes nothing of it but listen",
                others.join(", ")
            );
        }
        // As the addresses will be under what holds for all of them.
        let wanted = Config { listen: read.listen, ..now.config.clone() };
        wanted.validate()?;
        wanted.framings(&self.functions)?;
        crate::tls::check(&wanted)?;
        if let Some(long) = wanted.listen.iter().find(|listen| listen.to_string().len() > TEXT_MAX) {
            let why = format!("its options take more than {TEXT_MAX} bytes");
            return Err(ConfigError::value("listen", long.url(), why).into());
        }
        let known: Vec<(&Listen, bool)> = now.config.listen.iter().zip(now.open.iter().copied()).collect();
        let change = plan(&known, &wanted.listen)?;
        let count = change.open.iter().map(|opening| usize::from(opening.number) + 1).max().unwrap_or(0);
        if count > LISTENERS_MAX {
            return Err(Error::Other(
                format!("this server has had {LISTENERS_MAX} addresses: it has to be started anew").into(),
            ));
        }
        Ok((change != Change::default()).then_some(change))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listens(texts: &[&str]) -> Vec<Listen> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn listening(texts: &[&str]) -> Listening {
        Listening::for_test(&Config { listen: listens(texts), ..Config::default() })
    }

    fn plan_for(now: &Listening, wanted: &[Listen]) -> Result<Change, ConfigError> {
        let known: Vec<_> = now.config.listen.iter().zip(now.open.iter().copied()).collect();
        plan(&known, wanted)
    }

    fn change(now: &Listening, wanted: &[&str]) -> (Change, Listening) {
        let change = plan_for(now, &listens(wanted)).unwrap();
        let found = change.open.iter().map(|opening| opening.wanted.clone()).collect();
        let then = now.changed(&change, found, &LengthFuncs::new()).unwrap();
        (change, then)
    }

    const A: &str = "tcp://127.0.0.1:1";
    const A_LINE: &str = "tcp://127.0.0.1:1?framing=line";
    const B: &str = "unix:///b";
    const C: &str = "udp://127.0.0.1:3";

    #[test]
    fn addresses_come_and_go_and_keep_their_numbers() {
        let now = listening(&[A, B]);
        let opening = |number, wanted: &str, instead_of| Opening {
            number,
            wanted: wanted.parse().unwrap(),
            instead_of,
        };
        assert_eq!(change(&now, &[B, A]).0, Change::default(), "in whatever order");
        let (first, now) = change(&now, &[C, B]);
        assert_eq!(first, Change { close: vec![0], open: vec![opening(2, C, None)] });
        assert_eq!(now.open().map(Listen::url).collect::<Vec<_>>(), [B, C]);
        let (second, now) = change(&now, &[B, A, C]);
        assert_eq!(second, Change { close: vec![], open: vec![opening(0, A, None)] }, "it is back");
        let (third, now) = change(&now, &[B, A_LINE, C]);
        assert_eq!(third, Change { close: vec![], open: vec![opening(3, A_LINE, Some(0))] });
        assert_eq!((now.is_open(0), now.is_open(3), now.is_open(4)), (false, true, false));
        let (fourth, now) = change(&now, &[B, A, C]);
        assert_eq!(fourth, Change { close: vec![], open: vec![opening(0, A, Some(3))] });
        assert_eq!(now.addresses().len(), 4);
        assert_eq!(now.with("tcp://[::1]:0".parse().unwrap(), A.parse().unwrap()).addresses()[4].url(), A);
    }

    #[test]
    fn what_a_socket_cannot_become_is_refused() {
        let now = listening(&["tcp://[::]:1", C, "unix:///b"]);
        let refused =
            |wanted: &str| plan_for(&now, &listens(&[wanted])).map(drop).map_err(|error| error.to_string());
        assert_eq!(refused("tcp://[::]:1?backlog=7&tcp_keepidle=3"), Ok(()));
        for other in
            ["tcp://[::]:1?ipv6_only=false", "udp://127.0.0.1:3?name=other", "unix:///b?unix_mode=600"]
        {
            let why = "other options than it has: remove it in one reload and add it in another";
            assert_eq!(refused(other), Err(format!("listen = {other}: {why}")));
        }
        let why = "a server gets its descriptors at its start only";
        assert_eq!(refused("fd://web"), Err(format!("listen = fd://web: {why}")));
    }

    proptest! {
        /// Whatever is asked for is what there is, and no number ever means another address than before.
        #[test]
        fn what_is_open_is_what_is_wanted(
            steps in prop::collection::vec(prop::collection::vec(0usize..6, 1..6), 1..12),
        ) {
            let texts = [A, A_LINE, B, "unix:///b?framing=raw", "tcp://127.0.0.1:0", "tcp://127.0.0.1:9?backlog=3"];
            let mut now = listening(&["tcp://127.0.0.1:0"]);
            for step in steps {
                let mut wanted: Vec<&str> = step.iter().map(|which| texts[*which]).collect();
                let (_, then) = change(&now, &wanted);
                let mut open: Vec<String> = then.open().map(ToString::to_string).collect();
                open.sort();
                wanted.sort_unstable();
                prop_assert_eq!(open, wanted);
                let known = now.config.listen.len();
                prop_assert_eq!(&then.config.listen[..known], &now.config.listen[..]);
                now = then;
            }
        }
    }
}
