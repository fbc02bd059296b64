//! Who is let onto the peer port, and what the others are told.

use std::{
    net::{SocketAddr, TcpListener},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::common::{PATIENCE, lane, listeners, material, server_material};
use concilium_rpc::{
    certificates::Authority,
    connect::{self, ConnectError},
    identity::Role,
    lane::{Lane, LaneError},
    status::RpcError,
    tls::TlsMaterial,
    v1::{
        CompareModelRequest, Hello, LaneFrame, compare_model_response::Outcome, lane_frame::Frame,
        peer_client::PeerClient,
    },
};
use tonic::Request;

/// Serves the peer port of one server in the background while `program` talks to it.
fn with_server<T>(index: usize, authority: &Authority, program: impl FnOnce(SocketAddr) -> T) -> T {
    let (listeners, addresses) = listeners();
    let listener = listeners.into_iter().nth(index).unwrap();
    let tls = server_material(authority, index);
    thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        scope.spawn(move || {
            let mut lane = lane(index, listener, addresses[(index + 1) % 3], tls);
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let _ = lane.next_event(std::future::pending::<()>(), Duration::from_millis(20));
            }
        });
        let result = program(addresses[index]);
        drop(stop);
        result
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The error of a lane that dials `address` with `tls`.
fn dial_error(index: usize, address: SocketAddr, tls: TlsMaterial) -> LaneError {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut dialling: Lane = lane(index, listener, address, tls);
    dialling.connect(Duration::from_secs(20)).unwrap_err()
}

#[test]
fn a_server_of_another_authority_is_refused_on_both_sides() {
    let authority = Authority::create().unwrap();
    let other = Authority::create().unwrap();
    with_server(1, &authority, |address| {
        let error = dial_error(0, address, server_material(&other, 0));
        let text = error.to_string();
        assert!(matches!(error, LaneError::Connect(ConnectError::Handshake { server: 1, .. })), "{text}");
        assert!(text.contains("ca.pem"), "{text}");
    });
    // The dialling side trusts the server's authority, but holds a certificate of its own authority.
    let folder = tempfile::tempdir().unwrap();
    let identity = concilium_rpc::identity::Identity::server(0).unwrap();
    let mut files = other.issue(&identity, &[], 1).unwrap().save(folder.path()).unwrap();
    files.ca = folder.path().join("both.pem");
    let both = format!("{}{}", authority.certificate_pem(), other.certificate_pem());
    std::fs::write(&files.ca, both).unwrap();
    let tls = files.load().unwrap();
    with_server(1, &authority, |address| {
        let error = dial_error(0, address, tls);
        let text = error.to_string();
        assert!(matches!(error, LaneError::Connect(ConnectError::Handshake { .. })), "{text}");
        assert!(text.contains("server-0.pem") && text.contains("does not trust the authority"), "{text}");
    });
}

#[test]
fn the_wrong_server_behind_an_address_is_found() {
    let authority = Authority::create().unwrap();
    with_server(2, &authority, |address| {
        let error = dial_error(0, address, server_material(&authority, 0));
        let text = error.to_string();
        assert!(text.contains("another server answers there"), "{text}");
        assert!(text.contains("server 1"), "{text}");
    });
}

#[test]
fn a_server_out_of_turn_is_refused() {
    let authority = Authority::create().unwrap();
    // Server 0 belongs behind server 2 and must not dial server 2 itself.
    with_server(2, &authority, |address| {
        let tls = server_material(&authority, 0);
        let status = runtime().block_on(async {
            let channel = connect::connect(2, &address.to_string(), &tls).await.unwrap();
            let frames = tokio_stream::iter([LaneFrame::default()]);
            PeerClient::new(channel).lane(Request::new(frames)).await.err().unwrap()
        });
        let error = RpcError::from_status(&status);
        assert_eq!(error.reason(), "ROLE_NOT_ALLOWED");
        assert!(error.to_string().contains("server-1"), "{error}");
    });
}

#[test]
fn clients_are_refused_on_the_peer_port() {
    let authority = Authority::create().unwrap();
    let tls = material(&authority, Role::Client, "alice");
    with_server(1, &authority, |address| {
        runtime().block_on(async {
            let channel = connect::connect(1, &address.to_string(), &tls).await.unwrap();
            let mut peer = PeerClient::new(channel);
            let frames = tokio_stream::iter([LaneFrame::default()]);
            let lane = peer.lane(Request::new(frames)).await.err().unwrap();
            let comparison = peer.compare_model(CompareModelRequest::default()).await.err().unwrap();
            for status in [lane, comparison] {
                let error = RpcError::from_status(&status);
                assert_eq!(error.reason(), "ROLE_NOT_ALLOWED");
                assert!(error.to_string().contains("client `alice`"), "{error}");
            }
        });
    });
}

#[test]
fn wrong_introductions_are_refused_by_field() {
    let authority = Authority::create().unwrap();
    let tls = server_material(&authority, 0);
    let good = Hello {
        party: 0,
        protocol_version: concilium_rpc::lane::PROTOCOL_VERSION,
        lane: 0,
        key_contribution: vec![1; 32].into(),
        tasks: Vec::new(),
        version: String::new(),
        lanes: 1,
    };
    let cases = [
        ("hello.party", Some(Frame::Hello(Hello { party: 2, ..good.clone() }))),
        ("hello.protocol_version", Some(Frame::Hello(Hello { protocol_version: 99, ..good.clone() }))),
        ("hello.lane", Some(Frame::Hello(Hello { lane: 1, ..good.clone() }))),
        (
            "hello.key_contribution",
            Some(Frame::Hello(Hello { key_contribution: vec![1; 31].into(), ..good })),
        ),
        ("hello.frame", None),
    ];
    with_server(1, &authority, |address| {
        runtime().block_on(async {
            let channel = connect::connect(1, &address.to_string(), &tls).await.unwrap();
            for (field, frame) in cases {
                let mut peer = PeerClient::new(channel.clone());
                let frames = tokio_stream::iter([LaneFrame { frame }]);
                let status = peer.lane(Request::new(frames)).await.err().unwrap();
                let RpcError::InvalidRequest { field: named, .. } = RpcError::from_status(&status) else {
                    panic!("{status}");
                };
                assert_eq!(named, field);
            }
        });
    });
}

#[test]
fn comparisons_reach_the_stored_models_and_bad_ones_do_not() {
    let authority = Authority::create().unwrap();
    let tls = server_material(&authority, 2);
    let good = CompareModelRequest {
        task: "digits".into(),
        owner: "ward-1".into(),
        model: "present".into(),
        content_digest: vec![1; 32].into(),
        component_digest: vec![7; 32].into(),
        component: 2,
        epoch: 1,
        owner_budget_nano_rho: None,
        retrained_on_new_data: false,
        version: 1,
    };
    let with = |change: fn(&mut CompareModelRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    // Servers 1 and 2 share component 2.
    let answered = [
        (Outcome::Match, good.clone()),
        (Outcome::Mismatch, with(|request| request.component_digest = vec![8; 32].into())),
        (Outcome::Unknown, with(|request| request.model = "absent".into())),
    ];
    let refused = [
        ("component", with(|request| request.component = 1)),
        ("content_digest", with(|request| request.content_digest = vec![1; 31].into())),
        ("owner", with(|request| request.owner = "../etc".into())),
    ];
    with_server(1, &authority, |address| {
        runtime().block_on(async {
            let channel = connect::connect(1, &address.to_string(), &tls).await.unwrap();
            let mut peer = PeerClient::new(channel);
            for (expected, request) in answered {
                let response = peer.compare_model(request).await.unwrap().into_inner();
                assert_eq!(response.outcome(), expected);
            }
            for (field, request) in refused {
                let status = peer.compare_model(request).await.err().unwrap();
                let RpcError::InvalidRequest { field: named, .. } = RpcError::from_status(&status) else {
                    panic!("{status}");
                };
                assert_eq!(named, field);
            }
        });
    });
}

#[test]
fn absent_peers_and_bad_addresses_are_named() {
    let authority = Authority::create().unwrap();
    let (listeners, _) = listeners();
    let [listener, silent, _] = listeners;
    let address = silent.local_addr().unwrap();
    drop(silent);
    let mut alone = lane(0, listener, address, server_material(&authority, 0));
    let error = alone.connect(Duration::from_millis(300)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("server 1") || text.contains("server 2"), "{text}");
    let refused = alone.receive(concilium_mpc::Neighbour::Next, PATIENCE).unwrap_err();
    assert!(matches!(refused, LaneError::NotConnected { peer: 1 }), "{refused}");
    assert_eq!(RpcError::from(error).reason(), "PEER_UNAVAILABLE");

    let tls = server_material(&authority, 0);
    for address in ["", "localhost", "localhost:", ":80", "a/b:80", "user@host:80", "host:99999"] {
        let error = connect::endpoint(1, address, &tls).err();
        assert!(matches!(error, Some(ConnectError::Address { server: 1, .. })), "{address}");
    }
    assert!(connect::endpoint(1, "[::1]:80", &tls).is_ok());
}
