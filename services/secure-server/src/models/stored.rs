//! A model as it lies on the disk, and how it is read from there.

use std::fmt;
use std::sync::Arc;

use concilium_inference::SharedModel;
use concilium_mpc::input::Component;
use concilium_network::Architecture;
use concilium_ring::Z64;
use concilium_rpc::v1::ModelState;
use prost::Message;
use zeroize::Zeroize;

use super::{Entry, ModelKey, Terms};
use crate::epochs::Epochs;

/// A model as it lies on the disk.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct StoredModel {
    #[prost(string, tag = "1")]
    pub(super) task: String,
    #[prost(string, tag = "2")]
    pub(super) owner: String,
    #[prost(string, tag = "3")]
    pub(super) model: String,
    /// JSON.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) architecture: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) content_digest: Vec<u8>,
    #[prost(enumeration = "ModelState", tag = "6")]
    pub(super) state: i32,
    #[prost(string, tag = "7")]
    pub(super) reason: String,
    #[prost(int64, tag = "8")]
    pub(super) uploaded_at_unix_ms: i64,
    #[prost(bool, tag = "9")]
    pub(super) own_is_seed: bool,
    #[prost(bytes = "vec", tag = "10")]
    pub(super) own: Vec<u8>,
    #[prost(bool, tag = "11")]
    pub(super) next_is_seed: bool,
    #[prost(bytes = "vec", tag = "12")]
    pub(super) next: Vec<u8>,
    #[prost(uint64, tag = "13")]
    pub(super) epoch: u64,
    #[prost(uint64, optional, tag = "14")]
    pub(super) owner_budget_nano_rho: Option<u64>,
    #[prost(bool, tag = "15")]
    pub(super) retrained: bool,
}

impl fmt::Debug for StoredModel {
    /// Names only: the components are secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StoredModel").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Drop for StoredModel {
    fn drop(&mut self) {
        self.own.zeroize();
        self.next.zeroize();
    }
}

pub(super) fn stored_bytes(component: &Component) -> Vec<u8> {
    match component {
        Component::Seed(seed) => seed.to_vec(),
        Component::Data(bytes) => bytes.clone(),
    }
}

fn from_stored(is_seed: bool, bytes: &[u8]) -> Result<Component, String> {
    if is_seed {
        let seed = bytes.try_into().map_err(|_| "a seed has the wrong length".to_owned())?;
        Ok(Component::Seed(seed))
    } else {
        Ok(Component::Data(bytes.to_vec()))
    }
}

/// Reads a stored model and, if it is ready, prepares it for evaluation. One of an epoch that does not
/// vote is retired; on the disk it stays as it was.
pub(super) fn load(stored: &StoredModel, epochs: &Epochs) -> Result<Entry, String> {
    let architecture = Architecture::from_json(&stored.architecture).map_err(|error| error.to_string())?;
    let key =
        ModelKey { task: stored.task.clone(), owner: stored.owner.clone(), model: stored.model.clone() };
    let content_digest: [u8; 32] = stored
        .content_digest
        .as_slice()
        .try_into()
        .map_err(|_| "the content digest has the wrong length".to_owned())?;
    let own = from_stored(stored.own_is_seed, &stored.own)?;
    let next = from_stored(stored.next_is_seed, &stored.next)?;
    let mut context = blake3::Hasher::new_derive_key("concilium v1 model component");
    context.update(key.to_string().as_bytes()).update(&content_digest);
    let context = *context.finalize().as_bytes();
    let (state, reason) = match epochs.retirement(&key.task, stored.epoch) {
        Some(reason) => (ModelState::Retired, reason),
        None => (stored.state(), stored.reason.clone()),
    };
    let prepared = if state == ModelState::Ready {
        let count = architecture.parameter_count();
        let expand =
            |component: &Component| component.expand::<Z64>(count).map_err(|error| error.to_string());
        let (mut own, mut next) = (expand(&own)?, expand(&next)?);
        let model = SharedModel::new(architecture.clone(), &own, &next).map_err(|error| error.to_string());
        own.zeroize();
        next.zeroize();
        Some(Arc::new(model?))
    } else {
        None
    };
    Ok(Entry {
        key,
        architecture,
        content_digest,
        state,
        reason,
        terms: Terms {
            epoch: stored.epoch,
            budget: stored.owner_budget_nano_rho.map(concilium_privacy::NanoRho::new),
            retrained: stored.retrained,
        },
        uploaded_at_unix_ms: stored.uploaded_at_unix_ms,
        digests: [own.digest(&context), next.digest(&context)],
        prepared,
    })
}
