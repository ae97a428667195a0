//! What an address speaks, whom it believes, and who it is.

use super::{Authority, Identity, Trust, both, localhost, testbed};
use crate::cluster::client::Client;
use crate::cluster::matrix::Cx;
use anyhow::{Context, Result, ensure};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, ProtocolVersion};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;

/// An answer to a question about `localhost` that OCSP has no room for: `malformedRequest`.
const RESPONSE: [u8; 5] = [0x30, 3, 0x0a, 1, 1];

pub(super) fn names(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let wild = authority.issue("wild", &["*.example.org"])?;
    let exact = authority.issue("exact", &["a.example.org"])?;
    let file = cx.dir.join("server.toml");
    let table = |host: &str, identity: &Identity| {
        let Identity { cert_file, key_file, .. } = identity;
        format!("[ssl_sni_certs.'{host}']\nssl_cert_file = {cert_file:?}\nssl_key_file = {key_file:?}\n")
    };
    fs::write(&file, table("*.example.org", &wild) + &table("a.example.org", &exact))?;
    let bed = testbed(cx, &own).flag("config", file.display()).start()?;
    for config in both(&authority)? {
        for (name, identity) in [
            ("localhost", &own),
            ("b.example.org", &wild),
            ("A.example.org", &exact),
            ("other.example.org", &wild),
        ] {
            let mut client = Client::connect_tls(bed.address()?, &config, name)?;
            client.expect("echo named", "named")?;
            let shown = client.tls()?.peer_certificates().context("the server shows a certificate")?;
            ensure!(shown[0] == identity.certificate, "{name} got another certificate");
        }
        // It is nobody's: the server is `localhost` then, and the client does not want that.
        let refused = Client::connect_tls(bed.address()?, &config, "b.a.example.org");
        ensure!(refused.is_err(), "a client took `localhost` for b.a.example.org");
    }
    bed.stop()?;
    Ok(())
}

