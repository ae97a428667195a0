//! What the keys of TLS may be: names of protocols and ciphers, certificates by host name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::validate::{check_seconds, wrong};
use super::{Config, ConfigError, Listen, SslVerifyPeer};

/// A version of TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SslProtocol {
    V12,
    V13,
}

impl SslProtocol {
    /// By its name.
    pub(crate) fn find(name: &str) -> Option<SslProtocol> {
        match name {
            "TLSv1.2" => Some(SslProtocol::V12),
            "TLSv1.3" => Some(SslProtocol::V13),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            SslProtocol::V12 => "TLSv1.2",
            SslProtocol::V13 => "TLSv1.3",
        }
    }
}

/// A cipher suite, by the names that people know it by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CipherSuite {
    /// OpenSSL's.
    pub(crate) openssl: &'static str,
    /// That of the RFCs.
    pub(crate) iana: &'static str,
    pub(crate) protocol: SslProtocol,
}

const fn suite(openssl: &'static str, iana: &'static str, protocol: SslProtocol) -> CipherSuite {
    CipherSuite { openssl, iana, protocol }
}

use SslProtocol::{V12, V13};

/// Those that are not broken: authenticated, and with a key exchange of their own.
const SUITES: [CipherSuite; 9] = [
    suite("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384", V13),
    suite("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256", V13),
    suite("TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256", V13),
    suite("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", V12),
    suite("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", V12),
    suite("ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", V12),
    suite("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", V12),
    suite("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", V12),
    suite("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", V12),
];

impl CipherSuite {
    /// By either name.
    pub(crate) fn find(name: &str) -> Option<CipherSuite> {
        SUITES.into_iter().find(|suite| suite.openssl == name || suite.iana == name)
    }

    /// From 1: what it is called in shared memory.
    pub(crate) fn number(self) -> u64 {
        SUITES.iter().zip(1..).find(|(suite, _)| **suite == self).map_or(0, |(_, number)| number)
    }

    pub(crate) fn of_number(number: u64) -> Option<CipherSuite> {
        SUITES.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
    }
}

/// A certificate with its key: `ssl_cert_file` and `ssl_key_file` of a host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SniCert {
    /// The certificate, with its chain: a PEM file.
    pub ssl_cert_file: PathBuf,
    /// Its private key: a PEM file.
    pub ssl_key_file: PathBuf,
}

/// Certificates by host name, as [`Config::ssl_sni_certs`] has them.
///
/// ```
/// use swoole_server::config::SniCerts;
///
/// let certs: SniCerts = "a.org=/a.pem:/a.key;*.b.org=/b.pem:/b.key".parse()?;
/// assert_eq!(certs.0["*.b.org"].ssl_key_file.to_str(), Some("/b.key"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SniCerts(pub BTreeMap<String, SniCert>);

impl fmt::Display for SniCerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (host, SniCert { ssl_cert_file, ssl_key_file })) in self.0.iter().enumerate() {
            let between = if number == 0 { "" } else { ";" };
            write!(f, "{between}{host}={}:{}", ssl_cert_file.display(), ssl_key_file.display())?;
        }
        Ok(())
    }
}

impl FromStr for SniCerts {
    type Err = String;

    fn from_str(text: &str) -> Result<SniCerts, String> {
        let one = |text: &str| {
            let (host, files) = text.split_once('=')?;
            let (cert, key) = files.split_once(':')?;
            let cert = SniCert { ssl_cert_file: cert.into(), ssl_key_file: key.into() };
            Some((host.to_ascii_lowercase(), cert))
        };
        let certs = text
            .split(';')
            .filter(|one| !one.is_empty())
            .map(|text| one(text).ok_or_else(|| format!("{text:?} is not HOST=CERT_FILE:KEY_FILE")));
        certs.collect::<Result<_, _>>().map(SniCerts)
    }
}

impl Serialize for SniCerts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SniCerts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SniCerts, D::Error> {
        struct Certs;

        impl<'de> Visitor<'de> for Certs {
            type Value = SniCerts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of certificates by host name, or text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SniCerts, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, table: A) -> Result<SniCerts, A::Error> {
                let table =
                    BTreeMap::<String, SniCert>::deserialize(de::value::MapAccessDeserializer::new(table))?;
                let lower = |(host, cert): (String, SniCert)| (host.to_ascii_lowercase(), cert);
                Ok(SniCerts(table.into_iter().map(lower).collect()))
            }
        }

        deserializer.deserialize_any(Certs)
    }
}

