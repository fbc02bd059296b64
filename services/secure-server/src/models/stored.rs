//! A model as it lies on the disk, and how it is read from there.

use std::fmt;

use concilium_inference::PreparedModel;
use concilium_mpc::input::Component;
use concilium_network::Architecture;
use concilium_rpc::v1::{ModelState, SelfTestFigures};
use prost::Message;
use zeroize::Zeroize;

use super::{Entry, ModelKey, Terms, VersionKey};
use crate::epochs::Epochs;

/// A version of a model as it lies on the disk.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct StoredModel {
    #[prost(string, tag = "1")]
    pub(super) task: String,
    #[prost(string, tag = "2")]
    pub(super) owner: String,
    #[prost(string, tag = "3")]
    pub(super) model: String,
    /// JSON; empty when the shares are erased.
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
    #[prost(uint64, tag = "16")]
    pub(super) version: u64,
    #[prost(message, optional, tag = "17")]
    pub(super) self_test: Option<SelfTestFigures>,
    #[prost(bool, tag = "18")]
    pub(super) erased: bool,
    #[prost(uint64, tag = "19")]
    pub(super) parameters: u64,
}

impl StoredModel {
    pub(super) fn key(&self) -> VersionKey {
        let (task, owner, model) = (self.task.clone(), self.owner.clone(), self.model.clone());
        VersionKey { model: ModelKey { task, owner, model }, version: self.version }
    }

    /// Leaves nothing but what the version was called and why it is gone.
    pub(super) fn erase(&mut self, reason: &str) {
        self.own.zeroize();
        self.next.zeroize();
        self.architecture.clear();
        self.erased = true;
        self.state = ModelState::Retired.into();
        reason.clone_into(&mut self.reason);
    }

    /// Expands this server's two components for evaluation.
    pub(super) fn prepare(&self) -> Result<PreparedModel, String> {
        let architecture = Architecture::from_json(&self.architecture).map_err(|error| error.to_string())?;
        let own = from_stored(self.own_is_seed, &self.own)?;
        let next = from_stored(self.next_is_seed, &self.next)?;
        PreparedModel::new(architecture, &own, &next).map_err(|error| error.to_string())
    }

    /// A digest of what the three servers must know alike of the version and can't compare otherwise.
    fn public_digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("concilium v1 model version");
        let name = self.key().model.to_string();
        for part in [name.as_bytes(), &self.architecture, &self.content_digest] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let budget = self.owner_budget_nano_rho;
        for number in [self.version, self.epoch, budget.unwrap_or_default()] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&[u8::from(budget.is_some()), u8::from(self.retrained)]);
        *hasher.finalize().as_bytes()
    }
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

/// Reads a stored version and, if it is ready, prepares it for evaluation. One of an epoch that does not
/// vote is retired; on the disk it stays as it was.
pub(super) fn load(stored: &StoredModel, epochs: &Epochs) -> Result<Entry, String> {
    let VersionKey { model: key, version } = stored.key();
    let content_digest: [u8; 32] = stored
        .content_digest
        .as_slice()
        .try_into()
        .map_err(|_| "the content digest has the wrong length".to_owned())?;
    let mut context = blake3::Hasher::new_derive_key("concilium v1 model component");
    context.update(key.to_string().as_bytes()).update(&content_digest);
    let context = *context.finalize().as_bytes();
    let digest = |is_seed: bool, bytes: &[u8]| from_stored(is_seed, bytes).map(|part| part.digest(&context));
    let digests = match stored.erased {
        true => [[0; 32]; 2],
        false => [digest(stored.own_is_seed, &stored.own)?, digest(stored.next_is_seed, &stored.next)?],
    };
    let (state, reason) = match epochs.retirement(&key.task, stored.epoch) {
        Some(reason) if !stored.erased => (ModelState::Retired, reason),
        _ => (stored.state(), stored.reason.clone()),
    };
    let prepared = if state == ModelState::Ready { Some(stored.prepare()?) } else { None };
    Ok(Entry {
        key,
        version,
        parameters: stored.parameters,
        content_digest,
        public_digest: stored.public_digest(),
        state,
        reason,
        terms: Terms {
            epoch: stored.epoch,
            budget: stored.owner_budget_nano_rho.map(concilium_privacy::NanoRho::new),
            retrained: stored.retrained,
        },
        self_test: stored.self_test,
        erased: stored.erased,
        uploaded_at_unix_ms: stored.uploaded_at_unix_ms,
        digests,
        prepared,
    })
}
