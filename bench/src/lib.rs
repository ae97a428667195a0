//! The benchmark of the project: `cargo xtask bench`.
//!
//! | part | its job |
//! | --- | --- |
//! | [`load`], [`churn`] | put load on a server, check every reply, measure latencies |
//! | [`server`], [`account`], [`calls`] | a server's processes: start and end, what they use, which system calls they make |
//! | [`subject`] | what is measured: variants of our server, and peers |
//! | [`bench`](mod@bench) | the benches: cells, and what a measurement of one is |
//! | [`sample`], [`stats`], [`report`] | numbers with their names; medians, spread, ratios; all of a bench |
//! | [`table`], [`chart`], [`page`], [`machine`] | how that is shown |
//! | [`peer`] | what the peers of this crate have in common |
//! | [`probe`] | measurements that need processes of their own: channels, doorbells, fork |

pub mod account;
pub mod bench;
pub mod calls;
pub mod chart;
pub mod churn;
pub mod load;
pub mod machine;
pub mod options;
pub mod page;
pub mod peer;
pub mod probe;
pub mod report;
pub mod sample;
pub mod server;
pub mod stats;
pub mod subject;
pub mod table;
pub mod tls;

use serde::Serialize;
use std::str::FromStr;

/// How requests and replies look on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Protocol {
    /// Bytes come back as they went.
    Raw,
    /// So do packets with a header of 4 bytes, network order, that holds the length of what follows it.
    Length,
    /// Redis's `ECHO`.
    Redis,
}

impl Protocol {
    /// The flag's value that chooses it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Raw => "raw",
            Protocol::Length => "length",
            Protocol::Redis => "redis",
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Protocol, String> {
        [Protocol::Raw, Protocol::Length, Protocol::Redis]
            .into_iter()
            .find(|protocol| protocol.name() == text)
            .ok_or_else(|| format!("{text:?} is unknown: give raw, length or redis"))
    }
}
