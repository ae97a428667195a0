//! What is measured: variants of our server, and peers. How each is started.

use crate::Protocol;
use crate::calls::beside_this;
use crate::churn::HTTP_BODY;
use crate::options::Options;
use crate::server::{Ready, Server, free_address};
use crate::tls::{self, Files};
use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// A program that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Ours, `examples/testbed.rs`.
    Testbed,
    /// `recv` and `send` in a loop around `epoll_wait`: what the kernel alone costs.
    Bare,
    /// The same, yielding its core for a moment before it sleeps.
    BareYield,
    /// A tokio echo.
    Tokio,
    /// A monoio echo (io_uring).
    Monoio,
    /// A hyper server: HTTP.
    Hyper,
    /// nginx: HTTP.
    Nginx,
    /// Redis: its `ECHO` command.
    Redis,
}

/// A program with its flags, under a name.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What tables call it.
    pub name: String,
    /// What is run.
    pub program: Program,
    /// The testbed's own flags.
    flags: String,
}

/// What a subject has to serve, and with how much.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What it has to understand.
    pub dialect: Dialect,
    /// Worker processes, or threads where there are no workers.
    pub workers: usize,
    /// Reactor threads of process mode.
    pub reactors: usize,
    /// Task workers of the testbed.
    pub task_workers: usize,
    /// Bytes of the largest packet.
    pub packet_max: usize,
    /// Whether it is spoken to by TLS, with the certificate of [`crate::tls`].
    pub tls: bool,
}

/// What a subject has to understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// To give back what it gets; Redis is asked to, by its `ECHO`.
    Echo(Protocol),
    /// To give back what it gets; HTTP servers answer a `GET`.
    Hello,
    /// The testbed's commands, in lines.
    Commands,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            dialect: Dialect::Echo(Protocol::Raw),
            workers: 2,
            reactors: 2,
            task_workers: 0,
            packet_max: 0,
            tls: false,
        }
    }
}

/// Variants of our server. Base mode is first: ratios are to the first.
const VARIANTS: &[(&str, &str)] = &[
    ("base-epoll", "--mode base --backend epoll"),
    ("ring-epoll", "--mode process --ipc ring --backend epoll"),
    ("socketpair-epoll", "--mode process --ipc socketpair --backend epoll"),
    ("base-uring", "--mode base --backend io_uring"),
    ("ring-uring", "--mode process --ipc ring --backend io_uring"),
    ("socketpair-uring", "--mode process --ipc socketpair --backend io_uring"),
    ("tasks-unix", "--mode process --ipc ring --backend epoll --task-ipc-mode unix"),
    ("tasks-msgqueue", "--mode process --ipc ring --backend epoll --task-ipc-mode msgqueue"),
    ("tasks-preemptive", "--mode process --ipc ring --backend epoll --task-ipc-mode msgqueue_preemptive"),
];

const PEERS: &[(&str, Program)] = &[
    ("bare", Program::Bare),
    ("bare-yield", Program::BareYield),
    ("tokio", Program::Tokio),
    ("monoio", Program::Monoio),
    ("hyper", Program::Hyper),
    ("nginx", Program::Nginx),
    ("redis", Program::Redis),
];

/// Names a row to which all others are compared besides the first.
pub const RIVAL: &str = "tokio";
/// `--against none`.
const NOBODY: &str = "none";
/// What [`Program::Testbed`] takes for packets with a header of 4 bytes.
const LENGTH_FLAGS: &str =
    "--framing length --package-length-type N --package-length-offset 0 --package-body-offset 4";
const HEADER: usize = 4;
/// How long our server yields at most.
const YIELD_US: u64 = 40;
/// The testbed's own.
const SOCKET_BUFFER: usize = 8 << 20;

impl Subject {
    fn variant(name: &str, flags: &str) -> Subject {
        Subject { name: name.to_owned(), program: Program::Testbed, flags: flags.to_owned() }
    }

