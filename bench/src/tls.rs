//! What `bench tls` speaks: a certificate, and clients that believe it.

use crate::subject::output_directory;
use anyhow::{Result, anyhow};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Whether clients come back with a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumes {
    /// Each handshake is a full one.
    Never,
    /// All but the first of each client.
    Always,
}

/// Files of a certificate for `localhost` and its key, made once for each run of this program.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, which has signed itself.
    pub cert: PathBuf,
    /// Its key, of P-256.
    pub key: PathBuf,
    /// Where HTTP servers find large replies.
    pub root: PathBuf,
}

/// Those files.
///
/// # Errors
/// They cannot be written.
pub fn files() -> Result<Files> {
    static FILES: OnceLock<Result<Files, String>> = OnceLock::new();
    FILES
        .get_or_init(|| write().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn write() -> Result<Files> {
    let root = output_directory()?.join("tls");
    fs::create_dir_all(&root)?;
    let files = Files { cert: root.join("cert.pem"), key: root.join("key.pem"), root };
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    fs::write(&files.cert, certificate.pem())?;
    fs::write(&files.key, key.serialize_pem())?;
    fs::set_permissions(&files.key, Permissions::from_mode(0o600))?;
    Ok(files)
}

/// A client of TLS 1.3.
///
/// # Errors
/// There is no certificate to believe.
pub fn client(resumes: Resumes) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files()?.cert)?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(&[&TLS13])?.with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.resumption = match resumes {
        Resumes::Never => Resumption::disabled(),
        Resumes::Always => Resumption::in_memory_sessions(16),
    };
    Ok(Arc::new(config))
}

/// What asks an HTTP server for so many bytes, which lie in a file.
///
/// # Errors
/// The file cannot be written.
pub fn large_request(size: usize) -> Result<Vec<u8>> {
    let name = format!("large-{size}");
    fs::write(files()?.root.join(&name), vec![b'x'; size])?;
    Ok(format!("GET /{name} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes())
}
