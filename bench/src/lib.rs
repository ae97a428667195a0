//! What the programs of this crate share: the load client, and the processes of a server under load.

pub mod load;
pub mod server;

use std::str::FromStr;

/// How requests are told apart on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Not at all: the server echoes what it reads.
    Raw,
    /// By a header of 4 bytes, network order, that holds the length of what follows it.
    Length,
}

impl Framing {
    /// The flag's value that chooses it.
    pub fn name(self) -> &'static str {
        match self {
            Framing::Raw => "raw",
            Framing::Length => "length",
        }
    }
}

impl FromStr for Framing {
    type Err = String;

    fn from_str(text: &str) -> Result<Framing, String> {
        [Framing::Raw, Framing::Length]
            .into_iter()
            .find(|framing| framing.name() == text)
            .ok_or_else(|| format!("framing {text:?} is unknown: give raw or length"))
    }
}
