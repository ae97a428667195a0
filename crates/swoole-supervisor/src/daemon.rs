//! Run in the background, and leave word of it: [`daemonize`] and the [`PidFile`].

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, chdir, getpid, setsid, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use swoole_sys::process::{Fork, ForkError, exit_now, fork};

/// Why a process could not go to the background.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// `fork(2)` was refused.
    #[error("daemonize: {0}")]
    Fork(#[from] ForkError),
    /// The file for the output cannot be opened.
    #[error("daemonize: cannot open {path} for the output: {source}")]
    Output {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A system call failed.
    #[error("daemonize: {operation} failed: {errno}")]
    Os {
        /// The system call.
        operation: &'static str,
        /// Its error.
        errno: Errno,
    },
}

/// Goes to the background: the calling process ends with code 0, and this returns in a new one that has no
/// terminal and never gets one (a second fork after `setsid(2)`, see `daemon(7)`).
///
/// The working directory becomes `/`, standard input `/dev/null`; standard output and error are appended to
/// `output`, or go to `/dev/null` without one. A relative `output` is meant from where the caller stands.
///
/// Call it early: before threads, event loops, the pid file, and anything else that belongs to a process.
/// What can be known beforehand fails before the terminal is lost: the output is opened and the process
/// forked first.
///
/// # Errors
///
/// [`DaemonError::Output`] and [`DaemonError::Fork`] in the process that called, [`DaemonError::Os`] in the new
/// one.
pub fn daemonize(output: Option<&Path>) -> Result<(), DaemonError> {
    let os = |operation| move |errno| DaemonError::Os { operation, errno };
    let path = output.unwrap_or(Path::new("/dev/null"));
    let unopened = |source| DaemonError::Output { path: path.to_owned(), source };
    let output = OpenOptions::new().append(true).create(output.is_some()).open(path).map_err(unopened)?;
    let input =
        File::open("/dev/null").map_err(|source| DaemonError::Output { path: "/dev/null".into(), source })?;

    if let Fork::Parent(child) = fork()? {
        // The child in between lives for a moment; its code says whether there is a daemon.
        let status = waitpid(Some(child), WaitOptions::empty()).map_err(os("waitpid"))?;
        let code = status.and_then(|(_, status)| status.exit_status()).unwrap_or(1);
        exit_now(code);
    }
    let daemon = setsid().map_err(os("setsid")).and_then(|_| Ok(fork()?));
    match daemon {
        Ok(Fork::Parent(_)) => exit_now(0),
        Ok(Fork::Child) => {}
        Err(error) => {
            eprintln!("{error}");
            exit_now(1);
        }
    }
    chdir("/").map_err(os("chdir"))?;
    dup2_stdin(&input).map_err(os("dup2"))?;
    dup2_stdout(&output).map_err(os("dup2"))?;
    dup2_stderr(&output).map_err(os("dup2"))
}

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PidFileError {
    /// A live process holds it.
    #[error(
        "pid file {path} is held by {}: it is running already; stop it first, or name another pid file",
        pid.map_or("a process that is just starting".into(), |pid| format!("process {}", pid.as_raw_pid()))
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Who holds it, if it has come to write that down.
        pid: Option<Pid>,
    },
    /// The file cannot be made or written.
    #[error("pid file {path}: cannot {operation}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        operation: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// A file that holds the pid of this process and a lock: two processes cannot hold it, and one that is left
/// over by a crash holds nobody up, because the kernel gives up the locks of the dead.
///
/// The lock (`flock(2)`) stays as long as a process has the descriptor. A forked child has it until it closes
/// it, as the children of a [`Supervisor`](crate::Supervisor) do before they run.
///
/// Dropping it removes the file, in the process that made it only.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Taken out only when it is dropped.
    file: Option<File>,
    owner: Pid,
}

impl PidFile {
    /// Writes the pid of this process to `path`, replacing a file that nobody holds. Who reads the file
    /// meanwhile sees the old pid or the new one.
    ///
    /// # Errors
    ///
    /// [`PidFileError::Held`] when a live process holds it, [`PidFileError::Io`] when the directory does not
    /// exist or does not allow it.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, PidFileError> {
        let path: PathBuf = path.into();
        let io = |operation| {
            let path = path.clone();
            move |source| PidFileError::Io { path, operation, source }
        };
        // Whoever locks the file that stands at `path` may replace it, nobody else.
        let gate = loop {
            let mut gate = open_options().open(&path).map_err(io("open it"))?;
            if !try_lock(&gate).map_err(io("lock it"))? {
                let mut text = String::new();
                gate.read_to_string(&mut text).map_err(io("read it"))?;
                let pid = text.trim().parse().ok().and_then(Pid::from_raw);
                return Err(PidFileError::Held { path, pid });
            }
            if is_at(&gate, &path) {
                break gate;
            }
        };
        let owner = getpid();
        let mut draft = path.clone().into_os_string();
        draft.push(format!(".{}", owner.as_raw_pid()));
        let draft = PathBuf::from(draft);
        let replace = || {
            let mut file = open_options().truncate(true).open(&draft)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            writeln!(file, "{}", owner.as_raw_pid())?;
            try_lock(&file)?;
            fs::rename(&draft, &path)?;
            Ok(file)
        };
        let file = replace().inspect_err(|_| drop(fs::remove_file(&draft))).map_err(io("write it"))?;
        drop(gate);
        Ok(Self { path, file: Some(file), owner })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        if getpid() != self.owner {
            // The descriptor may have been closed under this copy, and its number be somebody else's.
            std::mem::forget(file);
        } else if is_at(&file, &self.path) {
            // Whoever cannot remove it any more, having dropped privileges, leaves a file that is stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o644);
    options
}

/// Whether the lock is ours now.
fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether `file` is what stands at `path`, and not one that was removed or replaced.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(theirs)) = (file.metadata(), fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())
}
