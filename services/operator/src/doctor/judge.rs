//! Compares what the servers said with each other and with this host.

use concilium_client_library::budget::differences;
use concilium_rpc::{
    inspection::{EXPIRY_WARNING_DAYS, utc},
    v1::GetStatusResponse,
};

use super::{
    finding::{Check, Report},
    server::{Seen, Skew},
};

/// Difference of clocks from which a warning is given, in milliseconds. Synchronised clocks differ by
/// far less, so the synchronisation does not work on one side.
const SKEW_WARNING_MS: i64 = 5_000;

/// Difference of clocks that is a fault, in milliseconds. Certificates are valid from an hour before
/// their issue; a clock that is off by minutes uses that up, and the times of ledgers and logs of
/// different servers can't be brought together any more.
const SKEW_FAULT_MS: i64 = 300_000;

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// Adds what the servers' answers tell.
pub(super) fn compare(seen: &[Seen], report: &mut Report) {
    let statuses: Vec<_> =
        seen.iter().filter_map(|seen| Some((seen.server, seen.status.as_ref()?))).collect();
    for (server, status) in &statuses {
        judge_certificate(*server, status, report);
        judge_peers(*server, status, report);
    }
    judge_clocks(seen, report);
    judge_versions(&statuses, report);
    let budgets: Vec<_> = seen.iter().filter_map(|seen| seen.budget.clone()).collect();
    if budgets.len() > 1 {
        let told = differences(&budgets);
        if told.is_empty() {
            report.ok(Check::Ledger, None, format!("the totals of {} ledgers agree", budgets.len()));
        } else {
            report.warning(
                Check::Ledger,
                None,
                told.join("; "),
                "while queries run, ledgers differ for moments; read again with `concilium-operator budget`. A \
                 difference that stays means a server that is faulty or was restored from an old copy",
            );
        }
    }
}

fn judge_certificate(server: u8, status: &GetStatusResponse, report: &mut Report) {
    let Some(certificate) = &status.certificate else { return };
    let place = Some(server);
    let days = |end: i64| end.saturating_sub(status.server_time_unix_ms).div_euclid(DAY_MS);
    let left = days(certificate.not_after_unix_ms);
    let end = utc(certificate.not_after_unix_ms / 1000);
    if left < 0 {
        report.fault(
            Check::Expiry,
            place,
            format!("the server's certificate expired at {end}"),
            "its operator must renew it with `concilium-operator certs renew`; no restart is needed",
        );
    } else if left < EXPIRY_WARNING_DAYS {
        report.warning(
            Check::Expiry,
            place,
            format!("the server's certificate expires in {left} days, at {end}"),
            "its operator should renew it with `concilium-operator certs renew`; no restart is needed",
        );
    } else {
        report.ok(Check::Expiry, place, format!("certificate valid for {left} days"));
    }
    if days(certificate.authority_not_after_unix_ms) < EXPIRY_WARNING_DAYS {
        report.warning(
            Check::Expiry,
            place,
            format!(
                "its authority {} ends at {}",
                certificate.authority,
                utc(certificate.authority_not_after_unix_ms / 1000)
            ),
            "replace the authority in three steps, see `concilium-operator certs renew --help`",
        );
    }
    if !certificate.problem.is_empty() {
        report.warning(
            Check::Reload,
            place,
            format!("the server refuses its changed certificate files: {}", certificate.problem),
            "its operator must put good files in place before the certificate in use ends or the server restarts",
        );
    }
}

fn judge_peers(server: u8, status: &GetStatusResponse, report: &mut Report) {
    let place = Some(server);
    for peer in &status.peers {
        if peer.connected {
            continue;
        }
        let why = if peer.last_error.is_empty() { "no error is known" } else { &peer.last_error };
        report.fault(
            Check::Peers,
            place,
            format!("no link to server {}: {why}", peer.party),
            format!(
                "check that server {} runs and that `peers` of both servers has the other's `peer_listen`; \
                 server i dials server i + 1, and server 2 dials server 0",
                peer.party
            ),
        );
    }
    if status.peers.iter().all(|peer| peer.connected) {
        report.ok(Check::Peers, place, "connected to both other servers");
    }
}

