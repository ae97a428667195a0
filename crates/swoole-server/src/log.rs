//! Log lines in Swoole's format, through [`tracing`].
//!
//! ```text
//! [2026-11-22 02:00:26.123 *5513.0]  INFO  accepted peer=127.0.0.1:41000
//! ```
//!
//! Local time, the mark of the [`Role`] that speaks, its process id, its number, a tab, the level, a tab, the text and
//! its fields.
//! Each line is one write(2) to a descriptor in append mode, so lines of different processes never mix in a file. No
//! thread is started and nothing is buffered, so a line that was logged survives the death of its author, and the
//! logger may be set up before a fork.
//!
//! A program that installs a `tracing` subscriber of its own before the server starts keeps it.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::fs::{Mode, OFlags};
use rustix::io::{DupFlags, Errno};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogLevel;

/// Bytes of the longest line, its end included. What is longer is cut, and says by how much.
pub(crate) const LINE_MAX: usize = 16 * 1024;

/// Bytes of a longest line that are not its text: its head and the note that it was cut.
const FRAME_ROOM: usize = 128;

/// What a process or thread does in the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// None yet: the server has not started. Mark `%`.
    Starting = b'%',
    /// The master. Mark `#`.
    Master = b'#',
    /// The manager. Mark `$`.
    Manager = b'$',
    /// A worker. Mark `*`.
    Worker = b'*',
    /// A task worker. Mark `^`.
    TaskWorker = b'^',
    /// A user process. Mark `+` (`@` in Swoole).
    UserProcess = b'+',
    /// A reactor thread of the master. Mark `@` (that of the master itself in Swoole).
    Reactor = b'@',
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// What it does.
    pub(crate) role: Role,
    /// Which one of its kind: the id of a worker, a user process or a reactor, else 0.
    pub(crate) id: u32,
}

impl Identity {
    fn pack(self) -> u64 {
        u64::from(self.role as u8) << 32 | u64::from(self.id)
    }

    fn unpack(packed: u64) -> Identity {
        let roles =
            [Role::Master, Role::Manager, Role::Worker, Role::TaskWorker, Role::UserProcess, Role::Reactor];
        let role = roles.into_iter().find(|role| u64::from(*role as u8) == packed >> 32);
        Identity { role: role.unwrap_or(Role::Starting), id: packed as u32 }
    }
}

/// The identity of this process; forks copy it.
static PROCESS: AtomicU64 = AtomicU64::new((Role::Starting as u64) << 32);

thread_local! {
    /// The identity of this thread, where it differs from that of its process.
    static THREAD: Cell<Option<Identity>> = const { Cell::new(None) };
}

/// Says what this process is from now on.
pub(crate) fn set_identity(identity: Identity) {
    PROCESS.store(identity.pack(), Ordering::Relaxed);
}

/// Says what this thread is from now on, if it is not what its process is.
pub(crate) fn set_thread_identity(identity: Identity) {
    THREAD.set(Some(identity));
}

fn identity() -> Identity {
    // A thread that is just ending has no local variables any more, but may log.
    THREAD
        .try_with(Cell::get)
        .ok()
        .flatten()
        .unwrap_or_else(|| Identity::unpack(PROCESS.load(Ordering::Relaxed)))
}

/// The log file could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open log_file {}: {source}; is its directory there and writable?", path.display())]
pub(crate) struct LogError {
    /// The file.
    pub(crate) path: PathBuf,
    /// Why.
    pub(crate) source: io::Error,
}

/// Where lines go, if not to standard error.
static FILE: OnceLock<RwLock<LogFile>> = OnceLock::new();

struct LogFile {
    path: PathBuf,
    descriptor: OwnedFd,
}

fn open(path: &Path) -> Result<OwnedFd, LogError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))
        .map_err(|errno| LogError { path: path.into(), source: errno.into() })
}

/// Makes lines of `level` and above go to `file`, or to standard error: standard output belongs to the user.
///
/// Call it once, before the first fork. If the program has installed a subscriber of its own, nothing is done.
/// `file` is absolute if the directory is going to change: it may be opened again.
///
/// # Errors
/// [`LogError`]: the file cannot be opened; lines go to standard error.
pub(crate) fn init(level: LogLevel, file: Option<&Path>) -> Result<(), LogError> {
    // It fails if there is one already; asking beforehand would be misled by one that was set for a scope only.
    if tracing::subscriber::set_global_default(subscriber(level.into(), Output)).is_err() {
        return Ok(());
    }
    if let Some(path) = file {
        let descriptor = open(path)?;
        // It is empty: nobody gets here twice.
        let _ = FILE.set(RwLock::new(LogFile { path: path.into(), descriptor }));
    }
    Ok(())
}

