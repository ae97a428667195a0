//! What those find who look for weaknesses: testssl.sh.

use super::{localhost, testbed};
use crate::cluster::client::Address;
use crate::cluster::matrix::Cx;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::process::{Command, Stdio};

/// What is looked for: protocols, ciphers and their order, known attacks.
const CHECKS: [&str; 6] =
    ["--protocols", "--std", "--server-preference", "--fs", "--server-defaults", "--vulnerable"];

/// Findings about the certificate, which is this scenario's own: of an authority that nobody can ask about it.
const OF_CERTIFICATE: [&str; 2] = ["cert_", "DNS_CAArecord"];

pub(super) fn testssl(cx: &Cx) -> Result<()> {
    let program = ["testssl", "testssl.sh"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok())
        .context("testssl.sh, which this scenario needs (package testssl.sh)")?;
    let (authority, own) = localhost(cx)?;
    let bed = testbed(cx, &own).start()?;
    let Address::Tls(address) = bed.address()? else { bail!("{:?} is not tls://", bed.ready.listen) };
    let (report, log) = (cx.dir.join("report.csv"), cx.dir.join("testssl.log"));
    let mut command = Command::new(program);
    command.args(CHECKS).args(["--quiet", "--color", "0", "--warnings", "batch", "--ip", "127.0.0.1"]);
    command.arg("--add-ca").arg(&authority.file).arg("--csvfile").arg(&report);
    command.arg(format!("localhost:{}", address.port()));
    let output = fs::File::create(&log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    // Its status is how many findings there are.
    command.status()?;
    let findings =
        fs::read_to_string(&report).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    let mut bad = Vec::new();
    let mut seen = 0;
    for line in findings.lines().skip(1) {
        let fields: Vec<&str> = line.trim_matches('"').split("\",\"").collect();
        let [id, _, _, severity, finding, ..] = fields[..] else { bail!("a finding: {line}") };
        seen += 1;
        let is_own = OF_CERTIFICATE.iter().any(|prefix| id.starts_with(prefix));
        // A warning is of what could not be tried.
        if !is_own && !["OK", "INFO", "LOW", "DEBUG", "WARN"].contains(&severity) {
            bad.push(format!("{severity} {id}: {finding}"));
        }
    }
    ensure!(seen > 50, "testssl has looked at {seen} things only: {}", fs::read_to_string(&log)?);
    ensure!(bad.is_empty(), "{}\n{}", bad.join("\n"), fs::read_to_string(&log)?);
    bed.stop()?;
    Ok(())
}
