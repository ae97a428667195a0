//! Certificates for one scenario, and what its clients believe.

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Signs certificates.
pub(in crate::cluster::scenarios) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    dir: PathBuf,
    pub(in crate::cluster::scenarios) file: PathBuf,
}

/// A certificate of that authority, and its key.
pub(in crate::cluster::scenarios) struct Identity {
    pub(super) cert_file: PathBuf,
    pub(super) key_file: PathBuf,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: KeyPair,
}

impl Authority {
    /// With files in this directory that begin with this name.
    pub(super) fn new(dir: &Path, name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, certificate.pem())?;
        let certificate = certificate.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate, dir: dir.into(), file })
    }

    /// A certificate of these host names, in files of the name `file`.
    pub(super) fn issue(&self, file: &str, hosts: &[&str]) -> Result<Identity> {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, file);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let (cert_file, key_file) =
            (self.dir.join(format!("{file}.pem")), self.dir.join(format!("{file}.key")));
        fs::write(&cert_file, certificate.pem())?;
        fs::write(&key_file, key.serialize_pem())?;
        fs::set_permissions(&key_file, Permissions::from_mode(0o600))?;
        Ok(Identity { cert_file, key_file, certificate: certificate.der().clone(), key })
    }

    /// A client that believes this authority.
    pub(super) fn client(&self) -> Trust<'_> {
        Trust { authority: self, versions: rustls::ALL_VERSIONS, alpn: &[], identity: None }
    }
}

impl Identity {
    /// The private number of the key, which is all of its secret.
    pub(super) fn secret(&self) -> Result<Vec<u8>> {
        // SEC 1 in PKCS #8: version 1, and 32 bytes.
        const BEFORE: [u8; 5] = [2, 1, 1, 4, 32];
        let der = self.key.serialize_der();
        let at = der.windows(BEFORE.len()).position(|bytes| bytes == BEFORE).context("a P-256 key")?;
        Ok(der[at + BEFORE.len()..][..32].to_vec())
    }
}

/// What a client speaks and believes.
#[derive(Clone)]
pub(super) struct Trust<'a> {
    pub(super) authority: &'a Authority,
    pub(super) versions: &'a [&'static SupportedProtocolVersion],
    pub(super) alpn: &'a [&'a str],
    /// What it shows itself.
    pub(super) identity: Option<&'a Identity>,
}

impl Trust<'_> {
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.clone())?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(self.versions)?.with_root_certificates(roots);
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key, .. }) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
                builder.with_client_auth_cert(vec![certificate.clone()], key)?
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(Arc::new(config))
    }
}