/// Whether a certificate can be had by this name: a host name, of which the first label may be an asterisk.
fn is_host(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        inner && (1..=63).contains(&label.len())
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

impl Config {
    /// Checks the keys of TLS, and the options of addresses that are in their place. No file is looked at.
    pub(super) fn check_tls(&self) -> Result<(), ConfigError> {
        check_seconds("ssl_handshake_timeout", self.ssl_handshake_timeout.as_secs_f64())?;
        for listen in &self.listen {
            if listen.tls {
                listen.applied_to(self).check_ssl().map_err(|error| error.of_address(listen))?;
            } else if let Some(option) = listen.options_of("ssl_").next() {
                let expected = format!("{option} has no effect at an address that is not tls://");
                return Err(ConfigError::value("listen", listen, expected));
            }
        }
        // Who writes it down believes that something is encrypted.
        if let Some(file) = self.ssl_cert_file.as_ref().filter(|_| !self.listen.iter().any(|it| it.tls)) {
            let expected = "has no effect without an address of tls://";
            return Err(ConfigError::value("ssl_cert_file", file.display(), expected));
        }
        Ok(())
    }

    /// Checks what an address of `tls://` needs.
    fn check_ssl(&self) -> Result<(), ConfigError> {
        let needs = |key, value: &dyn fmt::Display, expected: &str| {
            Err(ConfigError::value(key, value, expected.to_owned()))
        };
        if !cfg!(feature = "tls") {
            return needs("ssl_cert_file", &"", "tls:// needs the feature `tls` of the crate swoole-server");
        }
        for (key, file) in [("ssl_cert_file", &self.ssl_cert_file), ("ssl_key_file", &self.ssl_key_file)] {
            if file.is_none() {
                return needs(key, &"", "must be set for an address of tls://");
            }
        }
        match (&self.ssl_client_cert_file, self.ssl_verify_peer) {
            (None, SslVerifyPeer::Off) | (Some(_), SslVerifyPeer::Request | SslVerifyPeer::Require) => {}
            (None, verify) => return needs("ssl_verify_peer", &verify, "needs ssl_client_cert_file"),
            (Some(file), SslVerifyPeer::Off) => {
                let expected = "has no effect without ssl_verify_peer = request or require";
                return needs("ssl_client_cert_file", &file.display(), expected);
            }
        }
        let protocols = &self.ssl_protocols;
        if protocols.is_empty() || protocols.iter().any(|name| SslProtocol::find(name).is_none()) {
            return Err(wrong("ssl_protocols", protocols.join(":")));
        }
        if let Some(name) = self.ssl_ciphers.iter().find(|name| CipherSuite::find(name).is_none()) {
            let known = SUITES.map(|suite| suite.openssl).join(", ");
            return needs("ssl_ciphers", name, &format!("must be of {known}"));
        }
        if self.ssl_alpn.iter().any(|name| !(1..=255).contains(&name.len())) {
            return Err(wrong("ssl_alpn", self.ssl_alpn.join(":")));
        }
        match self.ssl_sni_certs.0.keys().find(|host| !is_host(host)) {
            Some(host) => Err(wrong("ssl_sni_certs", host)),
            None => Ok(()),
        }
    }

    /// All files that the keys of TLS name, to be changed.
    pub(crate) fn ssl_files(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let own = [
            &mut self.ssl_cert_file,
            &mut self.ssl_key_file,
            &mut self.ssl_client_cert_file,
            &mut self.ssl_stapling_file,
        ];
        let of_addresses = self.listen.iter_mut().flat_map(Listen::ssl_files);
        own.into_iter().flatten().chain(self.ssl_sni_certs.files()).chain(of_addresses)
    }
}

impl SniCerts {
    fn files(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.0.values_mut().flat_map(|cert| [&mut cert.ssl_cert_file, &mut cert.ssl_key_file])
    }
}

impl Listen {
    fn ssl_files(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let own = [
            &mut self.ssl_cert_file,
            &mut self.ssl_key_file,
            &mut self.ssl_client_cert_file,
            &mut self.ssl_stapling_file,
        ];
        own.into_iter().flatten().chain(self.ssl_sni_certs.iter_mut().flat_map(SniCerts::files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_may_begin_with_an_asterisk() {
        for name in ["example.org", "*.example.org", "localhost", "a-b.c_d", "xn--bcher-kva.example"] {
            assert!(is_host(name), "{name}");
        }
        let long = "a".repeat(64);
        for name in ["", "*", "*.", "a.*.org", "*a.org", "a..org", "a.org.", "ü.org", "a b", &long] {
            assert!(!is_host(name), "{name}");
        }
    }

    #[test]
    fn every_suite_has_two_names() {
        for suite in SUITES {
            assert_eq!(CipherSuite::find(suite.openssl), Some(suite));
            assert_eq!(CipherSuite::find(suite.iana), Some(suite));
        }
        assert_eq!(CipherSuite::find("AES128-SHA"), None);
    }
}
