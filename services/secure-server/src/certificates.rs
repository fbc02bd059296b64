//! Follows the certificate files while the server runs, and warns before the certificate ends.

use std::sync::Arc;
use std::time::Duration;

use concilium_rpc::inspection::{CertificateInfo, Validity, utc};
use concilium_rpc::tls::TlsMaterial;

use crate::context::Context;
use crate::metrics;

/// How often the files are looked at. Mounted volumes of containers tell nobody that a file changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// How often a certificate that ends soon is pointed at.
const WARNING_INTERVAL: Duration = Duration::from_secs(86_400);
/// How often the clock is asked; a machine that slept must not wait for a day more.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// Replaces the certificate when its files change, at once on SIGHUP, and warns of its end. Never
/// returns.
pub(crate) async fn follow(context: Arc<Context>) {
    let here = context.here;
    metrics::set_certificate_expiry(context.tls.current().expires());
    let reloads = context.tls.follow(LOOK_INTERVAL, |outcome| match outcome {
        Ok(reloaded) => {
            metrics::set_certificate_expiry(context.tls.current().expires());
            tracing::info!(server = %here, %reloaded, "the certificate files changed; new connections use them");
        }
        Err(error) => {
            tracing::error!(
                server = %here, %error,
                "the changed certificate files are refused; the certificate read before stays in use"
            );
        }
    });
    tokio::join!(reloads, hurry_on_signal(&context), warn_of_the_end(&context));
}

/// SIGHUP asks for a look at once, as it does of many servers.
#[cfg(unix)]
async fn hurry_on_signal(context: &Context) {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::hangup()) {
        Ok(mut signals) => {
            while signals.recv().await.is_some() {
                context.tls.hurry();
            }
        }
        Err(error) => tracing::warn!(%error, "SIGHUP is not heard; the files are looked at anyway"),
    }
}

#[cfg(not(unix))]
async fn hurry_on_signal(_: &Context) {}

async fn warn_of_the_end(context: &Context) {
    // The certificate and state that were last warned of, and when.
    let mut told: Option<(String, bool, u64)> = None;
    loop {
        let tls = context.tls.current();
        let now_ms = context.clock.now_ms();
        if let Some(warning) = warning(tls.info(), now_ms) {
            let serial = &tls.info().serial;
            let due = told.as_ref().is_none_or(|(of, ended, at)| {
                (of, *ended) != (serial, warning.has_ended)
                    || now_ms.saturating_sub(*at) >= WARNING_INTERVAL.as_millis() as u64
            });
            if due {
                warning.log(context, &tls);
                told = Some((serial.clone(), warning.has_ended, now_ms));
            }
        }
        tokio::time::sleep(CLOCK_INTERVAL).await;
    }
}

/// What is to be said about the end of a certificate.
#[derive(Debug, PartialEq, Eq)]
struct Warning {
    has_ended: bool,
    until: String,
    text: String,
}

impl Warning {
    fn log(&self, context: &Context, tls: &TlsMaterial) {
        let Self { has_ended, until, text } = self;
        let (here, file) = (context.here, tls.files().certificate.display());
        if *has_ended {
            tracing::error!(server = %here, %file, %until, "{text}");
        } else {
            tracing::warn!(server = %here, %file, %until, "{text}");
        }
    }
}

fn warning(certificate: &CertificateInfo, now_ms: u64) -> Option<Warning> {
    let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    let until = utc(certificate.not_after);
    let remedy = "renew it with `concilium-operator certs renew`, no restart is needed";
    match certificate.validity_at(now) {
        Validity::Good { .. } => None,
        Validity::Ending { days } => Some(Warning {
            has_ended: false,
            until,
            text: format!("this server's certificate expires in {days} days; {remedy}"),
        }),
        Validity::Expired => Some(Warning {
            has_ended: true,
            until,
            text: format!(
                "this server's certificate has expired, so nobody connects to it and its links to the other \
                 servers are given up; {remedy}"
            ),
        }),
        Validity::NotYet => Some(Warning {
            has_ended: true,
            until,
            text: "this server's certificate is not valid yet; set this machine's clock".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use concilium_rpc::certificates::Authority;
    use concilium_rpc::identity::Identity;

    #[test]
    fn the_end_is_warned_of_for_thirty_days() {
        const DAY: i64 = 86_400;
        let authority = Authority::create().expect("an authority");
        let server = Identity::server(0).expect("a server");
        let issued = authority.issue_between(&server, &[], DAY, 100 * DAY).expect("a certificate");
        let info = CertificateInfo::read(&issued.certificate_der()).expect("readable");
        let at = |day: i64| warning(&info, (day * DAY) as u64 * 1000);
        assert_eq!(at(70), None);
        let ending = at(71).expect("29 days are left");
        assert!(!ending.has_ended && ending.text.contains("expires in 29 days"), "{ending:?}");
        assert!(ending.text.contains("certs renew"), "{ending:?}");
        let ended = at(101).expect("it has ended");
        assert!(ended.has_ended && ended.text.contains("has expired"), "{ended:?}");
        assert!(at(0).expect("too early").text.contains("clock"));
    }
}
