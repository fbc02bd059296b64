//! Examines one server, in the order in which a connection comes about.

use std::time::{Duration, Instant};

use concilium_client_library::{
    ConnectionConfig, ServerError, connection::CallError, connection::Connection,
};
use concilium_privacy::Clock;
use concilium_rpc::{
    connect,
    identity::{Identity, Role},
    inspection::utc,
    probe::{Probe, TlsFault, probe},
    status::RpcError,
    tls::TlsMaterial,
    v1::{
        GetBudgetRequest, GetBudgetResponse, GetStatusRequest, GetStatusResponse, ListTasksRequest, Task,
        budget_client::BudgetClient, operations_client::OperationsClient,
        prediction_client::PredictionClient,
    },
};
use tokio::{net::TcpStream, time::timeout_at};
use tonic::Code;

use super::{
    finding::{Check, Report},
    seconds,
};

/// Calls that are timed; the fastest counts.
const PINGS: usize = 5;

/// Longest time for one call, in milliseconds; none of them waits for anything.
const LONGEST_CALL_MS: u64 = 10_000;

/// What a server that was reached said.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) server: u8,
    /// For operators.
    pub(super) status: Option<GetStatusResponse>,
    /// For operators.
    pub(super) budget: Option<GetBudgetResponse>,
    /// For everybody else.
    pub(super) tasks: Vec<Task>,
    /// The server's clock less this host's, in milliseconds, and how far off this may be.
    pub(super) skew: Option<Skew>,
}

/// The difference of two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Skew {
    pub(super) ms: i64,
    pub(super) uncertain_ms: i64,
}

/// Examines the server up to the first fault.
pub(super) async fn examine(
    server: u8,
    config: &ConnectionConfig,
    tls: &TlsMaterial,
    clock: &dyn Clock,
    deadline: Instant,
) -> (Report, Option<Seen>) {
    let mut report = Report::default();
    let examination = async {
        let stream = reach(server, config, tls, &mut report).await?;
        let probe = probe(server, stream, tls).await;
        let port = config.servers[usize::from(server)].as_str();
        judge_tls(server, port, &probe, tls, clock, &mut report)?;
        ask(server, config, tls, clock, &mut report).await
    };
    match timeout_at(deadline.into(), examination).await {
        Ok(seen) => (report, seen),
        Err(_) => {
            report.fault(
                Check::Port,
                Some(server),
                "it did not answer in time",
                "ask its operator for the server's log; the machine may be overloaded",
            );
            (report, None)
        }
    }
}

/// Resolves the name and opens a TCP connection.
async fn reach(
    server: u8,
    config: &ConnectionConfig,
    tls: &TlsMaterial,
    report: &mut Report,
) -> Option<TcpStream> {
    let address = &config.servers[usize::from(server)];
    let place = Some(server);
    if let Err(error) = connect::endpoint(server, address, tls) {
        report.fault(
            Check::Address,
            place,
            error.to_string(),
            format!("correct entry {server} of `servers` in the configuration"),
        );
        return None;
    }
    let patience = config.connect_timeout();
    let resolved = tokio::time::timeout(patience, tokio::net::lookup_host(address)).await;
    let found = match resolved {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(error)) => return unresolved(server, address, &error.to_string(), report),
        Err(_) => return unresolved(server, address, "no answer in time", report),
    };
    if found.is_empty() {
        return unresolved(server, address, "it has no IP address", report);
    }
    report.ok(Check::Name, place, format!("{address} is {}", list(&found)));
    let (mut refused, mut reasons) = (true, Vec::new());
    for target in &found {
        match tokio::time::timeout(patience, TcpStream::connect(target)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => {
                refused &= error.kind() == std::io::ErrorKind::ConnectionRefused;
                reasons.push(format!("{target}: {error}"));
            }
            Err(_) => {
                refused = false;
                reasons.push(format!("{target}: no answer within {} ms", patience.as_millis()));
            }
        }
    }
    let remedy = if refused {
        format!(
            "the host is there, but nothing listens on this port: check that server {server} runs, and that entry \
             {server} of `servers` has the port of `listen` in its configuration"
        )
    } else {
        format!(
            "check that the host of server {server} runs, that entry {server} of `servers` is its address, and that \
             no firewall between it and this host drops the port"
        )
    };
    report.fault(Check::Port, place, reasons.join("; "), remedy);
    None
}

fn unresolved(server: u8, address: &str, reason: &str, report: &mut Report) -> Option<TcpStream> {
    report.fault(
        Check::Name,
        Some(server),
        format!("the host of {address} is not known: {reason}"),
        format!(
            "check the name in entry {server} of `servers`, and which DNS server or hosts file this host uses"
        ),
    );
    None
}

fn list(addresses: &[std::net::SocketAddr]) -> String {
    addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" and ")
}