    fn peer(program: Program, name: &str) -> Subject {
        Subject { name: name.to_owned(), program, flags: String::new() }
    }

    /// The same with more flags.
    #[must_use]
    pub fn with(&self, flags: &str) -> Subject {
        Subject { flags: format!("{} {flags}", self.flags), ..self.clone() }
    }

    /// What it speaks, where that is not what the others speak.
    pub fn label(&self) -> String {
        match self.program {
            Program::Hyper | Program::Nginx => format!("{} (HTTP)", self.name),
            Program::Redis => format!("{} (ECHO)", self.name),
            _ => self.name.clone(),
        }
    }

    /// Whether it speaks HTTP and nothing else.
    pub fn speaks_http(&self) -> bool {
        matches!(self.program, Program::Hyper | Program::Nginx)
    }

    /// Whether it is Redis, which echoes only by its command.
    pub fn speaks_redis(&self) -> bool {
        self.program == Program::Redis
    }

    /// Whether it has threads that only move packets.
    pub fn has_reactors(&self) -> bool {
        self.program == Program::Testbed && !self.flags.contains("--mode base")
    }

    /// Whether the number of its workers or threads can be chosen.
    pub fn has_workers(&self) -> bool {
        self.program != Program::Redis
    }

    /// Why it cannot be started on this machine.
    pub fn missing(&self) -> Option<String> {
        let (program, package) = match self.program {
            Program::Nginx => ("nginx", "nginx-light"),
            Program::Redis => ("redis-server", "redis-server"),
            _ => return None,
        };
        installed(program)
            .is_none()
            .then(|| format!("{}: not installed (apt-get install {package})", self.name))
    }

    /// Starts it on a free port of 127.0.0.1, and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or does not get ready.
    pub fn start(&self, setup: &Setup) -> Result<Server> {
        match self.program {
            Program::Nginx | Program::Redis => {
                let address = free_address()?;
                Server::start(&mut self.command(setup, address)?, Ready::Accepts(address))
            }
            _ => Server::start(&mut self.command(setup, ([127, 0, 0, 1], 0).into())?, Ready::Line),
        }
    }

    /// How it is started, listening on `address`.
    ///
    /// # Errors
    /// It is not there.
    pub fn command(&self, setup: &Setup, address: SocketAddr) -> Result<Command> {
        match self.program {
            Program::Testbed => self.testbed(setup, address),
            Program::Bare => own("bare_echo", setup, address),
            Program::BareYield => {
                let mut command = own("bare_echo", setup, address)?;
                command.arg(format!("--yield-us={YIELD_US}"));
                Ok(command)
            }
            Program::Tokio => own("tokio_echo", setup, address),
            Program::Monoio => own("monoio_echo", setup, address),
            Program::Hyper => own("hyper_hello", setup, address),
            Program::Nginx => nginx(setup, address),
            Program::Redis => redis(address),
        }
    }

    fn testbed(&self, setup: &Setup, address: SocketAddr) -> Result<Command> {
        let scheme = if setup.tls { "tls" } else { "tcp" };
        let mut flags: Vec<String> = vec![format!("--listen={scheme}://{address}")];
        if setup.tls {
            let files = tls::files()?;
            flags.push(format!("--ssl-cert-file={}", files.cert.display()));
            flags.push(format!("--ssl-key-file={}", files.key.display()));
        }
        flags.extend(self.flags.split_whitespace().map(str::to_owned));
        // What the variant says itself stands.
        let mut unless_given = |key: &str, value: usize| {
            if !self.flags.contains(key) {
                flags.push(format!("{key}={value}"));
            }
        };
        unless_given("--worker-num", setup.workers);
        if !self.flags.contains("--mode base") {
            unless_given("--reactor-num", setup.reactors);
        }
        if setup.task_workers > 0 {
            unless_given("--task-worker-num", setup.task_workers);
        }
        if setup.packet_max > 0 {
            unless_given("--package-max-length", setup.packet_max + HEADER);
            // A reply waits there until its client has taken it; a packet goes back whole.
            unless_given("--socket-buffer-size", (2 * setup.packet_max).max(SOCKET_BUFFER));
        }
        match setup.dialect {
            Dialect::Echo(Protocol::Length) => flags.extend(LENGTH_FLAGS.split(' ').map(str::to_owned)),
            Dialect::Echo(_) | Dialect::Hello => flags.push("--framing=raw".into()),
            Dialect::Commands => {}
        }
        let program = beside_this("examples/testbed")?;
        let mut command = Command::new(program);
        command.args(flags);
        Ok(command)
    }
}

