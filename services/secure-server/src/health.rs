//! Asks the running server of a configuration whether it serves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use concilium_rpc::connect::{connect, describe};
use concilium_rpc::v1::prediction_server::SERVICE_NAME;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::config::ServerConfig;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the server of the configuration in `path`, which runs on this host, with its own certificate.
///
/// # Errors
/// Why it does not serve.
pub async fn check(path: &Path) -> anyhow::Result<()> {
    let config = ServerConfig::load(path)?;
    let tls = config.tls_files().load()?;
    let identity = tls.identity();
    let here = identity.server_index().ok_or_else(|| anyhow!("{identity} is no server"))?;
    let address = reachable(config.listen).to_string();
    let asked = tokio::time::timeout(PATIENCE, async {
        let channel = connect(here, &address, &tls).await?;
        let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        let answer = HealthClient::new(channel).check(request).await;
        anyhow::Ok(answer.map_err(|status| anyhow!("{}", describe(&status)))?.into_inner().status())
    });
    let status =
        asked.await.with_context(|| format!("{address} does not answer in {} s", PATIENCE.as_secs()))??;
    if status != ServingStatus::Serving {
        bail!("server {here} runs, but is not connected to both other servers; its log says why");
    }
    Ok(())
}

/// The address under which a listener is reached from its own host.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_reached_on_loopback() {
        for (listen, expected) in [
            ("0.0.0.0:7400", "127.0.0.1:7400"),
            ("[::]:7400", "[::1]:7400"),
            ("192.0.2.1:7401", "192.0.2.1:7401"),
        ] {
            let listen = listen.parse().expect("an address");
            assert_eq!(reachable(listen).to_string(), expected);
        }
    }
}