/// Judges the handshake; `None` if it failed.
pub(super) fn judge_tls(
    server: u8,
    address: &str,
    probe: &Probe,
    tls: &TlsMaterial,
    clock: &dyn Clock,
    report: &mut Report,
) -> Option<()> {
    let place = Some(server);
    let (files, own) = (tls.files(), tls.identity());
    let (ca, certificate) = (files.ca.display(), files.certificate.display());
    let presented = probe.presented.as_ref();
    let from = presented.map_or_else(String::new, |info| info.issuer.clone());
    let renew = format!(
        "its operator must renew it with `concilium-operator certs renew`; no restart is needed. If it is valid by \
         another clock, set this machine's (now {})",
        utc(seconds(clock))
    );
    let (check, found, remedy) = match &probe.fault {
        None => {
            let serial = presented.map_or("", |info| info.serial.as_str());
            report.ok(Check::Tls, place, format!("mutual TLS, certificate {serial} of {from}"));
            report.ok(Check::Identity, place, format!("server-{server} answers at {address}"));
            return Some(());
        }
        Some(TlsFault::NotTls(reason)) => (
            Check::Port,
            format!("what answers at {address} does not speak TLS as a server does: {reason}"),
            format!(
                "entry {server} of `servers` must have the port of `listen` in that server's configuration"
            ),
        ),
        Some(TlsFault::TheirAuthority) => (
            Check::Tls,
            format!("the server's certificate is of `{from}`, which is not among the authorities in `{ca}`"),
            format!(
                "use the ca.pem of the servers' consortium in `{ca}`; if the authority is being changed, put the old \
                 and the new one into it"
            ),
        ),
        Some(TlsFault::TheirExpiry) => {
            let ended = presented.map_or_else(String::new, |info| utc(info.not_after));
            (Check::Expiry, format!("the server's certificate expired at {ended}"), renew)
        }
        Some(TlsFault::TheirBegin) => {
            let begin = presented.map_or_else(String::new, |info| utc(info.not_before));
            (
                Check::Clock,
                format!("the server's certificate is valid from {begin} only"),
                format!("set this machine's clock (now {}), or that of who issued it", utc(seconds(clock))),
            )
        }
        Some(TlsFault::OtherServer) => {
            let other = presented.and_then(|info| info.identity.clone().ok());
            let holder = other.as_ref().map_or_else(|| "somebody else".to_owned(), Identity::to_string);
            let place = other
                .as_ref()
                .and_then(Identity::server_index)
                .map_or_else(String::new, |index| format!(" The address belongs to entry {index}."));
            (
                Check::Identity,
                format!("{holder} answers at {address}, where server-{server} is expected"),
                format!(
                    "put the address of server-{server} into entry {server} of `servers`; their order is 0, 1, 2.{place}"
                ),
            )
        }
        Some(TlsFault::Theirs(reason)) => (
            Check::Tls,
            format!("the server's certificate is not usable: {reason}"),
            "its operator needs a new one, issued with `concilium-operator certs issue`".to_owned(),
        ),
        Some(TlsFault::OurAuthority) => (
            Check::Tls,
            format!("the server does not trust `{}`, which issued `{certificate}`", tls.authority().subject),
            format!(
                "use a certificate of an authority in that server's `tls.ca`, or have its operator put `{}` into it",
                tls.authority().subject
            ),
        ),
        Some(TlsFault::OurValidity) => (
            Check::Clock,
            format!(
                "the server says that `{certificate}`, valid from {} to {}, is not valid now",
                utc(tls.info().not_before),
                utc(tls.info().not_after)
            ),
            format!("compare this machine's clock (now {}) with that server's", utc(seconds(clock))),
        ),
        Some(TlsFault::Ours(reason)) => (
            Check::Tls,
            format!("the server refuses `{certificate}` of {own}: {reason}"),
            "ask its operator for the line of the server's log about the refused connection".to_owned(),
        ),
        Some(TlsFault::HungUp(reason)) => (
            Check::Tls,
            format!("the server ended the handshake: {reason}"),
            "ask its operator for the server's log; something between may break TLS".to_owned(),
        ),
        Some(other) => (Check::Tls, format!("{other:?}"), "tell the server's operator".to_owned()),
    };
    report.fault(check, place, found, remedy);
    None
}

