//! User processes: functions of the program's own, each in a process that the manager keeps alive beside the workers.
//!
//! Functions cannot be handed to a process that was not forked. A manager that was executed anew has those that its own
//! `main` has added, and takes over only if they have the names of the running server's.
//!
//! | file | what |
//! |---|---|
//! | `mod` | what the program has added: names and functions |
//! | `life` | a user process, from the fork to the exit |
//! | `user` | what its function may do there |

mod life;
mod user;

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
pub(crate) use life::run;
pub use user::UserProcess;

/// User processes of one server.
const PROCESSES_MAX: usize = 64;
/// Bytes of a name.
const NAME_MAX: usize = 32;

/// What a user process does.
pub(crate) type Function = dyn Fn(&mut UserProcess) -> Result<()> + Send + Sync;

/// All of a program's, in the order in which it has added them, which is that of their slots.
#[derive(Clone, Default)]
pub(crate) struct Processes(Vec<(String, Arc<Function>)>);

impl Processes {
    pub(crate) fn add(&mut self, name: String, function: Arc<Function>) {
        self.0.push((name, function));
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    fn function(&self, id: u16) -> Option<Arc<Function>> {
        self.0.get(usize::from(id)).map(|(_, function)| Arc::clone(function))
    }

    /// Whether a server can have all of them.
    pub(crate) fn check(&self) -> Result<()> {
        for (at, (name, _)) in self.0.iter().enumerate() {
            let refused = |reason: String| Err(Error::UserProcess { name: name.clone(), reason });
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if !(1..=NAME_MAX).contains(&name.len()) || !name.bytes().all(is_allowed) {
                return refused(format!(
                    "a name is 1..={NAME_MAX} bytes, of the letters A-Z and a-z, the digits, `-`, `_` and `.`"
                ));
            }
            if self.0[..at].iter().any(|(other, _)| other == name) {
                return refused("there is one of this name already".into());
            }
            if at == PROCESSES_MAX {
                return refused(format!("there are {PROCESSES_MAX} already"));
            }
        }
        Ok(())
    }

    /// Whether these are those of a server that runs, which has them under these names.
    pub(crate) fn check_against(&self, running: &[String]) -> Result<()> {
        let ours = self.names();
        if ours == running { Ok(()) } else { Err(Error::OtherProcesses { running: running.to_vec(), ours }) }
    }
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn processes<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Processes {
        let mut processes = Processes::default();
        names.into_iter().for_each(|name| processes.add(name.into(), Arc::new(|_| Ok(()))));
        processes
    }

    fn refusal(processes: &Processes) -> String {
        processes.check().unwrap_err().to_string()
    }

    #[test]
    fn names_are_short_plain_and_taken_once() {
        processes(["metrics", "a", "A", "2.0_x-y", &"n".repeat(32)]).check().unwrap();
        for name in ["", &*"n".repeat(33), "two words", "tab\t", "Ü", "a/b", "\"", "%s"] {
            let error = refusal(&processes([name]));
            assert!(error.starts_with(&format!("add user process {name:?}: a name is 1..=32 ")), "{error}");
        }
        assert_eq!(
            refusal(&processes(["a", "b", "a"])),
            "add user process \"a\": there is one of this name already"
        );
    }

    #[test]
    fn there_are_as_many_as_there_may_be() {
        let some = |count: usize| processes((0..count).map(|number| format!("p{number}")));
        some(PROCESSES_MAX).check().unwrap();
        assert_eq!(refusal(&some(PROCESSES_MAX + 1)), "add user process \"p64\": there are 64 already");
    }

    #[test]
    fn a_server_is_taken_over_by_a_program_with_the_same_ones_only() {
        let ours = processes(["a", "b"]);
        let running = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        ours.check_against(&running(&["a", "b"])).unwrap();
        for other in [&["b", "a"][..], &["a"], &["a", "b", "c"], &[]] {
            let error = ours.check_against(&running(other)).unwrap_err().to_string();
            assert_eq!(
                error,
                format!(
                    "take over a server: its user processes are {other:?}, this program has [\"a\", \"b\"]"
                )
            );
        }
    }

    proptest! {
        /// A name is written as it is: into a title, a log line, JSON.
        #[test]
        fn no_name_needs_an_escape(name: String) {
            if processes([&name]).check().is_ok() {
                prop_assert_eq!(format!("{name:?}"), format!("\"{name}\""));
                prop_assert!(name.is_ascii() && !name.contains(char::is_whitespace));
            }
        }
    }
}
