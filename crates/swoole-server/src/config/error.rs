//! Why a configuration cannot be used, and where the fault stands.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Listen;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the program itself.
    Program,
    /// In a TOML file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// In an environment variable of this name.
    Environment(String),
    /// By this flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Program => f.write_str("program"),
            Origin::File { path, line } => write!(f, "{}: line {line}", path.display()),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value that is no value of its key, or out of range.
    #[error("{}{key} = {value}: {reason}", prefix(.origin))]
    Value {
        /// Where the value was given.
        origin: Origin,
        /// The key's name.
        key: &'static str,
        /// The value as text.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key {key}; --help lists all")]
    UnknownKey {
        /// Where it was given.
        origin: Origin,
        /// Its name.
        key: String,
    },
    /// A flag or variable that cannot be read: no value, a value too many, or not UTF-8.
    #[error("{origin}: {reason}")]
    Malformed {
        /// Which.
        origin: Origin,
        /// What is wrong with it.
        reason: String,
    },
    /// An argument that is no flag.
    #[error("unexpected argument {argument:?}; --help lists all flags")]
    Argument {
        /// The argument.
        argument: String,
    },
    /// The file that `--config` names cannot be read.
    #[error("flag --config: read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file that `--config` names is not TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where it stops being TOML.
        origin: Origin,
        /// What the TOML parser says.
        message: String,
    },
    /// `--help` or `--explain` was given: not a fault, the text to print.
    #[error("{0}")]
    Help(String),
}

impl ConfigError {
    /// A value that breaks a rule; its origin is filled in by who knows it.
    pub(crate) fn value(
        key: &'static str,
        value: impl fmt::Display,
        reason: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value { origin: Origin::Program, key, value: value.to_string(), reason: reason.into() }
    }

    /// The same error of what is set for this address alone.
    pub(super) fn of_address(self, listen: &Listen) -> ConfigError {
        match self {
            ConfigError::Value { key, value, reason, .. } => {
                ConfigError::value("listen", listen, format!("{key} = {value}: {reason}"))
            }
            other => other,
        }
    }

    /// The same error, said of the source that `find` knows for its key.
    pub(super) fn located(mut self, find: impl FnOnce(&str) -> Option<Origin>) -> ConfigError {
        if let ConfigError::Value { origin, key, .. } = &mut self
            && let Some(found) = find(key)
        {
            *origin = found;
        }
        self
    }
}

/// A value that the program set needs no address.
fn prefix(origin: &Origin) -> String {
    match origin {
        Origin::Program => String::new(),
        given => format!("{given}: "),
    }
}