fn judge_clocks(seen: &[Seen], report: &mut Report) {
    let skews: Vec<(u8, Skew)> = seen.iter().filter_map(|seen| Some((seen.server, seen.skew?))).collect();
    let (Some(least), Some(most)) =
        (skews.iter().map(|(_, skew)| skew.ms).min(), skews.iter().map(|(_, skew)| skew.ms).max())
    else {
        return;
    };
    // Servers that agree with each other and not with this host: one clock is wrong rather than three.
    let here =
        skews.len() > 1 && most - least < SKEW_WARNING_MS && skews.iter().all(|(_, skew)| is_off(*skew));
    if here {
        let off = describe(Skew { ms: -least, uncertain_ms: 0 });
        let found = format!("this machine's clock is {off} the clocks of all servers, which agree");
        tell(report, None, least, found, "set this machine's clock, and keep it right with NTP");
        return;
    }
    for (server, skew) in skews {
        if is_off(skew) {
            let found = format!("the server's clock is {} this machine's", describe(skew));
            let remedy = "its operator should set the clock and keep it right with NTP; if this machine's is the \
                          wrong one, set that";
            tell(report, Some(server), skew.ms, found, remedy);
        } else {
            let found = format!("{} ms off, within {} ms", skew.ms, skew.uncertain_ms);
            report.ok(Check::Clock, Some(server), found);
        }
    }
}

/// Whether the difference is worth telling, even if the answer took long.
fn is_off(skew: Skew) -> bool {
    skew.ms.saturating_abs() - skew.uncertain_ms > SKEW_WARNING_MS
}

fn tell(report: &mut Report, server: Option<u8>, ms: i64, found: String, remedy: &str) {
    if ms.saturating_abs() > SKEW_FAULT_MS {
        report.fault(Check::Clock, server, found, remedy);
    } else {
        report.warning(Check::Clock, server, found, remedy);
    }
}

fn describe(skew: Skew) -> String {
    let direction = if skew.ms < 0 { "behind" } else { "ahead of" };
    let seconds = skew.ms.saturating_abs() / 1000;
    match seconds {
        0..120 => format!("{seconds} s {direction}"),
        120..7_200 => format!("{} min {direction}", seconds / 60),
        _ => format!("{} h {direction}", seconds / 3_600),
    }
}

fn judge_versions(statuses: &[(u8, &GetStatusResponse)], report: &mut Report) {
    let Some(((_, first), others)) = statuses.split_first() else { return };
    let list = |text: &dyn Fn(&GetStatusResponse) -> String| {
        let told = statuses.iter().map(|(server, status)| format!("server {server}: {}", text(status)));
        told.collect::<Vec<_>>().join(", ")
    };
    if others.iter().any(|(_, status)| status.protocol_version != first.protocol_version) {
        report.fault(
            Check::Version,
            None,
            format!(
                "the servers speak different protocols: {}",
                list(&|status| status.protocol_version.to_string())
            ),
            "run the same release on all three servers",
        );
    } else if others.iter().any(|(_, status)| status.version != first.version) {
        report.warning(
            Check::Version,
            None,
            format!("the servers run different versions: {}", list(&|status| status.version.clone())),
            "finish the upgrade, so that all three run the same release",
        );
    } else {
        let found =
            format!("{} on every server that answered, protocol {}", first.version, first.protocol_version);
        report.ok(Check::Version, None, found);
    }
}

#[cfg(test)]
mod tests {
    use concilium_rpc::v1::{CertificateStatus, PeerStatus};

    use super::*;
    use crate::doctor::{Finding, Level};

    const NOW_MS: i64 = 1_800_000_000_000;

