use std::fs::Permissions;

use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::super::policy;
use super::*;

/// A directory of this test's own, gone at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("swoole-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A certificate and its key.
    fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).unwrap();
        let (cert_file, key_file) = (format!("{name}.pem"), format!("{name}.key"));
        (self.write(&cert_file, cert.pem(), 0o644), self.write(&key_file, signing_key.serialize_pem(), 0o600))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config((cert, key): (PathBuf, PathBuf)) -> Config {
    Config { ssl_cert_file: Some(cert), ssl_key_file: Some(key), ..Config::default() }
}

/// The error, in which the directory is left out.
fn error(dir: &Dir, config: &Config) -> String {
    policy::context(config).unwrap_err().to_string().replace(&format!("{}/", dir.0.display()), "")
}

#[test]
fn a_pair_is_loaded_and_nothing_else() {
    let dir = Dir::new("pairs");
    let (a, b) = (dir.pair("a"), dir.pair("b"));
    policy::context(&config(a.clone())).unwrap();
    assert_eq!(
        error(&dir, &config((a.0.clone(), b.1.clone()))),
        "ssl_key_file = b.key: is not the key of ssl_cert_file = a.pem"
    );
    for (cert, key, complaint) in [
        (dir.0.join("no"), a.1.clone(), "ssl_cert_file = no: No such file or directory (os error 2)"),
        (a.0.clone(), dir.0.join("no"), "ssl_key_file = no: No such file or directory (os error 2)"),
        (
            dir.write("empty", "", 0o644),
            a.1.clone(),
            "ssl_cert_file = empty: there is no certificate in it (PEM, BEGIN CERTIFICATE)",
        ),
        (
            a.1.clone(),
            a.1.clone(),
            "ssl_cert_file = a.key: there is no certificate in it (PEM, BEGIN CERTIFICATE)",
        ),
        (
            a.0.clone(),
            dir.write("cert", fs::read(&a.0).unwrap(), 0o600),
            "ssl_key_file = cert: there is no private key in it (PEM, BEGIN PRIVATE KEY)",
        ),
        (
            a.0.clone(),
            dir.write(
                "locked",
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                0o600,
            ),
            "ssl_key_file = locked: it is encrypted, and there is nobody to ask for its passphrase",
        ),
    ] {
        assert_eq!(error(&dir, &config((cert, key))), complaint);
    }
}

#[test]
fn a_key_is_nobody_elses() {
    let dir = Dir::new("modes");
    let (cert, key) = dir.pair("a");
    for mode in [0o400, 0o600, 0o640, 0o440, 0o700] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        assert!(check(&config((cert.clone(), key.clone()))).is_ok(), "{mode:o}");
    }
    for mode in [0o644, 0o604, 0o660, 0o602, 0o601] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let config = config((cert.clone(), key.clone()));
        let expected = format!(
            "ssl_key_file = a.key: mode {mode:04o} lets others at the key; try `chmod 600`, or 640 for a group of its own"
        );
        assert_eq!(error(&dir, &config), expected);
        assert!(check(&config).is_err());
    }
}

#[test]
fn what_is_no_response_of_ocsp_is_not_sent() {
    let dir = Dir::new("ocsp");
    let mut config = config(dir.pair("a"));
    config.ssl_stapling_file = Some(dir.write("response", [0x30, 3, 10, 1, 0], 0o644));
    policy::context(&config).unwrap();
    config.ssl_stapling_file = Some(dir.write("response", "-----BEGIN", 0o644));
    assert_eq!(error(&dir, &config), "ssl_stapling_file = response: it is no OCSP response (DER)");
}