/// Opens the log file again by its name, after it has been moved away, for this process. The descriptor keeps its
/// number. No effect without a log file.
///
/// # Errors
/// [`LogError`]: the file cannot be opened; lines go on to the old one.
fn reopen() -> Result<(), LogError> {
    let Some(file) = FILE.get() else { return Ok(()) };
    let mut file = file.write().unwrap_or_else(PoisonError::into_inner);
    let fresh = open(&file.path)?;
    rustix::io::dup3(fresh, &mut file.descriptor, DupFlags::CLOEXEC)
        .map_err(|errno| LogError { path: file.path.clone(), source: errno.into() })
}

/// [`reopen`]s the log file; what goes wrong is said in the old one.
pub(crate) fn reopen_or_say() {
    if let Err(error) = reopen() {
        tracing::error!("{error}");
    }
}

/// The log file's descriptor, which a forked process must keep when it closes all others.
pub(crate) fn descriptor() -> Option<RawFd> {
    let file = FILE.get()?.read().unwrap_or_else(PoisonError::into_inner);
    Some(file.descriptor.as_raw_fd())
}

fn subscriber<W>(level: LevelFilter, output: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        // It would be told to standard error with a macro that panics if nobody reads that.
        .log_internal_errors(false)
        .event_format(SwooleFormat { zone: TimeZone::system() })
        .with_writer(output);
    tracing_subscriber::registry().with(level).with(lines)
}

/// Writes to the log file, or to standard error.
struct Output;

impl<'w> MakeWriter<'w> for Output {
    type Writer = Output;

    fn make_writer(&'w self) -> Output {
        Output
    }
}

impl io::Write for Output {
    /// One write(2), of a whole line: the layer above has assembled it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = match FILE.get() {
            Some(file) => {
                append(&file.read().unwrap_or_else(PoisonError::into_inner).descriptor, line, &TORN)
            }
            None => append(io::stderr(), line, &TORN),
        };
        written.map(|()| line.len()).map_err(Errno::into)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line could not be written, or not to its end: there was no room (`ENOSPC`, `EFBIG`).
static TORN: AtomicBool = AtomicBool::new(false);

/// Writes a whole line, and begins a new one before it if the last one may have no end. A process that has not met the
/// want of room itself does not know of that.
fn append(to: impl AsFd, line: &[u8], torn: &AtomicBool) -> Result<(), Errno> {
    let end: &[u8] = if torn.swap(false, Ordering::Relaxed) { b"\n" } else { b"" };
    // The usual case is one slice, and one call.
    let mut left = if end.is_empty() { Cow::Borrowed(line) } else { Cow::Owned([end, line].concat()) };
    while !left.is_empty() {
        match rustix::io::write(&to, &left) {
            Ok(written) if written == left.len() => break,
            // All that fits, or all until a signal came.
            Ok(written @ 1..) => left = Cow::Owned(left[written..].to_vec()),
            Err(Errno::INTR) => {}
            failed => {
                torn.store(true, Ordering::Relaxed);
                return Err(failed.err().unwrap_or(Errno::NOSPC));
            }
        }
    }
    Ok(())
}

/// `[TIME MARKpid.id]\tLEVEL\tspans text fields\n`
struct SwooleFormat {
    zone: TimeZone,
}

impl<S, N> FormatEvent<S, N> for SwooleFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let time = Timestamp::now().to_zoned(self.zone.clone());
        let Identity { role, id } = identity();
        write!(
            writer,
            "[{} {}{}.{id}]\t{}\t",
            time.strftime("%F %T%.3f"),
            char::from(role as u8),
            std::process::id(),
            level_name(*event.metadata().level()),
        )?;
        let mut text = Text { writer, room: LINE_MAX - FRAME_ROOM, cut: 0 };
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            write!(text, "{}", span.name())?;
            match span.extensions().get::<FormattedFields<N>>() {
                Some(fields) if !fields.is_empty() => write!(text, "{{{fields}}}: ")?,
                _ => text.write_str(": ")?,
            }
        }
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        text.end()
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

/// The part of a line that others write: bounded, and unable to look like a line of its own or to command a terminal.
struct Text<'w> {
    writer: Writer<'w>,
    /// Bytes that may still come.
    room: usize,
    /// Bytes that came when there was no room.
    cut: usize,
}

impl Text<'_> {
    fn push(&mut self, text: &str) -> fmt::Result {
        // Once something is missing, nothing after it is shown.
        let fits = if self.cut == 0 { text.floor_char_boundary(self.room) } else { 0 };
        self.room -= fits;
        self.cut += text.len() - fits;
        self.writer.write_str(&text[..fits])
    }

    fn end(mut self) -> fmt::Result {
        match self.cut {
            0 => writeln!(self.writer),
            cut => writeln!(self.writer, " ... ({cut} bytes cut)"),
        }
    }
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let plain = part.trim_end_matches(char::is_control);
            self.push(plain)?;
            match part[plain.len()..].chars().next() {
                None => {}
                // A text of several lines stays readable, and its lines cannot pass for lines of the log.
                Some('\n') => self.push("\n\t")?,
                Some('\t') => self.push("\t")?,
                Some(control) => {
                    for escaped in control.escape_default() {
                        self.push(escaped.encode_utf8(&mut [0; 4]))?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
