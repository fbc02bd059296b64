//! TLS to the database: whom a server believes, and that it never goes on without.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use concilium_demo::cluster::Cluster;
use concilium_postgres::{PostgresError, PostgresOptions, PostgresStore};
use concilium_privacy::LedgerError;
use concilium_rpc::certificates::Authority;
use concilium_rpc::identity::Identity;

use super::HERE;
use super::postgres::Postgres;
use super::support::{program, task_file};

/// Settings of a server with a certificate for these hosts.
fn certificate(postgres: &Postgres, authority: &Authority, name: &str, hosts: &[&str]) -> Vec<String> {
    let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let identity = Identity::server(HERE as u8).expect("an identity");
    let folder = postgres.folder().join(name);
    let files = authority.issue(&identity, &hosts, 1).expect("issued").save(&folder).expect("saved");
    for file in [&folder, &files.certificate, &files.key] {
        postgres.give(file);
    }
    vec![
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", files.certificate.display()),
        format!("ssl_key_file={}", files.key.display()),
    ]
}

fn listen(postgres: &mut Postgres, settings: &[String]) {
    postgres.listen(&settings.iter().map(String::as_str).collect::<Vec<_>>());
}

fn opened(url: &str, authority: &Authority) -> Result<PostgresStore, LedgerError> {
    let authorities = Some(vec![authority.certificate_der()]);
    PostgresStore::open(PostgresOptions::new(url, None, authorities).expect("a good URL"))
}

/// Why the store could not be opened.
fn refusal(url: &str, authority: &Authority) -> PostgresErrorText {
    match opened(url, authority) {
        Ok(_) => panic!("{url} is accepted"),
        Err(LedgerError::Storage { source, .. }) => {
            let error = source.downcast_ref::<PostgresError>().expect("an error of the database");
            PostgresErrorText { text: error.to_string(), kind: format!("{error:?}") }
        }
        Err(error) => panic!("another error: {error}"),
    }
}

struct PostgresErrorText {
    text: String,
    kind: String,
}

#[test]
fn a_databases_certificate_must_be_of_the_named_authority_and_host() {
    let test = "a_databases_certificate_must_be_of_the_named_authority_and_host";
    let Some(mut postgres) = Postgres::start(test) else { return };
    let (ours, other) = [(); 2].map(|()| Authority::create().expect("an authority")).into();
    let settings = certificate(&postgres, &ours, "good", &["127.0.0.1", "localhost"]);
    listen(&mut postgres, &settings);
    for host in ["127.0.0.1", "localhost"] {
        // However little the URL asks for.
        for mode in ["", "?sslmode=disable", "?sslmode=prefer"] {
            let url = format!("postgres://ledger@{host}:{}/postgres{mode}", postgres.port());
            let store = opened(&url, &ours).expect("it is accepted");
            let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                             WHERE application_name = 'concilium ledger'";
            assert_eq!(postgres.query(encrypted).as_deref(), Some("t"), "{url}");
            drop(store);
            postgres.wait_for("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0");
        }
    }
    let url = format!("postgres://ledger@127.0.0.1:{}/postgres", postgres.port());
    let refused = refusal(&url, &other);
    assert!(refused.kind.starts_with("OtherAuthority"), "{}", refused.kind);
    assert!(refused.text.contains("`ledger.ca`"), "{}", refused.text);

    let settings = certificate(&postgres, &ours, "elsewhere", &["db.example.org"]);
    listen(&mut postgres, &settings);
    let url = format!("postgres://ledger@127.0.0.1:{}/postgres", postgres.port());
    let refused = refusal(&url, &ours);
    assert!(refused.kind.starts_with("OtherName"), "{}", refused.kind);
    for name in ["127.0.0.1", "db.example.org"] {
        assert!(refused.text.contains(name), "{}", refused.text);
    }

    // Without TLS nothing is sent, though the database would take it.
    listen(&mut postgres, &["ssl=off".to_owned()]);
    for mode in ["", "?sslmode=disable", "?sslmode=prefer"] {
        let url = format!("postgres://ledger@127.0.0.1:{}/postgres{mode}", postgres.port());
        let refused = refusal(&url, &ours);
        assert!(refused.kind.starts_with("NoTls"), "{}", refused.kind);
    }

    // The program says the same, and ends.
    let settings = certificate(&postgres, &ours, "again", &["127.0.0.1"]);
    listen(&mut postgres, &settings);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ca = folder.path().join("database-ca.pem");
    fs::write(&ca, other.certificate_pem()).expect("it is written");
    let ledger = format!(
        "[ledger]\nurl = \"postgres://ledger@127.0.0.1:{}/postgres\"\nca = \"{}\"\n",
        postgres.port(),
        ca.display()
    );
    let tasks = task_file("votes", "10");
    let cluster = Cluster::prepare(folder.path(), program(), [&tasks; 3], [&ledger; 3]);
    let config: PathBuf = cluster.expect("configurations are written").home(HERE).join("server.toml");
    let ended = Command::new(program().path).arg("--config").arg(config).output().expect("the program runs");
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(text.contains("was not signed by an authority of `ledger.ca`"), "{text}");
}

/// Somebody on the way says that the database has no TLS: not a word about who asks for what is sent.
#[test]
fn nobody_on_the_way_can_turn_tls_off() {
    let ours = Authority::create().expect("an authority");
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let overheard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 8];
        stream.read_exact(&mut request).expect("a request for TLS");
        stream.write_all(b"N").expect("sent");
        let mut rest = Vec::new();
        // It may be closed with or without an error.
        let _ = stream.read_to_end(&mut rest);
        (request, rest)
    });
    let url = format!("postgres://ledger@127.0.0.1:{port}/postgres?sslmode=prefer");
    assert!(refusal(&url, &ours).kind.starts_with("NoTls"));
    let (request, rest) = overheard.join().expect("no panic");
    // The length, and the number of the request for TLS.
    assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
    assert!(rest.is_empty(), "{} bytes were sent without TLS", rest.len());
}