/// A peer of this crate.
fn own(program: &str, setup: &Setup, address: SocketAddr) -> Result<Command> {
    let mut command = Command::new(beside_this(program)?);
    command.arg(format!("--listen=tcp://{address}")).arg(format!("--threads={}", setup.workers));
    match setup.dialect {
        Dialect::Echo(protocol) if protocol != Protocol::Raw => {
            command.arg(format!("--framing={}", protocol.name()));
            command.arg(format!("--packet-max={}", setup.packet_max.max(2 << 20)));
        }
        _ => {}
    }
    Ok(command)
}

fn nginx(setup: &Setup, address: SocketAddr) -> Result<Command> {
    let workers = setup.workers;
    let directory = output_directory()?.join("nginx");
    fs::create_dir_all(&directory)?;
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {what};\n"))
        .concat();
    let (ssl, more) = if setup.tls {
        let Files { cert, key, root } = tls::files()?;
        let more = format!(
            "ssl_certificate {};\nssl_certificate_key {};\nssl_protocols TLSv1.3;\n\
             location /large- {{ root {}; }}\n",
            cert.display(),
            key.display(),
            root.display()
        );
        (" ssl", more)
    } else {
        ("", String::new())
    };
    fs::write(
        directory.join("nginx.conf"),
        format!(
            "daemon off;\nworker_processes {workers};\npid nginx.pid;\nerror_log stderr error;\n\
             events {{ worker_connections 16384; }}\n\
             http {{\naccess_log off;\n{temporary}\
             keepalive_requests 1000000;\n\
             server {{ listen {address}{ssl};\n{more}location / {{ return 200 \"{HTTP_BODY}\"; }} }}\n}}\n"
        ),
    )?;
    let mut command = Command::new(installed("nginx").context("nginx is not installed")?);
    command.arg("-p").arg(directory).args(["-c", "nginx.conf", "-e", "stderr"]);
    Ok(command)
}

fn redis(address: SocketAddr) -> Result<Command> {
    let mut command = Command::new(installed("redis-server").context("redis-server is not installed")?);
    command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    // It takes no address but 127.0.0.1 for a local one, and connections come from others, too.
    command.args(["--protected-mode", "no"]);
    Ok(command)
}

/// A program of the system, by its usual places: daemons lie where the path of a user does not lead.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    directories.map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// `bench` in the directory that the build is in: charts, the page, the configuration of nginx.
///
/// # Errors
/// It cannot be found out where this program lies.
pub fn output_directory() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let profile = program.parent().and_then(Path::parent).context("the build lies in no directory")?;
    Ok(profile.join("bench"))
}

/// Subjects of a bench, and those that are missing here.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Who is measured: first our own, then peers.
    pub subjects: Vec<Subject>,
    /// Who is not, and why.
    pub skipped: Vec<String>,
}

