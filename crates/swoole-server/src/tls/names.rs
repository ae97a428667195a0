//! Which certificate a client gets, by the name that it asks for. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Certificates by host name, and the one for all other names.
#[derive(Debug)]
pub(super) struct Names<T> {
    /// Names in lower case, of which the first label may be `*`.
    by_name: HashMap<String, T>,
    default: T,
}

impl<T> Names<T> {
    pub(super) fn new(default: T, by_name: impl IntoIterator<Item = (String, T)>) -> Names<T> {
        Names { by_name: by_name.into_iter().collect(), default }
    }

    /// For a client that asks for this name, in lower case, or for none.
    fn find(&self, name: Option<&str>) -> &T {
        let by_asterisk = |name: &str| {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        };
        name.and_then(|name| self.by_name.get(name).or_else(|| by_asterisk(name))).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Names<Arc<CertifiedKey>> {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        Some(Arc::clone(self.find(name.as_deref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asterisk_is_one_label() {
        let hosts = ["a.example.org", "*.example.org", "*.b.example.org"];
        let names = Names::new("default", hosts.map(|host| (host.to_owned(), host)));
        for (name, found) in [
            (Some("a.example.org"), "a.example.org"),
            (Some("c.example.org"), "*.example.org"),
            (Some("b.example.org"), "*.example.org"),
            (Some("x.b.example.org"), "*.b.example.org"),
            (Some("x.c.example.org"), "default"),
            (Some("example.org"), "default"),
            (Some("*.example.org"), "*.example.org"),
            (Some("localhost"), "default"),
            (Some(""), "default"),
            (None, "default"),
        ] {
            assert_eq!(*names.find(name), found, "{name:?}");
        }
    }
}
