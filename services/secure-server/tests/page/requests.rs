//! The page's port without a browser: content, headers, and who is let in.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use concilium_rpc::certificates::server_dns_name;
use concilium_rpc::identity::Role;
use concilium_rpc::tls::TlsFiles;
use serde_json::Value;

use crate::support::{ROW_COST_NANO_RHO, World, all, query, rows, share_model, shifted_network};

/// Status, headers in lower case and body.
pub(crate) type Answer = (u16, String, String);

/// Sends one request and reads the answer to its end.
fn exchange(mut stream: impl std::io::Read + std::io::Write, request: &str) -> std::io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // A server that has sent its answer may close without TLS's own goodbye.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && !bytes.is_empty() => {}
        other => drop(other?),
    }
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Ok((status, head.to_lowercase(), body.to_owned()))
}

fn plain(address: &str, method: &str, path: &str, host: &str) -> Answer {
    let stream = TcpStream::connect(address).expect("the page's port is open");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    exchange(stream, &request).expect("an answer")
}

pub(crate) fn get(address: &str, path: &str) -> Answer {
    plain(address, "GET", path, address)
}

fn overview(address: &str) -> Value {
    let (status, head, body) = get(address, "/api/overview");
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_shows_and_nothing_else() {
    let mut world = World::start("10").await;
    let owner = world.member(Role::Owner, "ward");
    share_model(&owner, "m0", &shifted_network(1)).await;
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    all(query(&task, &rows(3)).send(&client).await);
    all(query(&task, &rows(4)).send(&client).await);

    for server in 0..3 {
        let address = world.cluster.web_address(server);
        let overview = overview(address);
        assert_eq!(overview["server"]["index"], server);
        let votes = &overview["tasks"][0];
        assert_eq!(votes["name"], "votes");
        let budget = &votes["budget"];
        let spent = concilium_privacy::NanoRho::new(7 * ROW_COST_NANO_RHO).to_string();
        assert_eq!((&budget["spent_rho"], &budget["cap_rho"]), (&spent.clone().into(), &"10".into()));
        assert_eq!((&budget["requests"], &budget["rows"]), (&2.into(), &7.into()));
        assert_eq!(
            (&budget["clients"][0]["client"], &budget["clients"][0]["spent_rho"]),
            (&"alice".into(), &spent.into())
        );
        // The curve ends at what was spent.
        let last = budget["curve"].as_array().expect("a curve").last().expect("points")[1].as_f64();
        assert!((last.expect("a number") - 7.0 * 0.250_000_021).abs() < 1e-9, "{last:?}");
        assert!(budget["forecast"]["text"].as_str().expect("text").contains("too little data"));
        assert_eq!(
            (&votes["models"]["ready"], &votes["models"]["owners"][0]["owner"]),
            (&1.into(), &"ward".into())
        );
        let hour = &votes["traffic"]["hour"];
        assert_eq!((&hour["answered"], &hour["rows"], &hour["refused"]), (&2.into(), &7.into(), &0.into()));
        assert!(hour["p50_ms"].as_f64().expect("a latency") > 0.0);
        // Two charges at least; that they were delivered is noted a little later.
        assert!(overview["ledger"]["entries"].as_u64().expect("a number") >= 2);
        assert!(overview["peers"].as_array().expect("peers").iter().all(|peer| peer["connected"] == true));
    }

    let address = world.cluster.web_address(0).to_owned();
    for path in ["/", "/style.css", "/page.js", "/charts.js", "/icon.svg", "/api/overview", "/nothing"] {
        let (status, head, body) = get(&address, path);
        assert_eq!(status, if path == "/nothing" { 404 } else { 200 }, "{path}");
        assert!(!body.is_empty(), "{path}");
        assert!(head.contains("content-security-policy: default-src 'self';"), "{path}: {head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
        assert!(head.contains("cache-control: no-store"), "{path}: {head}");
        // The policy forbids what is inline; nothing may depend on it.
        assert!(
            !body.contains("<script>") && !body.contains("style=\"") && !body.contains("onclick"),
            "{path}"
        );
    }
    let (status, _, body) = get(&address, "/metrics");
    assert_eq!(status, 200);
    assert!(body.contains("# TYPE concilium_"), "{body}");
    assert_eq!(get(&address, "/healthz").0, 200);
    assert_eq!(get(&address, "/readyz").0, 200);
    let (status, _, body) = plain(&address, "HEAD", "/", &address);
    assert_eq!((status, body.as_str()), (200, ""));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (status, head, body) = plain(&address, method, "/api/overview", &address);
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("allow: get, head") && body.contains("concilium-operator"), "{head} {body}");
    }
    // Another name may lead here by a DNS record that somebody else controls.
    for host in ["evil.example", "evil.example:80", "10.0.0.1"] {
        let (status, _, body) = plain(&address, "GET", "/api/overview", host);
        assert_eq!(status, 403, "{host}");
        assert!(body.contains(host) && body.contains("localhost") && body.lines().count() == 1, "{body}");
    }
    let port = address.rsplit_once(':').expect("a port").1;
    assert_eq!(plain(&address, "GET", "/", &format!("localhost:{port}")).0, 200);

    world.cluster.kill_server(2);
    let begin = std::time::Instant::now();
    while get(&address, "/readyz").0 != 503 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the server does not notice");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(get(&address, "/readyz").2.contains("server 2") || get(&address, "/readyz").2.contains('2'));
    assert_eq!(get(&address, "/healthz").0, 200, "the process itself lives");
}

