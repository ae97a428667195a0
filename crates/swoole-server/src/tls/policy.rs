//! What is spoken: protocols, ciphers, clients' certificates; all that the configuration says of one address.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    Error, InconsistentKeys, RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::files::{self, TlsError};
use super::names::Names;
use crate::config::{CipherSuite, Config, Mode, SniCert, SslProtocol, SslVerifyPeer};

/// Bytes of a session, with the client's certificate, that is resumed whichever worker of Base mode it comes to.
const TICKET_MAX: usize = 4096;

/// Reads the files of an address, whose options are in the configuration, and puts everything together.
pub(super) fn context(config: &Config) -> Result<Arc<ServerConfig>, TlsError> {
    let failed = |error: Error| TlsError::Policy(error.to_string());
    let provider = Arc::new(provider(&config.ssl_ciphers));
    let certificates = certificates(config, &provider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&versions(&config.ssl_protocols)).map_err(failed)?;
    let builder = match (&config.ssl_client_cert_file, config.ssl_verify_peer) {
        (Some(path), verify @ (SslVerifyPeer::Request | SslVerifyPeer::Require)) => {
            const KEY: &str = "ssl_client_cert_file";
            let mut roots = RootCertStore::empty();
            for certificate in files::certificates(KEY, path)? {
                roots.add(certificate).map_err(|error| TlsError::content(KEY, path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier =
                if verify == SslVerifyPeer::Request { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|error| TlsError::content(KEY, path, error))?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut context = builder.with_cert_resolver(Arc::new(certificates));
    // Who has written an order down means it, and those who look for weaknesses want one.
    context.ignore_client_order = true;
    context.alpn_protocols = config.ssl_alpn.iter().map(|name| name.clone().into_bytes()).collect();
    // For all reactors: a client that comes again mostly comes to another one.
    context.ticketer = ring::Ticketer::new().map_err(failed)?;
    if config.mode == Mode::Base {
        // It takes no ticket that is longer than all that it has made itself: each worker would know its own only.
        context.ticketer.encrypt(&[0; TICKET_MAX]);
    }
    Ok(Arc::new(context))
}

fn certificates(config: &Config, provider: &CryptoProvider) -> Result<Names<Arc<CertifiedKey>>, TlsError> {
    let (first, more) = files::pairs(config)?;
    let mut default = certified(&first, provider)?;
    default.ocsp = files::stapling(config)?;
    let more = more.into_iter().map(|(host, pair)| Ok((host, Arc::new(certified(&pair, provider)?))));
    Ok(Names::new(Arc::new(default), more.collect::<Result<Vec<_>, TlsError>>()?))
}

fn certified(pair: &SniCert, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let SniCert { ssl_cert_file, ssl_key_file } = pair;
    let chain = files::certificates("ssl_cert_file", ssl_cert_file)?;
    let key = files::private_key(ssl_key_file)?;
    let key = provider.key_provider.load_private_key(key);
    let key = key.map_err(|error| TlsError::content("ssl_key_file", ssl_key_file, error))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // A key that does not tell its public half can only be tried.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(Error::InconsistentKeys(_)) => {
            Err(TlsError::Mismatch { key: ssl_key_file.clone(), cert: ssl_cert_file.clone() })
        }
        Err(error) => Err(TlsError::content("ssl_cert_file", ssl_cert_file, error)),
    }
}

fn versions(names: &[String]) -> Vec<&'static SupportedProtocolVersion> {
    let version = |name: &String| match SslProtocol::find(name)? {
        SslProtocol::V12 => Some(&TLS12),
        SslProtocol::V13 => Some(&TLS13),
    };
    names.iter().filter_map(version).collect()
}

/// The suites of these names, in their order; all of a version of which none is named.
fn provider(names: &[String]) -> CryptoProvider {
    let default = ring::default_provider();
    let wanted: Vec<CipherSuite> = names.iter().filter_map(|name| CipherSuite::find(name)).collect();
    let mut suites = Vec::new();
    for protocol in [SslProtocol::V13, SslProtocol::V12] {
        let of_protocol: Vec<SupportedCipherSuite> =
            default.cipher_suites.iter().copied().filter(|suite| protocol_of(suite) == protocol).collect();
        let named = wanted.iter().filter(|wanted| wanted.protocol == protocol);
        let before = suites.len();
        suites.extend(named.filter_map(|wanted| {
            of_protocol.iter().find(|suite| CipherSuite::of(**suite).as_ref() == Some(wanted))
        }));
        if suites.len() == before {
            suites.extend(of_protocol);
        }
    }
    CryptoProvider { cipher_suites: suites, ..default }
}

fn protocol_of(suite: &SupportedCipherSuite) -> SslProtocol {
    match suite {
        SupportedCipherSuite::Tls13(_) => SslProtocol::V13,
        SupportedCipherSuite::Tls12(_) => SslProtocol::V12,
    }
}

impl CipherSuite {
    /// What is known of one of the library's.
    pub(super) fn of(suite: SupportedCipherSuite) -> Option<CipherSuite> {
        // It names those of TLS 1.3 otherwise than their RFC.
        CipherSuite::find(&format!("{:?}", suite.suite()).replace("TLS13_", "TLS_"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suites(names: &[&str]) -> Vec<String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let suites = provider(&names).cipher_suites;
        suites.iter().map(|suite| format!("{:?}", suite.suite())).collect()
    }

    #[test]
    fn a_version_of_which_no_cipher_is_named_has_all() {
        assert_eq!(suites(&[]).len(), ring::default_provider().cipher_suites.len());
        let one = suites(&["ECDHE-RSA-AES128-GCM-SHA256"]);
        assert_eq!(one.iter().filter(|name| name.starts_with("TLS13_")).count(), 3);
        assert_eq!(one[3..], ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]);
        let both = suites(&[
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "TLS_CHACHA20_POLY1305_SHA256",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            "TLS_AES_128_GCM_SHA256",
        ]);
        assert_eq!(
            both,
            [
                "TLS13_CHACHA20_POLY1305_SHA256",
                "TLS13_AES_128_GCM_SHA256",
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
                "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            ]
        );
    }

    #[test]
    fn every_suite_of_the_library_has_a_name() {
        for suite in ring::default_provider().cipher_suites {
            let known = CipherSuite::of(suite).unwrap_or_else(|| panic!("{suite:?}"));
            assert_eq!(protocol_of(&suite), known.protocol, "{suite:?}");
            assert_eq!(CipherSuite::of_number(known.number()), Some(known));
        }
    }
}
