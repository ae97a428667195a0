//! How a reactor is made.

use std::fmt;
use std::str::FromStr;

/// Which of the kernel's interfaces to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The one that serves best as far as this project has measured: io_uring where it can be used and the
    /// kernel is Linux 6.12 or later, else epoll.
    #[default]
    Auto,
    /// `epoll(7)`.
    Epoll,
    /// `io_uring(7)`, Linux 6.0 or later; an error where it is missing or forbidden.
    IoUring,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Epoll => "epoll",
            Self::IoUring => "io_uring",
        })
    }
}

/// The text is no [`Backend`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no backend is called `{0}`: use auto, epoll or io_uring")]
pub struct UnknownBackend(String);

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(text: &str) -> Result<Self, UnknownBackend> {
        match text {
            "auto" => Ok(Self::Auto),
            "epoll" => Ok(Self::Epoll),
            "io_uring" => Ok(Self::IoUring),
            _ => Err(UnknownBackend(text.to_owned())),
        }
    }
}

/// How a reactor is made. `Options::default()` suits a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which of the kernel's interfaces to use. [`Backend::Auto`].
    pub backend: Backend,
    /// Bytes, default 64 KiB, at least 1: the most that one [`Event::Data`] or [`Event::Datagram`] holds, the
    /// same buffer for all. io_uring has a pool of four times as much besides, which all streams with little
    /// input share.
    ///
    /// [`Event::Data`]: crate::Event::Data
    /// [`Event::Datagram`]: crate::Event::Datagram
    pub receive_buffer: usize,
    /// The most reads from one stream, datagrams from one socket, connections from one listener and signals
    /// in one turn, default 16, at least 1, so that a peer who sends without end cannot starve the others.
    /// What is left waits for the next turn. With io_uring the kernel accepts, and reads streams with little input, for itself,
    /// with a bound of its own (32 completions of one operation before the next one's turn).
    pub budget: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { backend: Backend::Auto, receive_buffer: 64 << 10, budget: 16 }
    }
}

/// What a reactor runs on, and why; for one line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// [`Backend::Epoll`] or [`Backend::IoUring`], never [`Backend::Auto`].
    pub backend: Backend,
    /// Why this one, and what of its features are in use.
    pub reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.backend, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_read_as_they_are_written() {
        for backend in [Backend::Auto, Backend::Epoll, Backend::IoUring] {
            assert_eq!(backend.to_string().parse(), Ok(backend));
        }
        let error = "kqueue".parse::<Backend>().unwrap_err();
        assert_eq!(error.to_string(), "no backend is called `kqueue`: use auto, epoll or io_uring");
    }
}
