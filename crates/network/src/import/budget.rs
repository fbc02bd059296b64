//! Limits on what one import may reserve and compute.

use super::{ImportError, MAXIMUM_ELEMENTS, MAXIMUM_OPERATIONS, error::quoted};

/// Counts elements reserved and multiplications done. Nothing is given back, so that many short-lived
/// arrays are limited as well as few large ones.
#[derive(Default)]
pub(super) struct Budget {
    elements: usize,
    operations: u64,
}

impl Budget {
    /// Counts `elements` that are about to be reserved for the node or tensor `name`.
    pub(super) fn charge(&mut self, elements: usize, name: &str) -> Result<(), ImportError> {
        self.elements = self.elements.saturating_add(elements);
        if self.elements > MAXIMUM_ELEMENTS {
            return Err(ImportError::TooLarge { node: quoted(name) });
        }
        Ok(())
    }

    /// Counts `rows x inner` times `inner x columns` and the elements of the product.
    pub(super) fn charge_product(
        &mut self,
        rows: usize,
        inner: usize,
        columns: usize,
        name: &str,
    ) -> Result<(), ImportError> {
        self.charge(rows.saturating_mul(columns), name)?;
        let operations = (rows as u64).saturating_mul(inner as u64).saturating_mul(columns as u64);
        self.operations = self.operations.saturating_add(operations);
        if self.operations > MAXIMUM_OPERATIONS {
            return Err(ImportError::TooMuchWork { node: quoted(name) });
        }
        Ok(())
    }
}
