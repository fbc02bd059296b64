//! The caps on spending, and what a request is told that one of them refuses.

use std::fmt;

use crate::parameter::NanoRho;

/// Scope of a cap on spending.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cap {
    /// Everything that is ever released about the models of one task epoch. This one is the privacy
    /// guarantee, because clients may pool their answers.
    TaskEpoch,
    /// One client's part of a task epoch. It shares the budget out fairly and guarantees nothing
    /// to owners.
    Client,
    /// One client's spending on all epochs of all tasks together. Fairness, too.
    ClientAllTasks,
    /// What a task epoch may spend within a time. It paces spending and never gives any back.
    Window,
    /// What may be spent on the models of one owner, by that owner's own word.
    Owner {
        /// The owner.
        owner: String,
    },
}

impl fmt::Display for Cap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::TaskEpoch => "the cap of the task epoch",
            Self::Client => "the cap per client",
            Self::ClientAllTasks => "the cap per client over all tasks",
            Self::Window => "the cap of the spending window",
            Self::Owner { owner } => return write!(formatter, "the cap of owner {owner}"),
        };
        formatter.write_str(text)
    }
}

/// A request that the budget does not pay for. It depends on public numbers only, never on models,
/// inputs or answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// Of the caps that refuse, the one that leaves the least; the spending window only if no other
    /// refuses, because it alone gives way with time.
    pub cap: Cap,
    /// Task asked for.
    pub task: String,
    /// Epoch of its models.
    pub epoch: u64,
    /// Client that asked.
    pub client: String,
    /// Price of the request.
    pub needed: NanoRho,
    /// What the cap leaves, with running requests counted as spent.
    pub left: NanoRho,
    /// When the request fits at the earliest, in milliseconds since 1970-01-01 UTC, if nothing else is
    /// charged meanwhile. Only a spending window says so, and only to a request that fits into it.
    pub retry_at_ms: Option<u64>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cap, task, epoch, client, needed, left, retry_at_ms } = self;
        write!(
            formatter,
            "task {task} epoch {epoch}: {cap} leaves rho {left} to client {client}, and the request \
             needs rho {needed}; "
        )?;
        match cap {
            Cap::Window if retry_at_ms.is_some() => {
                formatter.write_str("ask for fewer rows, or ask again when enough has left the window")
            }
            Cap::Window => formatter.write_str("it is more than the whole window; ask for fewer rows"),
            _ if *left > NanoRho::ZERO => {
                formatter.write_str("ask for fewer rows, or ask again when running requests end")
            }
            Cap::TaskEpoch => {
                formatter.write_str("wait for the next epoch, which starts when owners share new models")
            }
            Cap::Client | Cap::ClientAllTasks => {
                formatter.write_str("ask the operators for a greater cap per client")
            }
            Cap::Owner { .. } => formatter.write_str("ask again; the owner's models vote no more"),
        }
    }
}

impl std::error::Error for Refusal {}
