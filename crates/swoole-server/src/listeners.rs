//! The listening sockets of a server: opened, or taken from whoever has started it, before the first fork.

use std::io::ErrorKind;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use swoole_reactor::listener::{
    Address, Keepalive, ListenError, ListenOptions, TcpOptions, UnixOptions, inherit, listen, local_address,
};
use swoole_sys::activation::{self, Given};
use swoole_sys::user;

use crate::config::{Config, ConfigError, Listen, Mode};
use crate::error::{Error, Result};
use crate::listening::{Change, Listening, Opening};
use crate::master::Listeners;

/// For how long a server that starts tries to have an address.
const PATIENCE: Duration = Duration::from_millis(250);

/// All sockets, in the order of the configuration, with the addresses that they really have.
pub(crate) fn open(config: &Config) -> Result<Listeners> {
    let wants_given = config.listen.iter().any(|wanted| matches!(wanted.address, Address::Inherited(_)));
    let mut given = if wants_given {
        activation::take()
            .map_err(|error| Error::setup("take the sockets that the program was given", error))?
    } else {
        Vec::new()
    };
    let open = |wanted: &Listen| {
        let (socket, address) = match &wanted.address {
            Address::Inherited(name) => {
                let options = options(config, wanted)?;
                let socket = claim(&mut given, name, wanted)?;
                let address = inherit(&socket, &wanted.address, &options.tcp)?;
                (socket, address)
            }
            _ => return open_one(config, wanted, PATIENCE),
        };
        Ok((socket, Listen { address, ..wanted.clone() }))
    };
    let listeners = config.listen.iter().map(open).collect();
    for Given { number, name, .. } in given {
        tracing::warn!(
            "descriptor {number} ({name:?}), which the program was given, is closed: no address asks for it"
        );
    }
    listeners
}

/// The one of this name, or of this number.
fn claim(given: &mut Vec<Given>, name: &str, wanted: &Listen) -> Result<OwnedFd> {
    let number: Option<i32> = name.parse().ok();
    let is_meant = |given: &Given| number.map_or(given.name == name, |number| given.number == number);
    let refuse = |reason: String| Err(ConfigError::value("listen", wanted, reason).into());
    match given.iter().filter(|given| is_meant(given)).count() {
        1 => {}
        0 => {
            let known: Vec<String> =
                given.iter().map(|given| format!("{} ({:?})", given.number, given.name)).collect();
            let known = if known.is_empty() { "none that is left".into() } else { known.join(", ") };
            return refuse(format!(
                "the program was given no such descriptor (LISTEN_FDS of this process, LISTEN_FDNAMES), but {known}"
            ));
        }
        several => {
            return refuse(format!(
                "{several} descriptors have that name: give each a FileDescriptorName= of its own, or ask by number"
            ));
        }
    }
    let index = given.iter().position(is_meant).unwrap_or_default();
    Ok(given.remove(index).descriptor)
}

/// Base mode: what each worker has of an address, by worker: a socket of its own, except that of a unix socket and of one that
/// is inherited there can be only one, for all. `socket` is the first worker's.
pub(crate) fn open_stalls(
    config: &Config,
    wanted: &Listen,
    (socket, found): (&OwnedFd, &Listen),
) -> Result<Vec<OwnedFd>> {
    let open = |worker: u16| match wanted.address {
        Address::Tcp(_) | Address::Udp(_) if worker > 0 => {
            let options = ListenOptions { first: false, ..options(config, wanted)? };
            Ok(open_socket(&found.address, &options, config, Duration::ZERO)?)
        }
        _ => Ok(socket.try_clone()?),
    };
    (0..config.worker_num).map(open).collect()
}

/// What a change opens, in its order, with where it is; no socket where one is handed over. An error leaves nothing.
pub(crate) fn open_more(now: &Listening, change: &Change) -> Result<Vec<(Option<OwnedFd>, Listen)>> {
    let mut opened = Vec::new();
    for Opening { wanted, instead_of, .. } in &change.open {
        let found = match instead_of.and_then(|before| now.address(before)) {
            Some(before) => Ok((None, Listen { address: before.address.clone(), ..wanted.clone() })),
            // Clients wait meanwhile.
            None => {
                open_one(now.config(), wanted, Duration::ZERO).map(|(socket, found)| (Some(socket), found))
            }
        };
        opened.push(found.inspect_err(|_| put_away_unused(&opened))?);
    }
    Ok(opened)
}