impl Chosen {
    /// Takes what the command line names, or else what the bench has by itself; peers only if they can serve it.
    ///
    /// # Errors
    /// A name is unknown.
    pub fn from(options: &Options, variants: &[&str], peers: &[&str]) -> Result<Chosen> {
        let mut chosen = Chosen::default();
        let own = |name: &&str| !options.variants.iter().any(|(given, _)| given == name);
        let names = match options.only.is_empty() {
            true => variants.to_vec(),
            false => options.only.iter().map(String::as_str).collect(),
        };
        for name in names.into_iter().filter(own) {
            let Some((name, flags)) = VARIANTS.iter().find(|(known, _)| *known == name) else {
                let known: Vec<_> = VARIANTS.iter().map(|(name, _)| *name).collect();
                bail!("no variant named {name:?}; there are {}", known.join(", "));
            };
            chosen.subjects.push(Subject::variant(name, flags));
        }
        let given = options.variants.iter();
        chosen.subjects.extend(given.map(|(name, flags)| Subject::variant(name, flags)));
        let absent = |name: &&String| *name != NOBODY && !peers.contains(&name.as_str());
        for peer in options.against.iter().filter(absent) {
            chosen.skipped.push(format!("{peer}: has no part in this bench"));
        }
        for peer in chosen_peers(options, peers)? {
            match peer.missing() {
                Some(missing) => chosen.skipped.push(missing),
                None => chosen.subjects.push(peer),
            }
        }
        Ok(chosen)
    }
}

fn chosen_peers(options: &Options, peers: &[&str]) -> Result<Vec<Subject>> {
    for name in &options.against {
        if name != NOBODY && PEERS.iter().all(|(known, _)| known != name) {
            let known: Vec<_> = PEERS.iter().map(|(name, _)| *name).collect();
            bail!("no peer named {name:?}; there are {}, {NOBODY}", known.join(", "));
        }
    }
    let wanted = |name: &str| options.against.is_empty() || options.against.iter().any(|given| given == name);
    let chosen = PEERS.iter().filter(|(name, _)| peers.contains(name) && wanted(name));
    Ok(chosen.map(|(name, program)| Subject::peer(*program, name)).collect())
}

/// The names of all variants and peers, with what they are.
pub fn list() -> String {
    let mut text = String::from("variants of the server:\n");
    for (name, flags) in VARIANTS {
        text += &format!("  {name:<18} {flags}\n");
    }
    text += "peers:\n";
    for (name, program) in PEERS {
        let peer = Subject::peer(*program, name);
        let what = match program {
            Program::Testbed => "the testbed",
            Program::Bare => "recv and send around epoll_wait: what the kernel alone costs",
            Program::BareYield => "the same, yielding its core before it sleeps",
            Program::Tokio => "an echo server on tokio's multi-threaded runtime",
            Program::Monoio => "an echo server on monoio, one io_uring per thread",
            Program::Hyper => "hyper on tokio, answers GET / with a word",
            Program::Nginx => "answers GET / with a word",
            Program::Redis => "its ECHO command",
        };
        text += &format!("  {name:<18} {}\n", peer.missing().unwrap_or_else(|| what.to_owned()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(chosen: &Chosen) -> Vec<&str> {
        chosen.subjects.iter().map(|subject| subject.name.as_str()).collect()
    }

    #[test]
    fn the_command_line_chooses() {
        let own = (["base-epoll", "ring-epoll"], ["tokio", "monoio"]);
        let mut options = Options::default();
        let choose = |options: &Options| Chosen::from(options, &own.0, &own.1);
        assert_eq!(names(&choose(&options).unwrap()), ["base-epoll", "ring-epoll", "tokio", "monoio"]);
        options.only = vec!["ring-uring".into()];
        options.against = vec!["tokio".into(), "redis".into()];
        options.variants = vec![("mine".into(), "--worker-num 1".into())];
        let chosen = choose(&options).unwrap();
        assert_eq!(names(&chosen), ["ring-uring", "mine", "tokio"]);
        assert_eq!(chosen.skipped, ["redis: has no part in this bench"]);
        options.against = vec![NOBODY.into()];
        assert_eq!(names(&choose(&options).unwrap()), ["ring-uring", "mine"]);
        options.against = vec!["apache".into()];
        assert!(choose(&options).unwrap_err().to_string().contains("there are bare, bare-yield, tokio"));
        options = Options { only: vec!["mine".into()], ..Options::default() };
        assert!(choose(&options).unwrap_err().to_string().contains("no variant named \"mine\""));
    }
}
