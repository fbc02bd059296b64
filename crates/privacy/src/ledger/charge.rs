//! The price of a request, and what became of it.

use super::{
    ContentDigest, Event, LedgerError, RequestKey, Reservation, ResultBytes, Total, event::Committed,
    rows::Writer,
};
use crate::{
    parameter::NanoRho,
    policy::{MAX_NAME_BYTES, RowPrices, TaskPolicy},
};

/// An owner whose models vote on a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Participant {
    /// Identity of the owner, from its certificate.
    pub owner: String,
    /// Most that may ever be spent on the owner's models in this task epoch; `None` for an owner that
    /// sets no cap of its own.
    pub cap: Option<NanoRho>,
}

/// Price of one request, with everything that the log keeps about it.
#[derive(Debug, Clone)]
pub struct Charge {
    key: RequestKey,
    digest: ContentDigest,
    rows: u32,
    prices: RowPrices,
    cost: NanoRho,
    policy: TaskPolicy,
    policy_digest: [u8; 32],
    bins: u32,
    participants: Vec<Participant>,
    owners_digest: [u8; 32],
}

impl Charge {
    /// The price of `rows` released rows under `policy`, on which the models of `participants` vote:
    /// for every row the threshold test, if there is one, and the answer.
    ///
    /// # Errors
    /// [`LedgerError::InvalidCharge`] when the request names another task or epoch than the policy,
    /// has no rows, or a name that is empty or too long; when the participants are not sorted by
    /// name or one occurs twice; also when the price exceeds 64 bits or the policy's mechanism is not
    /// allowed.
    pub fn new(
        key: RequestKey,
        digest: ContentDigest,
        rows: u32,
        policy: &TaskPolicy,
        participants: &[Participant],
    ) -> Result<Self, LedgerError> {
        let invalid = |reason: String| LedgerError::InvalidCharge { key: key.clone(), reason };
        if key.task != policy.task || key.epoch != policy.epoch {
            return Err(invalid(format!(
                "the policy is that of task {} epoch {}",
                policy.task, policy.epoch
            )));
        }
        let owners = participants.iter().map(|participant| ("owner", &participant.owner));
        for (what, name) in [("task", &key.task), ("client", &key.client)].into_iter().chain(owners) {
            if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
                return Err(invalid(format!(
                    "the {what} name has {} bytes; 1 to {MAX_NAME_BYTES} are allowed",
                    name.len()
                )));
            }
        }
        if !participants.is_sorted_by(|one, next| one.owner < next.owner) {
            return Err(invalid("its participants are not sorted, or one occurs twice".to_owned()));
        }
        if rows == 0 {
            return Err(invalid("it has no rows; ask for at least one".to_owned()));
        }
        let prices = policy.row_prices().map_err(|error| invalid(error.to_string()))?;
        let cost = prices
            .total()
            .checked_mul(u64::from(rows))
            .ok_or_else(|| invalid("its price exceeds 64 bits; ask for fewer rows".to_owned()))?;
        let bins =
            u32::try_from(policy.bins).expect("a policy whose row has a price has at most MAX_BINS bins");
        let owners_digest = digest_of_owners(participants.iter().map(|participant| &*participant.owner));
        Ok(Self {
            digest,
            rows,
            prices,
            cost,
            policy: policy.clone(),
            policy_digest: policy.digest(),
            bins,
            participants: participants.to_vec(),
            owners_digest,
            key,
        })
    }

    /// The request that is charged.
    pub fn key(&self) -> &RequestKey {
        &self.key
    }

    /// What is set aside for the request: the most that it can cost.
    pub fn cost(&self) -> NanoRho {
        self.cost
    }

    /// Prices of one row.
    pub fn prices(&self) -> RowPrices {
        self.prices
    }

    /// Rows that the price pays for.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Owners whose models vote, sorted by name.
    pub fn participants(&self) -> &[Participant] {
        &self.participants
    }

    /// What the request asks for.
    pub(super) fn digest(&self) -> &ContentDigest {
        &self.digest
    }

    /// The same charge with another digest.
    pub(super) fn with_digest(&self, digest: ContentDigest) -> Self {
        Self { digest, ..self.clone() }
    }

    /// The policy that sets its price and caps.
    pub(super) fn policy(&self) -> &TaskPolicy {
        &self.policy
    }

    pub(super) fn owners_digest(&self) -> &[u8; 32] {
        &self.owners_digest
    }

    /// What the log says about a part of the charge.
    pub(super) fn committed(&self, rho: NanoRho, voided: NanoRho, last: bool) -> Event {
        let counts = u32::from(last);
        Event::Committed(Committed {
            key: self.key.clone(),
            digest: self.digest,
            policy_digest: self.policy_digest,
            release: self.policy.release,
            mechanism: self.policy.mechanism,
            threshold: self.policy.threshold,
            unit: self.policy.unit,
            bins: self.bins,
            rows: self.rows,
            owners: u32::try_from(self.participants.len()).unwrap_or(u32::MAX),
            owners_digest: self.owners_digest,
            charged: Total { rho, requests: counts.into(), rows: (counts * self.rows).into() },
            voided,
            last,
        })
    }
}

/// Hash of a sorted list of owners.
pub(super) fn digest_of_owners<'a>(owners: impl Iterator<Item = &'a str>) -> [u8; 32] {
    let names = owners.fold(Writer::default(), Writer::text);
    blake3::derive_key("concilium 2026-11 ledger owners v1", &names.0)
}

/// How a reserved request ends.
pub struct Settlement {
    /// What was set aside for it.
    pub reservation: Reservation,
    /// What is charged now, beside the parts that were charged before: at most what is still set
    /// aside. The rest is voided, and the log says so.
    pub charge: NanoRho,
    /// This server's share of the result.
    pub result: ResultBytes,
}

impl Settlement {
    /// A settlement that charges all that was set aside.
    pub fn in_full(reservation: Reservation, result: ResultBytes) -> Self {
        Self { charge: reservation.left(), reservation, result }
    }
}
