//! Three servers' lanes on loopback, with certificates of a temporary authority.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use concilium_rpc::{
    certificates::Authority,
    identity::{Identity, Role},
    lane::{CompareModels, Lane, LaneConfig, system_randomness},
    reload::ReloadableTls,
    tls::TlsMaterial,
    v1::{CompareModelRequest, TaskPolicy, compare_model_response::Outcome},
};

/// Long enough for a loaded machine; no test waits so long unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Answers by the last byte of the component's digest and remembers who asked.
#[derive(Default)]
pub(crate) struct Models {
    pub(crate) callers: Mutex<Vec<u8>>,
}

impl CompareModels for Models {
    fn compare(&self, caller: u8, request: &CompareModelRequest) -> Outcome {
        self.callers.lock().unwrap().push(caller);
        if request.model == "absent" {
            Outcome::Unknown
        } else if request.component_digest.iter().all(|byte| *byte == 7) {
            Outcome::Match
        } else {
            Outcome::Mismatch
        }
    }
}

/// A certificate of `authority` as a program would load it.
pub(crate) fn material(authority: &Authority, role: Role, name: &str) -> TlsMaterial {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new(role, name).unwrap();
    let files = authority.issue(&identity, &[], 1).unwrap().save(folder.path()).unwrap();
    files.load().unwrap()
}

pub(crate) fn server_material(authority: &Authority, index: usize) -> TlsMaterial {
    material(authority, Role::Server, &format!("server-{index}"))
}

/// Three peer ports, and the address of each.
pub(crate) fn listeners() -> ([TcpListener; 3], [SocketAddr; 3]) {
    let listeners = [0, 1, 2].map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let addresses = [0, 1, 2].map(|index| listeners[index].local_addr().unwrap());
    (listeners, addresses)
}

/// The policy that the lanes of these tests announce: its digest is the server's index.
pub(crate) fn policy(index: usize) -> TaskPolicy {
    TaskPolicy { name: "digits".into(), digest: vec![index as u8; 32].into(), ..TaskPolicy::default() }
}

pub(crate) fn lane(
    index: usize,
    listener: TcpListener,
    next: SocketAddr,
    tls: impl Into<ReloadableTls>,
) -> Lane {
    lanes(1, index, listener, next, tls).remove(0)
}

/// As many lanes of one server.
pub(crate) fn lanes(
    count: usize,
    index: usize,
    listener: TcpListener,
    next: SocketAddr,
    tls: impl Into<ReloadableTls>,
) -> Vec<Lane> {
    Lane::open(LaneConfig {
        lanes: count,
        listener,
        next_address: next.to_string(),
        tls: tls.into(),
        tasks: vec![policy(index)],
        models: Arc::new(Models::default()),
        randomness: system_randomness(),
    })
    .unwrap()
}

/// Runs the same program on the connected lanes of the three servers, each on its own thread.
pub(crate) fn three_servers<T: Send>(program: impl Fn(usize, &mut Lane) -> T + Sync) -> [T; 3] {
    let authority = Authority::create().unwrap();
    let (listeners, addresses) = listeners();
    let lanes = listeners.into_iter().enumerate().map(|(index, listener)| {
        (index, listener, addresses[(index + 1) % 3], server_material(&authority, index))
    });
    thread::scope(|scope| {
        let handles: Vec<_> = lanes
            .map(|(index, listener, next, tls)| {
                let program = &program;
                scope.spawn(move || {
                    let mut lane = lane(index, listener, next, tls);
                    lane.connect(PATIENCE).unwrap();
                    program(index, &mut lane)
                })
            })
            .collect();
        let results: Vec<T> = handles.into_iter().map(|handle| handle.join().unwrap()).collect();
        results.try_into().unwrap_or_else(|_| panic!("three servers ran"))
    })
}
