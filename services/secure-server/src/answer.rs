//! One server's part of an answer: what the ledger keeps and what the client gets.

use concilium_mpc::release::ReleasedComponents;
use concilium_privacy::ResultBytes;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1;
use prost::Message;
use zeroize::Zeroize;

use crate::models::internal;

/// Names one evaluation of a batch: 16 random bytes chosen by the leader.
pub(crate) type RunId = [u8; 16];

/// One server's part of an answer.
pub struct Answer {
    /// The run that gave it. Parts of different runs do not fit together.
    pub run: RunId,
    /// What was computed and what it cost. What the caller has spent and has left is filled in when it is
    /// signed and sent.
    pub receipt: v1::Receipt,
    /// The two components of the noised result.
    pub components: ReleasedComponents,
}

/// An [`Answer`] as the ledger keeps it.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct StoredAnswer {
    #[prost(message, required, tag = "1")]
    receipt: v1::Receipt,
    #[prost(bytes = "vec", tag = "2")]
    own: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    next: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    run: Vec<u8>,
}

impl std::fmt::Debug for StoredAnswer {
    /// The receipt only: the components are secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StoredAnswer").field("receipt", &self.receipt).finish_non_exhaustive()
    }
}

impl Answer {
    /// The bytes that the ledger keeps.
    pub fn to_stored(&self) -> ResultBytes {
        let mut stored = StoredAnswer {
            receipt: self.receipt.clone(),
            own: self.components.own.clone(),
            next: self.components.next.clone(),
            run: self.run.to_vec(),
        };
        let bytes = stored.encode_to_vec();
        stored.own.zeroize();
        stored.next.zeroize();
        ResultBytes::from(bytes)
    }

    /// The answer that the ledger kept, marked as a replay.
    ///
    /// # Errors
    /// [`RpcError::Internal`] when the bytes can't be read.
    pub fn from_stored(bytes: &ResultBytes) -> Result<Self, RpcError> {
        let stored = StoredAnswer::decode(bytes.expose()).map_err(internal)?;
        let StoredAnswer { mut receipt, own, next, run } = stored;
        receipt.replayed = true;
        let run = RunId::try_from(run).map_err(|_| internal("a kept result does not name its run"))?;
        Ok(Answer { run, receipt, components: ReleasedComponents { own, next } })
    }
}