pub(super) fn protocols(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let listen = |options: &str| format!("tls://127.0.0.1:0?{options}");
    let bed = testbed(cx, &own)
        .flag("listen", listen("ssl_protocols=TLSv1.2"))
        .flag("listen", listen("ssl_protocols=TLSv1.3&ssl_alpn=h2:http/1.1"))
        .flag("listen", listen("ssl_ciphers=ECDHE-ECDSA-CHACHA20-POLY1305:TLS_AES_128_GCM_SHA256"))
        .start()?;
    let connect = |index: usize, config: &Arc<ClientConfig>| -> Result<Client> {
        let mut client = Client::connect_tls(&bed.ready.listen[index], config, "localhost")?;
        client.expect("echo agreed", "agreed")?;
        Ok(client)
    };
    let [old, new] = both(&authority)?;
    let any = authority.client().config()?;
    for (index, config, version) in [
        (0, &any, ProtocolVersion::TLSv1_3),
        (0, &old, ProtocolVersion::TLSv1_2),
        (1, &any, ProtocolVersion::TLSv1_2),
        (2, &any, ProtocolVersion::TLSv1_3),
    ] {
        let agreed = connect(index, config)?.tls()?.protocol_version();
        ensure!(agreed == Some(version), "address {index}: {agreed:?}");
    }
    ensure!(connect(1, &new).is_err(), "TLS 1.3 where only 1.2 is spoken");
    ensure!(connect(2, &old).is_err(), "TLS 1.2 where only 1.3 is spoken");
    for (config, suite) in [
        (&old, CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
        (&new, CipherSuite::TLS13_AES_128_GCM_SHA256),
    ] {
        let agreed = connect(3, config)?.tls()?.negotiated_cipher_suite().map(|agreed| agreed.suite());
        ensure!(agreed == Some(suite), "{agreed:?} instead of {suite:?}");
    }
    for (offer, agreed) in [
        (&["http/1.1", "h2"][..], Some(Some(&b"h2"[..]))),
        (&["spdy", "http/1.1"], Some(Some(b"http/1.1"))),
        (&[], Some(None)),
        (&["spdy"], None),
    ] {
        let config = Trust { alpn: offer, ..authority.client() }.config()?;
        let client = connect(2, &config);
        match agreed {
            None => ensure!(client.is_err(), "{offer:?} was agreed to"),
            Some(agreed) => {
                let mut client = client?;
                ensure!(client.tls()?.alpn_protocol() == agreed, "{offer:?} came to something else");
            }
        }
    }
    bed.stop()?;
    Ok(())
}

pub(super) fn client_certificates(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let clients = Authority::new(&cx.dir, "clients")?;
    let known = clients.issue("known", &["client"])?;
    let stranger = authority.issue("stranger", &["client"])?;
    let listen = |verify: &str| {
        let file = clients.file.display();
        format!("tls://127.0.0.1:0?ssl_client_cert_file={file}&ssl_verify_peer={verify}")
    };
    let bed =
        testbed(cx, &own).flag("listen", listen("request")).flag("listen", listen("require")).start()?;
    for versions in [&[&TLS12][..], &[&TLS13]] {
        for (identity, served) in [
            (Some(&known), [true, true, true]),
            (Some(&stranger), [true, false, false]),
            (None, [true, true, false]),
        ] {
            let config = Trust { versions, identity, ..authority.client() }.config()?;
            for (address, served) in bed.ready.listen.iter().zip(served) {
                // With TLS 1.3 the client hears of its refusal only after its own handshake.
                let connect = || Client::connect_tls(address, &config, "localhost")?.expect("echo me", "me");
                let result = connect();
                ensure!(
                    result.is_ok() == served,
                    "{:?} at {address:?}: {result:?}",
                    identity.map(|identity| &identity.cert_file)
                );
            }
        }
    }
    bed.stop()?;
    Ok(())
}

pub(super) fn refused(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let other = authority.issue("other", &["localhost"])?;
    let with = |cert: &dyn std::fmt::Display, key: &dyn std::fmt::Display| {
        let launch = cx.testbed_bare().flag("listen", "tls://127.0.0.1:0");
        launch.flag("ssl-cert-file", cert).flag("ssl-key-file", key)
    };
    let (cert, key) = (own.cert_file.display(), own.key_file.display());
    with(&cert, &key)
        .flag("ssl-protocols", "TLSv1.1")
        .refused(&["ssl_protocols = TLSv1.1", "TLSv1.2, TLSv1.3"])?;
    with(&cert, &key).flag("ssl-ciphers", "AES128-SHA").refused(&["ssl_ciphers = AES128-SHA", "ECDHE-"])?;
    with(&cert, &key).flag("ssl-verify-peer", "require").refused(&["needs ssl_client_cert_file"])?;
    with(&cert, &"/nowhere").refused(&["ssl_key_file = /nowhere", "No such file"])?;
    with(&key, &key).refused(&["ssl_cert_file = ", "localhost.key", "there is no certificate in it"])?;
    // The key is looked into when the first processes exist: they are gone again.
    with(&cert, &other.key_file.display()).refused(&["other.key: is not the key of", "localhost.pem"])?;
    fs::set_permissions(&own.key_file, Permissions::from_mode(0o644))?;
    with(&cert, &key).refused(&["ssl_key_file = ", "mode 0644", "chmod 600"])?;
    let plain = || cx.testbed().flag("ssl-cert-file", &cert);
    plain().refused(&["ssl_cert_file = ", "has no effect without an address of tls://"])?;
    let option = cx.testbed_bare().flag("listen", "tcp://127.0.0.1:0?ssl_alpn=h2");
    option.refused(&["ssl_alpn has no effect at an address that is not tls://"])?;
    cx.testbed_bare().flag("listen", "tls://127.0.0.1:0").refused(&["ssl_cert_file", "must be set"])
}

pub(super) fn openssl(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let response = cx.dir.join("response.der");
    fs::write(&response, RESPONSE)?;
    let known = authority.issue("known", &["client"])?;
    let file = authority.file.display();
    let bed = testbed(cx, &own)
        .flag("ssl-stapling-file", response.display())
        .flag("listen", format!("tls://127.0.0.1:0?ssl_client_cert_file={file}&ssl_verify_peer=require"))
        .start()?;
    let input = cx.dir.join("input");
    fs::write(&input, "echo hello\nclose\n")?;
    // Both streams of one that speaks to this address, and whether it has ended well.
    let speak = |index: usize, options: &[&str]| -> Result<(bool, String)> {
        let crate::cluster::client::Address::Tls(address) = &bed.ready.listen[index] else {
            anyhow::bail!("{:?} is not tls://", bed.ready.listen)
        };
        let mut command = Command::new("timeout");
        command.args(["20", "openssl", "s_client", "-connect", &address.to_string()]);
        command.args(["-servername", "localhost", "-verify_return_error", "-ign_eof", "-CAfile"]);
        let output = command.arg(&authority.file).args(options).stdin(File::open(&input)?).output();
        let output = output.context("openssl, which this scenario needs")?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
    };
    let cert = known.cert_file.display().to_string();
    let key = known.key_file.display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        for (index, options) in [(0, &["-status"][..]), (1, &["-cert", &cert, "-key", &key])] {
            let (ended_well, text) = speak(index, &[&[version], options].concat())?;
            ensure!(ended_well && text.contains("hello\n"), "{version} {options:?}: {text}");
            ensure!(text.contains("Verify return code: 0 (ok)"), "{version} {options:?}: {text}");
            let is_stapled = text.contains("malformedrequest");
            ensure!(is_stapled == options.contains(&"-status"), "{version} {options:?}: {text}");
        }
        let (_, text) = speak(1, &[version])?;
        ensure!(!text.contains("hello\n"), "{version}, no certificate, and was served: {text}");
    }
    for options in [&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..], &["-tls1_2", "-cipher", "AES128-SHA"]] {
        let (ended_well, text) = speak(0, options)?;
        ensure!(!ended_well && !text.contains("hello\n"), "{options:?} was served: {text}");
    }
    bed.stop()?;
    Ok(())
}
