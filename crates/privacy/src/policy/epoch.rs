//! What an epoch that follows another one begins with.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why an epoch may begin with what it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpochBasis {
    /// All models were trained anew, on records that do not count in earlier epochs: it begins with
    /// nothing spent.
    Retrained,
    /// The same records are behind it as behind the epoch before: it begins with what that one has spent.
    CarriedOver,
}

impl fmt::Display for EpochBasis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Retrained => "retrained",
            Self::CarriedOver => "carried_over",
        })
    }
}

/// The word on which an epoch begins. The servers cannot see training data, so they keep who said what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochDeclaration {
    /// What the epoch begins with.
    pub basis: EpochBasis,
    /// The person or body that answers for it, 1 to 512 bytes.
    pub attested_by: String,
}

impl EpochDeclaration {
    /// The declaration in a sentence, for an epoch of this number.
    pub fn in_words(&self, epoch: u64) -> String {
        let Self { basis, attested_by } = self;
        match basis {
            EpochBasis::Retrained => format!(
                "Epoch {epoch} began with nothing spent: all its models are trained anew, on records that do not \
                 count in earlier epochs. {attested_by} answers for that."
            ),
            EpochBasis::CarriedOver => format!(
                "Epoch {epoch} began with what the epoch before had spent, because the same records are behind \
                 both. {attested_by} answers for that."
            ),
        }
    }
}
