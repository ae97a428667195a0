//! Certificates and keys: where they are read, and who else can read them.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Config, SniCert};

/// Who else may not do what with a key: everybody nothing, its group not write.
const OPEN: u32 = 0o027;

/// Why a file of certificates or keys cannot be used, or what they say together.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{key} = {}: {source}", path.display())]
    Read { key: &'static str, path: PathBuf, source: io::Error },
    #[error("{key} = {}: {what}", path.display())]
    Content { key: &'static str, path: PathBuf, what: String },
    #[error(
        "ssl_key_file = {}: mode {mode:04o} lets others at the key; try `chmod 600`, or 640 for a group of its own",
        path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("ssl_key_file = {}: is not the key of ssl_cert_file = {}", key.display(), cert.display())]
    Mismatch { key: PathBuf, cert: PathBuf },
    #[error("{0}")]
    Policy(String),
}

impl TlsError {
    pub(super) fn content(key: &'static str, path: &Path, what: impl std::fmt::Display) -> TlsError {
        TlsError::Content { key, path: path.into(), what: what.to_string() }
    }
}

/// The pairs of certificate and key that the configuration names: the first is for who asks for no other name.
pub(super) fn pairs(config: &Config) -> Result<(SniCert, Vec<(String, SniCert)>), TlsError> {
    let (Some(cert), Some(key)) = (&config.ssl_cert_file, &config.ssl_key_file) else {
        return Err(TlsError::Policy("needs ssl_cert_file and ssl_key_file".into()));
    };
    let first = SniCert { ssl_cert_file: cert.clone(), ssl_key_file: key.clone() };
    let more = config.ssl_sni_certs.0.iter().map(|(host, cert)| (host.clone(), cert.clone()));
    Ok((first, more.collect()))
}

/// Looks at all files, and into those that are no secret.
pub(super) fn check(config: &Config) -> Result<(), TlsError> {
    let (first, more) = pairs(config)?;
    for SniCert { ssl_cert_file, ssl_key_file } in [first].iter().chain(more.iter().map(|(_, cert)| cert)) {
        certificates("ssl_cert_file", ssl_cert_file)?;
        open_key(ssl_key_file)?;
    }
    if let Some(path) = &config.ssl_client_cert_file {
        certificates("ssl_client_cert_file", path)?;
    }
    stapling(config).map(drop)
}

/// All certificates of a file, of which there must be one.
pub(super) fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = fs::read(path).map_err(|source| TlsError::Read { key, path: path.into(), source })?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::content(key, path, error))?;
    if certificates.is_empty() {
        return Err(TlsError::content(key, path, "there is no certificate in it (PEM, BEGIN CERTIFICATE)"));
    }
    Ok(certificates)
}

/// The private key of a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const KEY: &str = "ssl_key_file";
    let mut text = Vec::new();
    let failed = |source| TlsError::Read { key: KEY, path: path.into(), source };
    open_key(path)?.read_to_end(&mut text).map_err(failed)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let is_encrypted = text.windows(9).any(|word| word == b"ENCRYPTED");
        match error {
            pem::Error::NoItemsFound if is_encrypted => {
                TlsError::content(KEY, path, "it is encrypted, and there is nobody to ask for its passphrase")
            }
            pem::Error::NoItemsFound => {
                TlsError::content(KEY, path, "there is no private key in it (PEM, BEGIN PRIVATE KEY)")
            }
            other => TlsError::content(KEY, path, other),
        }
    })
}

/// Opens a key that is nobody else's. Permissions are asked of the open file: a name can change hands between two looks.
fn open_key(path: &Path) -> Result<File, TlsError> {
    let failed = |source| TlsError::Read { key: "ssl_key_file", path: path.into(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & OPEN != 0 {
        return Err(TlsError::Open { path: path.into(), mode });
    }
    Ok(file)
}

/// The OCSP response, if one is asked for.
pub(super) fn stapling(config: &Config) -> Result<Option<Vec<u8>>, TlsError> {
    const KEY: &str = "ssl_stapling_file";
    let Some(path) = &config.ssl_stapling_file else { return Ok(None) };
    let bytes = fs::read(path).map_err(|source| TlsError::Read { key: KEY, path: path.clone(), source })?;
    // A sequence (RFC 6960); a PEM file would be sent as it is, and believed by nobody.
    if bytes.first() != Some(&0x30) {
        return Err(TlsError::content(KEY, path, "it is no OCSP response (DER)"));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
