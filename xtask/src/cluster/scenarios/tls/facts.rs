//! What handlers are told of clients of TLS.

use super::{Authority, Identity, Trust, both, connect, localhost, testbed};
use crate::cluster::bed::{Bed, Launch, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::log::field;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use rustls::version::{TLS12, TLS13};
use std::fs::{self, File};
use std::process::Command;

/// A server that asks for certificates and knows names of protocols, and has an address without TLS, too.
fn asking<'a>(cx: &'a Cx, own: &Identity, clients: &Authority) -> Launch<'a> {
    testbed(cx, own)
        .flag("ssl-client-cert-file", clients.file.display())
        .flag("ssl-verify-peer", "request")
        .flag("ssl-alpn", "h2:http/1.1")
        .flag("listen", "tcp://127.0.0.1:0")
        .flag("task-worker-num", 1)
}

/// What a task worker answers to that.
fn by_task(client: &mut Client, text: &str) -> Result<String> {
    let reply = client.ask(&format!("taskwait 20000 {text}"))?;
    Ok(reply.strip_prefix("result ").with_context(|| format!("{text}: {reply}"))?.to_owned())
}

/// What `openssl x509` says its fingerprint is.
fn fingerprint(identity: &Identity) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&identity.cert_file);
    let output = command.output().context("openssl, which this scenario needs")?;
    let text = String::from_utf8(output.stdout)?;
    let digits = text.trim().split_once('=').with_context(|| text.clone())?.1;
    Ok(digits.replace(':', "").to_lowercase())
}

pub(super) fn facts(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let clients = Authority::new(&cx.dir, "clients")?;
    let known = clients.issue("known", &["one.example.org", "two.example.org"])?;
    let cert = fingerprint(&known)?;
    let bed = asking(cx, &own, &clients).start()?;
    let mut plain = Client::connect(&bed.ready.listen[1])?;
    plain.expect("tls", "tls=none")?;
    let mut others = Vec::new();
    for (versions, protocol) in [(&[&TLS12][..], "TLSv1.2"), (&[&TLS13], "TLSv1.3")] {
        for (identity, alpn, agreed) in [
            (None, &[][..], "-"),
            (Some(&known), &["http/1.1", "h2"], "h2"),
            (None, &["http/1.1"], "http/1.1"),
        ] {
            let config = Trust { versions, identity, alpn, ..authority.client() }.config()?;
            for round in 0..3 {
                let mut client = connect(&bed, &config)?;
                let session = client.session()?;
                let suite = client.tls()?.negotiated_cipher_suite().context("a cipher suite")?;
                let cipher = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
                let resumed = round > 0;
                let mut expected =
                    format!("tls={protocol} cipher={cipher} alpn={agreed} sni=localhost resumed={resumed}");
                if identity.is_some() {
                    expected +=
                        &format!(" cert={cert} cn=known names=DNS:one.example.org,DNS:two.example.org");
                }
                client.expect("tls", &expected)?;
                // Whoever asks, also where the session is another worker's.
                plain.expect(&format!("tls {session}"), &expected)?;
                let answer = by_task(&mut plain, &format!("tls {session}"))?;
                ensure!(answer == expected, "a task worker knows {answer:?}");
                others.push((client, expected));
            }
        }
    }
    for (client, expected) in &mut others {
        client.expect("tls", expected)?;
    }
    bed.stop()?;
    Ok(())
}

pub(super) fn last(cx: &Cx) -> Result<()> {
    let (_authority, bed, mut client, expected) = agreed(cx)?;
    let session = client.session()?;
    for (worker, life) in bed.lives() {
        proc::signal(life.pid, Signal::KILL)?;
        bed.wait_successor(worker, life.pid)?;
    }
    client.expect("tls", &expected)?;
    let mut plain = Client::connect(&bed.ready.listen[1])?;
    plain.expect(&format!("tls {session}"), &expected)?;
    drop(client);
    proc::until("the session to be gone", PATIENCE, || {
        let reply = plain.ask(&format!("tls {session}")).ok()?;
        (reply == "error: no such session").then_some(())
    })?;
    // Whoever comes to that place without TLS has nothing of it.
    for _ in 0..8 {
        Client::connect(&bed.ready.listen[1])?.expect("tls", "tls=none")?;
    }
    bed.stop()?;
    Ok(())
}

/// A server, a client of it, and what is known of that.
fn agreed(cx: &Cx) -> Result<(Authority, Bed, Client, String)> {
    let (authority, own) = localhost(cx)?;
    let bed = asking(cx, &own, &authority).start()?;
    let [_, config] = both(&authority)?;
    let mut client = connect(&bed, &config)?;
    let expected = client.ask("tls")?;
    ensure!(expected.starts_with("tls=TLSv1.3 "), "{expected}");
    Ok((authority, bed, client, expected))
}

pub(super) fn openssl(cx: &Cx) -> Result<()> {
    let (authority, own) = localhost(cx)?;
    let known = authority.issue("known", &["client"])?;
    let cert = fingerprint(&known)?;
    let bed = asking(cx, &own, &authority).start()?;
    let Address::Tls(address) = bed.address()? else { bail!("{:?} is not tls://", bed.ready.listen) };
    let input = cx.dir.join("input");
    fs::write(&input, "tls\nclose\n")?;
    let ticket = cx.dir.join("ticket").display().to_string();
    let shown = [known.cert_file.display().to_string(), known.key_file.display().to_string()];
    // The line that the server says of one that speaks so, and what openssl says of it.
    let speak = |options: &[&str]| -> Result<(String, String)> {
        let mut command = Command::new("timeout");
        command.args(["20", "openssl", "s_client", "-connect", &address.to_string(), "-ign_eof", "-CAfile"]);
        let output = command.arg(&authority.file).args(options).stdin(File::open(&input)?).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // It may come amid a line of what openssl prints of tickets.
        let line = text.find("tls=TLS").and_then(|begin| text[begin..].lines().next());
        Ok((line.with_context(|| format!("{options:?}: {text}"))?.to_owned(), text))
    };
    for (version, protocol) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let (line, _) = speak(&[version, "-noservername"])?;
        let of = |key| field(&line, key);
        ensure!((of("tls"), of("alpn"), of("sni")) == (Some(protocol), Some("-"), Some("-")), "{line}");
        ensure!(of("cert").is_none() && of("resumed") == Some("false"), "{line}");
        let named =
            ["-servername", "Some.Example.ORG", "-alpn", "http/1.1", "-cert", &shown[0], "-key", &shown[1]];
        for (session, resumed) in [("-sess_out", "false"), ("-sess_in", "true")] {
            let (line, text) = speak(&[&[version, session, &ticket][..], &named].concat())?;
            let of = |key| field(&line, key);
            ensure!((of("sni"), of("alpn")) == (Some("some.example.org"), Some("http/1.1")), "{line}");
            ensure!((of("cert"), of("cn")) == (Some(&*cert), Some("known")), "{line}");
            ensure!(
                of("resumed") == Some(resumed) && text.contains("ALPN protocol: http/1.1"),
                "{line}: {text}"
            );
        }
    }
    bed.stop()?;
    Ok(())
}