fn open_one(config: &Config, wanted: &Listen, patience: Duration) -> Result<(OwnedFd, Listen)> {
    let socket = open_socket(&wanted.address, &options(config, wanted)?, config, patience)?;
    let address = local_address(&socket, &wanted.address)?;
    Ok((socket, Listen { address, ..wanted.clone() }))
}

/// A socket that listens gets the options of this listener.
pub(crate) fn set_again(listening: &Listening, number: u16, socket: BorrowedFd<'_>) -> Result<()> {
    let Some(listen) = listening.address(number) else { return Ok(()) };
    let options = options(listening.config(), listen)?;
    let failed = |error: rustix::io::Errno| {
        Error::setup(format!("set the options of {}", listen.url()), std::io::Error::from(error))
    };
    rustix::net::listen(socket, options.backlog).map_err(failed)?;
    if matches!(listen.address, Address::Tcp(_)) {
        inherit(&socket.try_clone_to_owned()?, &listen.address, &options.tcp)?;
    }
    Ok(())
}

/// Removes the file of a socket that this server has made. `listen`: as it was asked for, since one that was inherited is at a
/// path, too.
pub(crate) fn put_away(listen: &Listen) {
    if let Address::Unix(path) | Address::UnixDatagram(path) = &listen.address {
        // Somebody may have put it away already.
        let _ = std::fs::remove_file(path);
    }
}

/// The same for sockets that come to nothing.
pub(crate) fn put_away_unused(opened: &[(Option<OwnedFd>, Listen)]) {
    opened.iter().filter(|(socket, _)| socket.is_some()).for_each(|(_, listen)| put_away(listen));
}

fn options(config: &Config, wanted: &Listen) -> Result<ListenOptions> {
    let own = &wanted.socket;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let keepalive = Keepalive {
        idle: seconds(own.tcp_keepidle.unwrap_or(config.tcp_keepidle)),
        interval: seconds(own.tcp_keepinterval.unwrap_or(config.tcp_keepinterval)),
        count: own.tcp_keepcount.unwrap_or(config.tcp_keepcount),
    };
    let is_kept_alive = own.open_tcp_keepalive.unwrap_or(config.open_tcp_keepalive);
    let tcp = TcpOptions {
        nodelay: own.open_tcp_nodelay.unwrap_or(config.open_tcp_nodelay),
        keepalive: is_kept_alive.then_some(keepalive),
        defer_accept: own.tcp_defer_accept.unwrap_or(config.tcp_defer_accept),
        fastopen: own.tcp_fastopen.unwrap_or(config.tcp_fastopen),
        user_timeout: own.tcp_user_timeout.unwrap_or(config.tcp_user_timeout),
    };
    let is_shared = own.reuse_port.unwrap_or(config.reuse_port);
    Ok(ListenOptions {
        backlog: own.backlog.unwrap_or(config.backlog) as i32,
        reuse_port: is_shared || config.mode == Mode::Base,
        // Of the others of this server, the first one knows; strangers are let in only if that is wanted.
        first: !is_shared,
        ipv6_only: own.ipv6_only.unwrap_or(config.ipv6_only),
        tcp,
        unix: unix_options(config, wanted)?,
    })
}

fn unix_options(config: &Config, wanted: &Listen) -> Result<UnixOptions> {
    if !matches!(wanted.address, Address::Unix(_) | Address::UnixDatagram(_)) {
        return Ok(UnixOptions::default());
    }
    let own = &wanted.socket;
    let user = own.unix_user.as_deref().or(config.unix_user.as_deref());
    let group = own.unix_group.as_deref().or(config.unix_group.as_deref());
    Ok(UnixOptions {
        mode: own.unix_mode.or(config.unix_mode),
        user: user.map(|name| find("unix_user", name, wanted)).transpose()?,
        group: group.map(|name| find("unix_group", name, wanted)).transpose()?,
    })
}

/// The number of a user or a group.
fn find(key: &'static str, name: &str, wanted: &Listen) -> Result<u32> {
    let found = match key {
        "unix_user" => user::find_user(name).map(|user| user.map(|user| user.uid.as_raw())),
        _ => user::find_group(name).map(|group| group.map(rustix::process::Gid::as_raw)),
    };
    let failed = |error| Error::setup(format!("look up {key} = {name}"), std::io::Error::from(error));
    // The number that stands for "leave it" is nobody's.
    let number = || name.parse().ok().filter(|number| *number != u32::MAX);
    let found = found.map_err(failed)?.or_else(number);
    let unknown =
        || ConfigError::value("listen", wanted, format!("{key} = {name}: there is none of that name"));
    found.ok_or_else(|| unknown().into())
}

