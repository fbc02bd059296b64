//! What names a version of a model, and what a server knows of it.

use std::fmt;

use concilium_inference::PreparedModel;
use concilium_mpc::PartyIndex;
use concilium_mpc::input::Component;
use concilium_network::Architecture;
use concilium_privacy::NanoRho;
use concilium_rpc::v1::{self, ModelState, SelfTestFigures};

/// Names a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelKey {
    /// Name of the task.
    pub task: String,
    /// Name of the owner.
    pub owner: String,
    /// Name of the model.
    pub model: String,
}

impl fmt::Display for ModelKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.task, self.owner, self.model)
    }
}

/// On which terms an owner shares a model. Public, and equal on the three servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The epoch of the task for which the model was shared.
    pub epoch: u64,
    /// Most that the owner lets be released about all of its models of this task epoch together; `None`
    /// for no bound of its own. The smallest of an owner's models holds.
    pub budget: Option<NanoRho>,
    /// The owner's statement that the model was trained anew, on records that count in no earlier epoch.
    pub retrained: bool,
}

/// Names a version of a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionKey {
    /// The model.
    pub model: ModelKey,
    /// The version's number, from 1.
    pub version: u64,
}

impl fmt::Display for VersionKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} version {}", self.model, self.version)
    }
}

/// What an owner uploads.
pub struct Upload {
    /// Which model.
    pub key: ModelKey,
    /// The number of the version; `None` for the next one.
    pub version: Option<u64>,
    /// Its public part, checked against the task.
    pub architecture: Architecture,
    /// Names this content of the model.
    pub content_digest: [u8; 32],
    /// On which terms.
    pub terms: Terms,
    /// Component i of server i.
    pub own: Component,
    /// Component i + 1 of server i.
    pub next: Component,
}

/// A stored version of a model without its components.
#[derive(Clone)]
pub struct Entry {
    /// Which model.
    pub key: ModelKey,
    /// Which version of it.
    pub version: u64,
    /// Weights and biases.
    pub parameters: u64,
    /// Names this content of the model.
    pub content_digest: [u8; 32],
    /// Of the version's number, architecture and terms: equal on the three servers.
    pub public_digest: [u8; 32],
    /// Its state on this server.
    pub state: ModelState,
    /// Why it is rejected or retired, or empty.
    pub reason: String,
    /// On which terms it was shared.
    pub terms: Terms,
    /// What its self-test took, when it has passed.
    pub self_test: Option<SelfTestFigures>,
    /// Whether its shares are erased.
    pub erased: bool,
    pub(super) uploaded_at_unix_ms: i64,
    /// Digests of components i and i + 1, for comparison with the neighbours.
    pub(super) digests: [[u8; 32]; 2],
    /// Prepared for products when the model is ready.
    pub(super) prepared: Option<PreparedModel>,
}

impl Entry {
    /// The version's name.
    pub fn version_key(&self) -> VersionKey {
        VersionKey { model: self.key.clone(), version: self.version }
    }

    /// The version as it is listed.
    pub fn to_wire(&self) -> v1::Model {
        v1::Model {
            task: self.key.task.clone(),
            model: self.key.model.clone(),
            owner: self.key.owner.clone(),
            state: self.state.into(),
            reason: self.reason.clone(),
            parameters: self.parameters,
            uploaded_at_unix_ms: self.uploaded_at_unix_ms,
            content_digest: self.content_digest.to_vec().into(),
            epoch: self.terms.epoch,
            owner_budget_nano_rho: self.terms.budget.map(NanoRho::units),
            retrained_on_new_data: self.terms.retrained,
            version: self.version,
            self_test: self.self_test,
            erased: self.erased,
        }
    }

    /// The digest of this server's component `component`, if it holds that one.
    pub fn component_digest(&self, here: PartyIndex, component: u32) -> Option<[u8; 32]> {
        if component as usize == here.number() {
            Some(self.digests[0])
        } else if component as usize == here.next().number() {
            Some(self.digests[1])
        } else {
            None
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == ModelState::Ready
    }
}
