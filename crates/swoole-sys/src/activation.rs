//! Descriptors that whoever has executed this program gives it by number: the protocol of `sd_listen_fds(3)`, which
//! systemd speaks, and others do (`systemfd`, s6, `podman`).

use std::os::fd::{OwnedFd, RawFd};

use rustix::io::Errno;

use crate::fds;
use crate::process::thread_names;

/// The first number of those that are given.
const FIRST: RawFd = 3;

/// Who the descriptors are for, how many there are, and their names with colons between them.
const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A descriptor that this process was given.
#[derive(Debug)]
pub struct Given {
    /// The number that it had.
    pub number: RawFd,
    /// Its name; empty if it has none.
    pub name: String,
    /// The descriptor, closed across the next `execve(2)`.
    pub descriptor: OwnedFd,
}

/// Why [`take`] could not take what there is.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Another thread could read the environment while it changes.
    #[error("the process has {count} threads, and takes descriptors only while it has one")]
    Threads {
        /// How many it has.
        count: usize,
    },
    /// The variables contradict each other.
    #[error("LISTEN_FDS = {fds}: {problem}")]
    Variables {
        /// What stands there.
        fds: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// One of the numbers is no descriptor.
    #[error("descriptor {number} of LISTEN_FDS: {source}")]
    Descriptor {
        /// The number.
        number: RawFd,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// The threads cannot be counted.
    #[error("count the threads: {0}")]
    Count(#[from] std::io::Error),
}

/// Takes the descriptors that this process was given, once: the variables are gone afterwards, so that no program that it
/// executes takes them for its own. None if there are none, or they are for another process (`LISTEN_PID`).
///
/// # Precondition
///
/// Nobody else in this process has taken one of the numbers from 3 on for its own: they are closed, and have other ones.
/// Who gives descriptors gives them before the program has opened anything.
///
/// # Errors
///
/// [`TakeError`]; what was taken so far is closed.
pub fn take() -> Result<Vec<Given>, TakeError> {
    let read = |name: &str| std::env::var(name).ok();
    let own = std::process::id().to_string();
    if read(VARIABLES[0]).as_deref() != Some(&own) {
        return Ok(Vec::new());
    }
    let names = names(&read(VARIABLES[1]).unwrap_or_default(), read(VARIABLES[2]).as_deref())?;
    let count = thread_names()?.len();
    if count != 1 {
        return Err(TakeError::Threads { count });
    }
    for name in VARIABLES {
        // SAFETY: the process has one thread, this one, so nobody reads or writes the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    let taken = names.into_iter().zip(FIRST..).map(|(name, number)| {
        let descriptor = fds::adopt(number)
            .map_err(|source: Errno| TakeError::Descriptor { number, source: source.into() })?;
        Ok(Given { number, name, descriptor })
    });
    taken.collect()
}

/// The name of each descriptor.
fn names(fds: &str, names: Option<&str>) -> Result<Vec<String>, TakeError> {
    let wrong = |problem| TakeError::Variables { fds: fds.into(), problem };
    let count = fds.parse::<u16>().map_err(|_| wrong("no number of descriptors"))?;
    let Some(names) = names else { return Ok(vec![String::new(); count.into()]) };
    let names: Vec<String> = names.split(':').map(str::to_owned).collect();
    if names.len() == usize::from(count) {
        Ok(names)
    } else {
        Err(wrong("LISTEN_FDNAMES has another number of names"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_descriptor_has_a_name() {
        assert_eq!(names("2", None).unwrap(), ["", ""]);
        assert_eq!(names("2", Some("web:admin")).unwrap(), ["web", "admin"]);
        assert_eq!(names("0", None).unwrap(), [""; 0]);
        for (fds, given) in [("2", "web"), ("1", "a:b"), ("x", "web"), ("-1", "web"), ("", "web")] {
            assert!(names(fds, Some(given)).is_err(), "{fds} {given}");
        }
    }
}