/// A request over TLS with the certificate of `files`, or with none.
fn secure(address: &str, files: &TlsFiles, show: bool, path: &str) -> std::io::Result<Answer> {
    let material = files.load().expect("the files are good");
    let mut roots = rustls::RootCertStore::empty();
    for authority in material.authority_certificates() {
        roots.add(authority.clone()).expect("a certificate");
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = if show {
        config.with_client_cert_resolver(material.client_certificate())
    } else {
        config.with_no_client_auth()
    };
    let name = server_dns_name(0).try_into().expect("a name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("settings");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    exchange(rustls::Stream::new(&mut connection, &mut stream), &request)
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_loopback_only_listed_operators_are_let_in() {
    let mut world = World::start("10").await;
    let file = world.cluster.home(0).join("server.toml");
    let address = world.cluster.web_address(0).to_owned();
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let port = address.rsplit_once(':').expect("a port").1;
    world.cluster.kill_server(0);
    let open = text.replace(&format!("\"{address}\""), &format!("\"0.0.0.0:{port}\""));
    assert_ne!(open, text);
    std::fs::write(&file, open).expect("the folder is writable");
    world.cluster.start_server(0).expect("the server starts");
    world.cluster.wait_until_ready(Duration::from_secs(60)).await.expect("servers connect");

    let files = |role, name: &str| world.cluster.member(role, name).expect("a certificate").tls;
    let operator = files(Role::Operator, "operator");
    for path in ["/", "/api/overview", "/metrics", "/healthz"] {
        let (status, head, _) = secure(&address, &operator, true, path).expect("an answer");
        assert_eq!(status, 200, "{path}");
        assert!(head.contains("content-security-policy"), "{path}");
    }
    let refused = [
        (files(Role::Client, "alice"), "client `alice`"),
        (files(Role::Owner, "ward"), "owner `ward`"),
        (files(Role::Operator, "stranger"), "operator `stranger`"),
    ];
    for (files, who) in refused {
        for path in ["/", "/api/overview", "/metrics"] {
            let (status, _, body) = secure(&address, &files, true, path).expect("an answer");
            assert_eq!(status, 403, "{who} {path}");
            assert!(body.contains(who) && body.contains("identities.operators"), "{body}");
            assert_eq!(body.lines().count(), 1, "{body}");
        }
    }
    assert!(secure(&address, &operator, false, "/").is_err(), "a caller without a certificate");
    // Plain HTTP gets nothing either.
    let mut stream = TcpStream::connect(&address).expect("the port is open");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("bytes are taken");
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    assert!(!bytes.starts_with(b"HTTP/1.1 200"), "plain HTTP is answered");
    // The two others still have theirs on the loopback.
    assert_eq!(get(world.cluster.web_address(1), "/").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let mut world = World::start("10").await;
    world.cluster.kill_server(1);
    let address = world.cluster.web_address(1).to_owned();
    let _taken = std::net::TcpListener::bind(&address).expect("the port is free now");
    world.cluster.start_server(1).expect("the process starts");
    let log = world.cluster.log(1);
    let begin = std::time::Instant::now();
    loop {
        let text = std::fs::read_to_string(&log).expect("the log");
        if text.contains("web.listen") && text.contains(&address) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "the port is not named:\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
