//! Certificates that are replaced, or end, while servers run.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use concilium_mpc::Neighbour;
use concilium_rpc::{
    certificates::{Authority, CertifiedKeyPem},
    connect::{self, ReloadedChannels},
    identity::{Identity, Role},
    lane::{LaneError, LaneEvent},
    reload::ReloadableTls,
    tls::TlsFiles,
    v1::{
        CompareModelRequest, CompareModelResponse, compare_model_response::Outcome, peer_client::PeerClient,
    },
};
use tonic::{Status, transport::Channel};

use crate::common::{PATIENCE, lane, listeners};

/// One party's files in a folder of its own.
struct Party {
    folder: tempfile::TempDir,
    identity: Identity,
    files: TlsFiles,
    tls: ReloadableTls,
}

impl Party {
    fn new(authority: &Authority, role: Role, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::new(role, name).unwrap();
        let files = authority.issue(&identity, &[], 1).unwrap().save(folder.path()).unwrap();
        let tls = ReloadableTls::open(&files).unwrap();
        Self { folder, identity, files, tls }
    }

    fn server(authority: &Authority, index: usize) -> Self {
        Self::new(authority, Role::Server, &format!("server-{index}"))
    }

    /// Replaces certificate and key by ones of `authority`, which the files of authorities must hold.
    fn renew(&self, authority: &Authority) {
        let ca = fs::read(&self.files.ca).unwrap();
        put(&authority.issue(&self.identity, &[], 1).unwrap(), &self.files);
        assert_eq!(ca, fs::read(&self.files.ca).unwrap());
        assert!(self.tls.reload().unwrap().is_some());
    }

    fn trust(&self, authorities: &[&Authority]) {
        let pem: String = authorities.iter().map(|authority| authority.certificate_pem()).collect();
        fs::write(&self.files.ca, pem).unwrap();
        assert!(self.tls.reload().unwrap().is_some());
    }

    fn serial(&self) -> String {
        assert!(self.folder.path().exists());
        self.tls.current().info().serial.clone()
    }
}

fn put(pair: &CertifiedKeyPem, files: &TlsFiles) {
    fs::write(&files.key, pair.key_pem()).unwrap();
    fs::write(&files.certificate, pair.certificate_pem()).unwrap();
}

/// Serves the peer port of server 1 while `program` talks to it.
fn with_server<T>(tls: ReloadableTls, program: impl AsyncFnOnce(SocketAddr) -> T) -> T {
    let ([_, listener, _], addresses) = listeners();
    thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let mut lane = lane(1, listener, addresses[2], tls);
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let _ = lane.next_event(std::future::pending::<()>(), Duration::from_millis(20));
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(program(addresses[1]));
        drop(stop);
        result
    })
}

/// A call that reaches the server's program.
async fn call(channel: Channel) -> Result<CompareModelResponse, Status> {
    call_from(0, channel).await
}

/// As [`call`], from another server than 0.
async fn call_from(caller: u32, channel: Channel) -> Result<CompareModelResponse, Status> {
    let question = CompareModelRequest {
        task: "digits".into(),
        owner: "ward-1".into(),
        model: "present".into(),
        content_digest: vec![1; 32].into(),
        component_digest: vec![7; 32].into(),
        component: caller.max(1),
        epoch: 1,
        owner_budget_nano_rho: None,
        retrained_on_new_data: false,
        version: 1,
    };
    PeerClient::new(channel).compare_model(question).await.map(tonic::Response::into_inner)
}

async fn connect_and_call(address: SocketAddr, caller: &Party) -> Result<(), String> {
    let tls = caller.tls.current();
    let failed = |error: &(dyn std::error::Error + 'static)| {
        connect::explain(1, &address.to_string(), &tls, error).to_string()
    };
    let channel = connect::connect(1, &address.to_string(), &tls).await.map_err(|error| error.to_string())?;
    let caller = caller.identity.server_index().unwrap();
    let answer = call_from(caller.into(), channel).await.map_err(|status| failed(&status))?;
    assert_eq!(answer.outcome(), Outcome::Match);
    Ok(())
}

#[test]
fn open_connections_go_on_and_new_ones_take_the_new_certificates() {
    let authority = Authority::create().unwrap();
    let (server, caller) = (Party::server(&authority, 1), Party::server(&authority, 0));
    with_server(server.tls.clone(), async |address| {
        let before = connect::connect(1, &address.to_string(), &caller.tls.current()).await.unwrap();
        call(before.clone()).await.unwrap();
        let serial = server.serial();
        server.renew(&authority);
        assert_ne!(server.serial(), serial);
        call(before.clone()).await.expect("the open connection goes on");
        connect_and_call(address, &caller).await.expect("a new connection");

        let addresses = [0, 1, 2].map(|_| address.to_string());
        let channels = ReloadedChannels::new(&addresses, caller.tls.clone()).unwrap();
        call(channels.to(1).unwrap()).await.unwrap();
        caller.renew(&authority);
        call(channels.to(1).unwrap()).await.unwrap();
        call(before).await.expect("the open connection goes on");
    });
}

