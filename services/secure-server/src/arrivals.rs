//! What the leader knows about requests on the two other servers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use concilium_mpc::Neighbour;
use concilium_privacy::{RequestId, RequestKey};
use concilium_rpc::v1::{Arrived, ArrivedRequest};

/// Requests of which the other servers have their part.
#[derive(Default)]
pub(crate) struct Arrivals {
    /// Whether the next and the previous server have it, and when the first of them said so.
    requests: HashMap<RequestKey, ([bool; 2], Instant)>,
}

impl Arrivals {
    /// Notes what a neighbour announces.
    pub(crate) fn note(&mut self, from: Neighbour, arrived: &Arrived) {
        for key in named(&arrived.requests) {
            let (servers, _) = self.requests.entry(key).or_insert(([false; 2], Instant::now()));
            servers[usize::from(from == Neighbour::Previous)] = true;
        }
    }

    /// Whether both other servers have the request.
    pub(crate) fn everywhere(&self, key: &RequestKey) -> bool {
        self.requests.get(key).is_some_and(|(servers, _)| servers.iter().all(|&here| here))
    }

    /// The first of the two neighbours that does not have the request.
    pub(crate) fn missing_on(&self, key: &RequestKey) -> Neighbour {
        match self.requests.get(key) {
            Some(([true, _], _)) => Neighbour::Previous,
            _ => Neighbour::Next,
        }
    }

    /// Forgets a request that is planned.
    pub(crate) fn forget(&mut self, key: &RequestKey) {
        self.requests.remove(key);
    }

    /// Forgets and returns requests that were announced more than `age` ago and for which `wanted`
    /// holds.
    pub(crate) fn take_older(
        &mut self,
        age: Duration,
        wanted: impl Fn(&RequestKey) -> bool,
    ) -> Vec<RequestKey> {
        let old = |key: &RequestKey, since: &Instant| since.elapsed() > age && wanted(key);
        self.requests.extract_if(|key, (_, since)| old(key, since)).map(|(key, _)| key).collect()
    }
}

/// The requests that a neighbour names. Those with ids of the wrong length can't be asked for and
/// are left out.
pub(crate) fn named(requests: &[ArrivedRequest]) -> impl Iterator<Item = RequestKey> + '_ {
    requests.iter().filter_map(|request| {
        Some(RequestKey {
            task: request.task.clone(),
            epoch: request.epoch,
            client: request.client.clone(),
            request: RequestId(<[u8; 16]>::try_from(&request.request_id[..]).ok()?),
        })
    })
}

/// These requests as they travel.
pub(crate) fn to_wire(keys: Vec<RequestKey>) -> Vec<ArrivedRequest> {
    let name = |key: RequestKey| ArrivedRequest {
        task: key.task,
        epoch: key.epoch,
        client: key.client,
        request_id: key.request.0.to_vec().into(),
    };
    keys.into_iter().map(name).collect()
}
