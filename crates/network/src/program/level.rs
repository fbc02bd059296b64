//! Which steps wait for the same messages.
//!
//! Level 0 is what can be computed from the input without a message. Odd levels end with a rescaling,
//! even ones from 2 on with a comparison and a selection; a step without messages is on the level of
//! the last value that it takes. A step that compares and rescales is on the level of its rescaling. All steps of a level, of all owners, are one batch, so that rounds
//! depend on the deepest program alone. A rescaling and the comparison after it, levels 2t + 1 and
//! 2t + 2, are *layer* t + 1: they have the same dealer and share a round.

use super::{Messages, Operation};

/// The levels of the values of a program, built step by step.
#[derive(Clone, Debug)]
pub struct Levels(Vec<usize>);

impl Levels {
    /// The level of the input.
    #[must_use]
    pub fn new() -> Self {
        Self(vec![0])
    }

    /// The levels of all steps.
    pub fn of<'a>(steps: impl Iterator<Item = (&'a [usize], &'a Operation)>) -> Vec<usize> {
        let mut levels = Self::new();
        steps.map(|(inputs, operation)| levels.push(inputs, operation)).collect()
    }

    /// Adds a step and gives its level.
    ///
    /// # Panics
    /// If a value is not computed before it.
    pub fn push(&mut self, inputs: &[usize], operation: &Operation) -> usize {
        let before = inputs.iter().map(|&value| self.0[value]).max().unwrap_or(0);
        let level = match operation.messages() {
            Messages::None => before,
            Messages::Rescaling => before + 1 + before % 2,
            Messages::Comparison => before + 2 - before % 2,
            // It compares on the level before its own.
            Messages::ComparisonAndRescaling => before + 3 - before % 2,
        };
        self.0.push(level);
        level
    }
}

impl Default for Levels {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Function;

    #[test]
    fn rescalings_are_on_odd_levels_and_comparisons_on_even_ones() {
        let dense = || Operation::Dense { inputs: 1, outputs: 1 };
        let steps: [(&[usize], Operation); 8] = [
            (&[0], Operation::Relu),
            (&[1], Operation::Relu),
            (&[2], dense()),
            (&[3], dense()),
            (&[4], Operation::Relu),
            (&[1], dense()),
            (&[1], Operation::Function(Function::Tanh)),
            (&[4], Operation::Function(Function::Tanh)),
        ];
        let levels = Levels::of(steps.iter().map(|(inputs, operation)| (*inputs, operation)));
        assert_eq!(levels, [2, 4, 5, 7, 8, 3, 5, 9]);
    }
}
