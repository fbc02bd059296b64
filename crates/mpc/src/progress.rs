//! How far a session has come: public, equal on all three servers, and free of any value.

use std::fmt;

/// The part of an evaluation that a session is in. Programs over [`Party`](crate::Party) say so by
/// [`enter`](crate::Party::enter); the protocols below do not need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Nothing has been entered yet.
    Opening,
    /// Product, bias and rescaling of an affine layer, counted from 1.
    Linear(u32),
    /// Signs of a layer's results, counted from 1.
    Comparison(u32),
    /// Results of a layer kept or set to zero, counted from 1.
    Selection(u32),
    /// Each model's vote, and their sum.
    Votes,
    /// The largest count of every row, and whether it reaches the threshold.
    Threshold,
    /// Each model's probabilities, and their sum.
    Probabilities,
    /// Injection of the noise shares.
    Noise,
    /// The class with the largest noised count.
    Label,
}

impl Stage {
    /// The stage's name without its layer.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Opening => "opening",
            Stage::Linear(_) => "linear",
            Stage::Comparison(_) => "comparison",
            Stage::Selection(_) => "selection",
            Stage::Votes => "votes",
            Stage::Threshold => "threshold",
            Stage::Probabilities => "probabilities",
            Stage::Noise => "noise",
            Stage::Label => "label",
        }
    }

    /// The layer that the stage belongs to, counted from 1.
    pub const fn layer(self) -> Option<u32> {
        match self {
            Stage::Linear(layer) | Stage::Comparison(layer) | Stage::Selection(layer) => Some(layer),
            _ => None,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer() {
            Some(layer) => write!(formatter, "{} of layer {layer}", self.name()),
            None => formatter.write_str(self.name()),
        }
    }
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The part that it is in.
    pub stage: Stage,
    /// Rounds begun so far.
    pub round: u32,
}