/// Of a socket for datagrams the kernel's buffers are as large as it allows, up to `socket_buffer_size`: whoever has no room
/// there is lost.
fn open_socket(
    address: &Address,
    options: &ListenOptions,
    config: &Config,
    patience: Duration,
) -> Result<OwnedFd, ListenError> {
    let socket = listen_patiently(address, options, patience)?;
    if address.is_datagram() {
        // It is cut to what the kernel allows; one that allows nothing else goes by its default.
        let _ = set_socket_recv_buffer_size(&socket, config.socket_buffer_size);
        let _ = set_socket_send_buffer_size(&socket, config.socket_buffer_size);
    }
    Ok(socket)
}

/// The kernel closes the sockets of a killed process's io_uring a few milliseconds after the process is gone, and tells
/// nobody: a server that is restarted at once has to look again.
fn listen_patiently(
    address: &Address,
    options: &ListenOptions,
    patience: Duration,
) -> Result<OwnedFd, ListenError> {
    let deadline = Instant::now() + patience;
    loop {
        match listen(address, options) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(number: i32, name: &str) -> Given {
        let descriptor = std::fs::File::open("/dev/null").unwrap().into();
        Given { number, name: name.into(), descriptor }
    }

    #[test]
    fn a_descriptor_is_claimed_by_name_or_number_and_once() {
        let mut all = vec![given(3, "web"), given(4, "admin"), given(5, "both"), given(6, "both")];
        let mut claim = |name: &str| {
            let wanted: Listen = format!("fd://{name}").parse().unwrap();
            super::claim(&mut all, name, &wanted).map_err(|error| error.to_string())
        };
        claim("admin").unwrap();
        claim("3").unwrap();
        claim("5").unwrap();
        let none =
            "the program was given no such descriptor (LISTEN_FDS of this process, LISTEN_FDNAMES), but";
        assert_eq!(claim("admin").unwrap_err(), format!("listen = fd://admin: {none} 6 (\"both\")"));
        claim("both").unwrap();
        assert_eq!(claim("web").unwrap_err(), format!("listen = fd://web: {none} none that is left"));
        let mut all = vec![given(5, "both"), given(6, "both")];
        let wanted = "fd://both".parse().unwrap();
        assert_eq!(
            super::claim(&mut all, "both", &wanted).unwrap_err().to_string(),
            "listen = fd://both: 2 descriptors have that name: give each a FileDescriptorName= of its own, or ask by \
             number"
        );
    }

    #[test]
    fn an_address_has_its_own_options_or_those_of_the_server() {
        let mut config = Config { tcp_keepidle: 30, unix_mode: Some(0o600), ..Config::default() };
        let tcp = |text: &str, config: &Config| options(config, &text.parse().unwrap()).unwrap();
        let plain = tcp("tcp://[::]:0", &config);
        assert_eq!((plain.backlog, plain.first, plain.reuse_port, plain.ipv6_only), (511, true, false, true));
        assert_eq!(plain.tcp, TcpOptions { nodelay: true, ..TcpOptions::default() });
        assert_eq!(plain.unix, UnixOptions::default(), "it is no unix socket");
        let own = tcp(
            "tcp://[::]:0?backlog=9&open_tcp_nodelay=false&open_tcp_keepalive=true&tcp_keepcount=2&reuse_port=true",
            &config,
        );
        assert_eq!((own.backlog, own.first, own.reuse_port), (9, false, true));
        let seconds = Duration::from_secs;
        let keepalive = Keepalive { idle: seconds(30), interval: seconds(60), count: 2 };
        assert_eq!(own.tcp, TcpOptions { keepalive: Some(keepalive), ..TcpOptions::default() });
        let unix = tcp("unix:///a?unix_user=0&unix_group=root", &config).unix;
        assert_eq!(unix, UnixOptions { mode: Some(0o600), user: Some(0), group: Some(0) });
        let nobody = "unix:///a?unix_user=not-there".parse().unwrap();
        assert_eq!(
            options(&config, &nobody).unwrap_err().to_string(),
            "listen = unix:///a?unix_user=not-there: unix_user = not-there: there is none of that name"
        );
        config.mode = Mode::Base;
        let stall = tcp("tcp://[::]:0", &config);
        assert_eq!((stall.first, stall.reuse_port), (true, true));
    }
}