#[test]
fn an_authority_is_replaced_in_three_steps_without_a_gap() {
    let (old, new) = (Authority::create().unwrap(), Authority::create().unwrap());
    let (server, caller) = (Party::server(&old, 1), Party::server(&old, 0));
    let stranger = Party::server(&old, 2);
    with_server(server.tls.clone(), async |address| {
        let works = async |step: &str| {
            connect_and_call(address, &caller).await.unwrap_or_else(|error| panic!("{step}: {error}"));
        };
        works("before").await;
        server.trust(&[&old, &new]);
        works("the server trusts both").await;
        caller.trust(&[&old, &new]);
        works("both trust both").await;
        server.renew(&new);
        works("the server has a new certificate").await;
        caller.renew(&new);
        works("both have new certificates").await;
        stranger.trust(&[&old, &new]);
        connect_and_call(address, &stranger).await.expect("the old authority is trusted still");
        server.trust(&[&new]);
        works("the server trusts the new one only").await;
        caller.trust(&[&new]);
        works("after").await;
        let error = connect_and_call(address, &stranger).await.unwrap_err();
        assert!(error.contains("does not trust the authority") && error.contains("server-2.pem"), "{error}");
    });
}

#[test]
fn callers_that_dawdle_hold_up_nobody() {
    let authority = Authority::create().unwrap();
    let (server, caller) = (Party::server(&authority, 1), Party::server(&authority, 0));
    with_server(server.tls.clone(), async |address| {
        let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
        connect_and_call(address, &caller).await.expect("the silent connections do not matter");
        drop(silent);
    });
}

#[test]
fn an_expired_certificate_is_named_on_the_side_that_holds_it() {
    let authority = Authority::create().unwrap();
    let (server, caller) = (Party::server(&authority, 1), Party::server(&authority, 0));
    let ends = ending_soon(&authority, &caller);
    with_server(server.tls.clone(), async |address| {
        let open = connect::connect(1, &address.to_string(), &caller.tls.current()).await.unwrap();
        call(open.clone()).await.expect("it is valid still");
        wait_until_after(ends);
        let status = call(open).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
        assert!(status.message().contains("server `server-0` was valid until"), "{status}");
        let error = connect_and_call(address, &caller).await.unwrap_err();
        assert!(error.contains("server-0.pem") && error.contains("has expired: renew it"), "{error}");
    });
    let caller = Party::server(&authority, 0);
    let ends = ending_soon(&authority, &server);
    with_server(server.tls.clone(), async |address| {
        wait_until_after(ends);
        let error = connect_and_call(address, &caller).await.unwrap_err();
        assert!(error.contains("the certificate of server 1 has expired"), "{error}");
    });
}

#[test]
fn a_link_ends_with_its_certificate_and_comes_back_with_the_next() {
    let authority = Authority::create().unwrap();
    let parties = [0, 1, 2].map(|index| Party::server(&authority, index));
    let ends = ending_soon(&authority, &parties[0]);
    let (listeners, addresses) = listeners();
    let barrier = std::sync::Barrier::new(3);
    thread::scope(|scope| {
        for (index, listener) in listeners.into_iter().enumerate() {
            let (parties, barrier, authority) = (&parties, &barrier, &authority);
            scope.spawn(move || {
                let tls = parties[index].tls.clone();
                let mut lane = lane(index, listener, addresses[(index + 1) % 3], tls);
                lane.connect(PATIENCE).unwrap();
                if index == 0 {
                    lane.check_certificates().unwrap();
                    wait_until_after(ends);
                    let error = lane.check_certificates().unwrap_err();
                    assert!(matches!(error, LaneError::CertificateEnded { .. }), "{error}");
                    assert!(error.to_string().contains("renewed"), "{error}");
                    parties[0].renew(authority);
                } else {
                    // Server 2 dials server 0 and sees only that the link ends; server 1 is dialled by it
                    // and sees its certificate as well.
                    let error = loop {
                        match lane.next_event(std::future::pending::<()>(), PATIENCE) {
                            Ok(LaneEvent::TimedOut) => panic!("the link outlives its certificate"),
                            Ok(_) => {}
                            Err(error) => break error,
                        }
                    };
                    assert!(error.peer().is_some(), "{error}");
                }
                lane.disconnect();
                lane.connect(PATIENCE).unwrap();
                assert!(lane.is_connected(Neighbour::Next) && lane.is_connected(Neighbour::Previous));
                barrier.wait();
            });
        }
    });
}

/// Gives the party a certificate that ends in a few seconds, and tells when.
fn ending_soon(authority: &Authority, party: &Party) -> i64 {
    // Long enough to connect on a loaded machine; the tests wait for the end.
    let ends = now() + 8;
    put(&authority.issue_between(&party.identity, &[], now() - 60, ends).unwrap(), &party.files);
    assert!(party.tls.reload().unwrap().is_some());
    ends
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn wait_until_after(seconds: i64) {
    while now() <= seconds {
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_port_is_free_again_when_its_server_is_gone() {
    let authority = Authority::create().unwrap();
    let server = Party::server(&authority, 1);
    let address = with_server(server.tls.clone(), async |address| address);
    TcpListener::bind(address).expect("nobody listens there any more");
}