/// Asks what operators may know, or what everybody may.
async fn ask(
    server: u8,
    config: &ConnectionConfig,
    tls: &TlsMaterial,
    clock: &dyn Clock,
    report: &mut Report,
) -> Option<Seen> {
    let place = Some(server);
    // Only this server's address, so that a bad one of another server does not matter here.
    let address = &config.servers[usize::from(server)];
    let servers = [0, 1, 2].map(|_| address.clone());
    let request_timeout_ms = config.request_timeout_ms.min(LONGEST_CALL_MS);
    let connection =
        match Connection::open(&ConnectionConfig { servers, request_timeout_ms, ..config.clone() }) {
            Ok(connection) => connection,
            Err(error) => {
                report.fault(Check::OwnFiles, None, error.to_string(), "correct the configuration");
                return None;
            }
        };
    let mut seen = Seen { server, ..Seen::default() };
    let mut fastest: Option<Duration> = None;
    for _ in 0..PINGS {
        let (begin_ms, begin) = (clock.now_ms(), Instant::now());
        let answer = call(&connection, server, tls.identity().role()).await;
        let taken = begin.elapsed();
        match answer {
            Ok(Answer::Status(status)) => {
                if fastest.is_none_or(|fastest| taken < fastest) {
                    seen.skew = Some(skew(begin_ms, taken, status.server_time_unix_ms));
                }
                seen.status = Some(*status);
            }
            Ok(Answer::Tasks(tasks)) => seen.tasks = tasks,
            Err(error) => {
                judge_refusal(server, config, &error, tls, report);
                return None;
            }
        }
        fastest = Some(fastest.map_or(taken, |fastest| fastest.min(taken)));
    }
    report.ok(Check::Role, place, format!("serves {}", tls.identity()));
    let milliseconds = fastest.unwrap_or_default().as_secs_f64() * 1e3;
    report.ok(Check::RoundTrip, place, format!("{milliseconds:.1} ms, the fastest of {PINGS} calls"));
    if tls.identity().role() == Role::Operator {
        let request = GetBudgetRequest { task: String::new() };
        let budget = connection.call(server, "GetBudget", |channel| async move {
            Ok(BudgetClient::new(channel).get_budget(request).await?.into_inner())
        });
        seen.budget = budget.await.ok();
    } else {
        report.warning(
            Check::Role,
            place,
            format!(
                "{} may not read the state: peers, clock, versions and ledgers were not examined",
                tls.identity()
            ),
            "run it with the certificate of an operator to examine them",
        );
    }
    Some(seen)
}

enum Answer {
    Status(Box<GetStatusResponse>),
    Tasks(Vec<Task>),
}

async fn call(connection: &Connection, server: u8, role: Role) -> Result<Answer, ServerError> {
    let call = |channel| async move {
        Ok::<_, CallError>(if role == Role::Operator {
            let answer = OperationsClient::new(channel).get_status(GetStatusRequest {}).await?;
            Answer::Status(Box::new(answer.into_inner()))
        } else {
            let answer = PredictionClient::new(channel).list_tasks(ListTasksRequest {}).await?;
            Answer::Tasks(answer.into_inner().tasks)
        })
    };
    connection.call(server, if role == Role::Operator { "GetStatus" } else { "ListTasks" }, call).await
}

/// The server answered about half way; it may have been at any moment of the call.
fn skew(begin_ms: u64, taken: Duration, server_ms: i64) -> Skew {
    let half = i64::try_from(taken.as_millis() / 2).unwrap_or(i64::MAX);
    let here = i64::try_from(begin_ms).unwrap_or(i64::MAX).saturating_add(half);
    Skew { ms: server_ms.saturating_sub(here), uncertain_ms: half.saturating_add(1) }
}

fn judge_refusal(
    server: u8,
    config: &ConnectionConfig,
    error: &ServerError,
    tls: &TlsMaterial,
    report: &mut Report,
) {
    let place = Some(server);
    let own = tls.identity();
    let (check, found, remedy) = match error.refusal() {
        Some(RpcError::UnknownIdentity { configuration_key, .. }) => (
            Check::Role,
            format!("the server does not serve {own}"),
            format!(
                "have its operator add \"{}\" to `{configuration_key}` in that server's configuration and restart it",
                own.name()
            ),
        ),
        Some(RpcError::RoleNotAllowed { needed, .. }) => (
            Check::Role,
            format!("the server does not answer a {} here; it needs {needed}", own.role()),
            "use the certificate of an operator, a client or an owner".to_owned(),
        ),
        Some(RpcError::Unauthenticated { problem }) => {
            (Check::Tls, problem.clone(), format!("renew `{}`", config.tls.certificate.display()))
        }
        Some(RpcError::Unrecognised { code: Code::Unimplemented, .. }) => (
            Check::Port,
            format!("server-{server} answers, but does not know the call"),
            format!(
                "this is its port for the other servers, or a server of another version: entry {server} of `servers` \
                 must have the port of `listen`, not of `peer_listen`"
            ),
        ),
        _ => {
            (Check::Tls, error.to_string(), "ask its operator for the server's log at this moment".to_owned())
        }
    };
    report.fault(check, place, found, remedy);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_the_round_trip_is_taken_off() {
        let skew = skew(1_000_000, Duration::from_millis(400), 1_000_200);
        assert_eq!(skew, Skew { ms: 0, uncertain_ms: 201 });
        let behind = super::skew(1_000_000, Duration::from_millis(10), 1_000_000 - 3_600_000);
        assert_eq!(behind.ms, -3_600_005);
    }
}