    fn seen(server: u8, skew_ms: i64) -> Seen {
        let peers = (0..3).filter(|party| *party != u32::from(server));
        Seen {
            server,
            status: Some(GetStatusResponse {
                party: server.into(),
                version: "1.0.0".into(),
                protocol_version: 1,
                server_time_unix_ms: NOW_MS,
                certificate: Some(CertificateStatus {
                    not_after_unix_ms: NOW_MS + 100 * DAY_MS,
                    authority_not_after_unix_ms: NOW_MS + 1000 * DAY_MS,
                    ..CertificateStatus::default()
                }),
                peers: peers
                    .map(|party| PeerStatus { party, connected: true, ..PeerStatus::default() })
                    .collect(),
                ..GetStatusResponse::default()
            }),
            skew: Some(Skew { ms: skew_ms, uncertain_ms: 20 }),
            ..Seen::default()
        }
    }

    fn problems(seen: &[Seen]) -> Vec<Finding> {
        let mut report = Report::default();
        compare(seen, &mut report);
        report.findings().iter().filter(|finding| finding.level != Level::Ok).cloned().collect()
    }

    #[test]
    fn servers_in_order_give_no_problem() {
        assert_eq!(problems(&[seen(0, 10), seen(1, -4_000), seen(2, 900)]), []);
        assert_eq!(problems(&[]), []);
    }

    #[test]
    fn the_clock_that_is_wrong_is_named() {
        let hour = 3_600_000;
        let found = problems(&[seen(0, 0), seen(1, hour), seen(2, 100)]);
        let [clock] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((clock.check, clock.server, clock.level), (Check::Clock, Some(1), Level::Fault));
        assert!(clock.found.contains("60 min ahead of this machine's"), "{}", clock.found);

        let found = problems(&[seen(0, hour), seen(1, hour + 20), seen(2, hour - 30)]);
        let [clock] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((clock.server, clock.level), (None, Level::Fault));
        assert!(clock.found.contains("this machine's clock is 59 min behind"), "{}", clock.found);
        assert!(clock.remedy.contains("set this machine's clock"), "{}", clock.remedy);

        let found = problems(&[seen(0, 0), seen(1, -6_000)]);
        assert_eq!((found[0].server, found[0].level), (Some(1), Level::Warning));
        // An answer that took ten seconds says nothing about six seconds.
        let mut slow = seen(1, -6_000);
        slow.skew = Some(Skew { ms: -6_000, uncertain_ms: 10_000 });
        assert_eq!(problems(&[seen(0, 0), slow]), []);
    }

    #[test]
    fn certificates_links_and_versions_are_judged() {
        let mut servers = [seen(0, 0), seen(1, 0), seen(2, 0)];
        let status = |seen: &mut Seen| seen.status.clone().unwrap();
        let mut one = status(&mut servers[1]);
        let certificate = one.certificate.as_mut().unwrap();
        certificate.not_after_unix_ms = NOW_MS + 12 * DAY_MS;
        certificate.problem = "the key does not belong".into();
        one.peers[1].connected = false;
        one.peers[1].last_error = "it refuses".into();
        one.version = "0.9.0".into();
        servers[1].status = Some(one);
        let found = problems(&servers);
        let named: Vec<_> =
            found.iter().map(|finding| (finding.check, finding.server, finding.level)).collect();
        assert_eq!(
            named,
            [
                (Check::Expiry, Some(1), Level::Warning),
                (Check::Reload, Some(1), Level::Warning),
                (Check::Peers, Some(1), Level::Fault),
                (Check::Version, None, Level::Warning),
            ]
        );
        assert!(found[0].found.contains("expires in 12 days") && found[0].remedy.contains("certs renew"));
        assert!(found[2].found.contains("server 2: it refuses"), "{}", found[2].found);
        assert!(found[3].found.contains("server 1: 0.9.0"), "{}", found[3].found);

        let mut two = status(&mut servers[2]);
        two.protocol_version = 2;
        servers[2].status = Some(two);
        let found = problems(&servers);
        let version = found.iter().find(|finding| finding.check == Check::Version).unwrap();
        assert_eq!(version.level, Level::Fault);
    }
}
