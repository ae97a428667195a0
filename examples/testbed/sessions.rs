//! What is asked about one client, and done with it.

use swoole_server::{Result, Session, TlsInfo, Worker};

use super::command::Measure;

/// What is known of it, on one line.
pub(crate) fn describe(worker: &Worker, session: Session) -> Result<String> {
    let info = worker.session(session)?;
    let peer = info.peer.map_or("unix".into(), |peer| peer.to_string());
    let time = |time: Option<u64>| time.unwrap_or(0);
    let mut text = format!(
        "session={} reactor={} port={} peer={peer} connected={} recv={} sent={}",
        info.session, info.reactor, info.port, info.connected_at, info.received, info.sent
    );
    if let Some(uid) = info.uid {
        text += &format!(" uid={uid}");
    }
    text += &format!(
        " listener={} received_at={} sent_at={} pending={} paused={} protected={}",
        info.listener,
        time(info.received_at),
        time(info.sent_at),
        info.pending,
        info.paused,
        info.protected
    );
    Ok(text)
}

/// What is known of a client's TLS, on one line.
pub(crate) fn tls(info: Option<TlsInfo>) -> String {
    let Some(info) = info else { return "tls=none".into() };
    let or_none = |name: Option<String>| name.unwrap_or_else(|| "-".into());
    let TlsInfo { protocol, cipher, alpn, server_name, resumed, certificate, .. } = info;
    let mut text = format!(
        "tls={protocol} cipher={cipher} alpn={} sni={} resumed={resumed}",
        or_none(alpn),
        or_none(server_name)
    );
    if let Some(certificate) = certificate {
        let sha256: String = certificate.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!(
            " cert={sha256} cn={} names={}",
            or_none(certificate.common_name),
            certificate.names.join(",")
        );
    }
    text
}

/// Does that, and says so to whoever can still be told.
pub(crate) fn measure(worker: &mut Worker, what: Measure, session: Session) -> Result<Option<Vec<u8>>> {
    match what {
        Measure::Pause => worker.pause(session),
        Measure::Resume => worker.resume(session),
        Measure::Confirm => worker.confirm(session),
        Measure::Protect(on) => worker.protect(session, on),
        Measure::Reset => worker.reset(session),
    }?;
    Ok(Some(b"ok".to_vec()))
}
