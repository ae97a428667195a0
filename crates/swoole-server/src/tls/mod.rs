//! TLS of clients, by rustls.
//!
//! A [`Tls`] has what each address of `tls://` needs, a [`Stream`] is one connection's; neither touches a socket. The
//! [`desk`](crate::desk) puts the stream between its socket and its packets.
//!
//! **Who has the keys.** Every process has a [`Tls`], and it is empty until [`load`](Tls::load). In Process mode the master
//! loads, when it has forked the manager: nobody else does, and a manager that is executed later begins with nothing. In
//! Base mode the manager loads before it forks workers, whose own the connections are.
//!
//! **Reload.** Each reload reads all files again and makes everything anew, also the keys of session tickets: who was let
//! in by a certificate authority that is gone is not let in by a ticket. Connections go on with what they began with.
//!
//! | file | what |
//! |---|---|
//! | `mod` | what the addresses have, and when it is read |
//! | `files` | certificates and keys: where they are read, and who else can read them |
//! | `policy` | protocols, ciphers, clients' certificates |
//! | `names` | which certificate a client gets |
//! | `stream` | one connection: bytes in, bytes out |
//! | `info` | what handlers are told of it, in shared memory |
//! | `subject` | whom a client's certificate is for |
//! | `absent` | all of that without the feature `tls`: nothing |

#[cfg(not(feature = "tls"))]
mod absent;
#[cfg(feature = "tls")]
mod files;
mod info;
#[cfg(feature = "tls")]
mod names;
#[cfg(feature = "tls")]
mod policy;
#[cfg(feature = "tls")]
mod stream;
#[cfg(feature = "tls")]
mod subject;

#[cfg(not(feature = "tls"))]
pub(crate) use absent::{Stream, Tls, check};
pub(crate) use info::TlsTable;
pub use info::{ClientCertificate, TlsInfo};
#[cfg(feature = "tls")]
pub(crate) use loaded::{Tls, check};
#[cfg(feature = "tls")]
pub(crate) use stream::Stream;

/// What bytes off the wire have brought about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// The handshake is done, with these bytes.
    pub(crate) established: bool,
    /// The client will send no more.
    pub(crate) ended: bool,
}

#[cfg(feature = "tls")]
mod loaded {
    use std::sync::Arc;

    use parking_lot::RwLock;
    use rustls::ServerConfig;

    use super::{Stream, files, policy};
    use crate::config::{Config, Listen};
    use crate::error::{Error, Result};
    use crate::listening::Listening;

    /// By listener, as far as they are `tls://`.
    type Contexts = Vec<Option<Arc<ServerConfig>>>;

    /// What the addresses of `tls://` have, in this process.
    #[derive(Default)]
    pub(crate) struct Tls(RwLock<Contexts>);

    impl Tls {
        /// Reads certificates and keys, in place of those before. An error leaves these. Addresses that are closed keep
        /// theirs: somebody may be on the way in.
        pub(crate) fn load(&self, listening: &Listening) -> Result<()> {
            let config = listening.config();
            let context = |(number, listen): (usize, &Listen)| {
                if listen.tls && !listening.is_open(number) {
                    return Ok(self.0.read().get(number).cloned().flatten());
                }
                let own = listen.tls.then(|| policy::context(&listen.applied_to(config)));
                own.transpose().map_err(|error| Error::setup(format!("TLS of {}", listen.url()), error))
            };
            let contexts = config.listen.iter().enumerate().map(context).collect::<Result<Contexts>>()?;
            *self.0.write() = contexts;
            Ok(())
        }

        /// The same if there is TLS at all.
        pub(crate) fn load_if_any(&self, listening: &Listening) -> Result<()> {
            if listening.open().any(|listen| listen.tls) { self.load(listening) } else { Ok(()) }
        }

        /// The same amid a server's life.
        pub(crate) fn reload(&self, listening: &Listening) {
            if !listening.open().any(|listen| listen.tls) {
                return;
            }
            match self.load(listening) {
                Ok(()) => tracing::info!("TLS certificates are reloaded"),
                Err(error) => tracing::error!("TLS certificates stay as they were: {error}"),
            }
        }

        /// The TLS of a new connection that came in by this listener; `None` if that is not `tls://`.
        pub(crate) fn stream(&self, listener: u16) -> Result<Option<Stream>> {
            let context = self.0.read().get(usize::from(listener)).cloned().flatten();
            let stream = context.map(Stream::new).transpose();
            stream.map_err(|error| Error::setup("begin TLS", error))
        }
    }

    /// Finds out at the start what can be found out without any key: it is said where somebody sees it, and no process
    /// that is forked later has one.
    pub(crate) fn check(config: &Config) -> Result<()> {
        config.listen.iter().filter(|listen| listen.tls).try_for_each(|listen| {
            let own = listen.applied_to(config);
            files::check(&own).map_err(|error| Error::setup(format!("TLS of {}", listen.url()), error))
        })
    }
}
