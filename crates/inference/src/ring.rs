//! The rings in which networks are evaluated, and models and rows whose ring is known at run time only.

use std::sync::Arc;

use concilium_mpc::input::{Component, InputError};
use concilium_mpc::release::Aggregate;
use concilium_mpc::{BitShares, Channel, MpcError, Party, PartyIndex, Shares, selection};
use concilium_network::program::evaluate::Linear;
use concilium_network::{Architecture, Precision, Ring};
use concilium_ring::{Element, Z32, Z64};
use thiserror::Error;

use crate::ensemble::Ensemble;
use crate::evaluate::histogram;
use crate::model::{ModelError, SharedModel, row};

/// The elements of a [`Ring`].
pub trait RingElement: Element + Linear {
    /// The ring.
    const RING: Ring;

    /// The model, if it is in this ring.
    fn model(prepared: &PreparedModel) -> Option<&Arc<SharedModel<Self>>>;

    /// A model in this ring as one of any.
    fn prepared(model: SharedModel<Self>) -> PreparedModel;

    /// What `x` is where `negative`, the sign of each number or another of a window of at most the
    /// [known bits](Precision::known_bits), is not set, and zero elsewhere, right modulo the whole ring.
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    fn select_unless<C: Channel>(
        party: &mut Party<C>,
        dealer: PartyIndex,
        negative: &BitShares,
        x: &Shares<Self>,
        fractional_bits: u32,
    ) -> Result<Shares<Self>, MpcError>;
}

impl RingElement for Z64 {
    const RING: Ring = Ring::Bits64;

    fn model(prepared: &PreparedModel) -> Option<&Arc<SharedModel<Self>>> {
        match prepared {
            PreparedModel::Bits64(model) => Some(model),
            PreparedModel::Bits32(_) => None,
        }
    }

    fn prepared(model: SharedModel<Self>) -> PreparedModel {
        PreparedModel::Bits64(Arc::new(model))
    }

    fn select_unless<C: Channel>(
        party: &mut Party<C>,
        dealer: PartyIndex,
        negative: &BitShares,
        x: &Shares<Self>,
        _: u32,
    ) -> Result<Shares<Self>, MpcError> {
        selection::select_unless(party, dealer, negative, x)
    }
}

impl RingElement for Z32 {
    const RING: Ring = Ring::Bits32;

    fn model(prepared: &PreparedModel) -> Option<&Arc<SharedModel<Self>>> {
        match prepared {
            PreparedModel::Bits64(_) => None,
            PreparedModel::Bits32(model) => Some(model),
        }
    }

    fn prepared(model: SharedModel<Self>) -> PreparedModel {
        PreparedModel::Bits32(Arc::new(model))
    }

    fn select_unless<C: Channel>(
        party: &mut Party<C>,
        dealer: PartyIndex,
        negative: &BitShares,
        x: &Shares<Self>,
        fractional_bits: u32,
    ) -> Result<Shares<Self>, MpcError> {
        let known_bits = Precision { ring: Self::RING, fractional_bits }.known_bits();
        selection::widen_unless(party, dealer, negative, x, known_bits)
    }
}

/// Why a model that came from outside can't be prepared.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrepareError {
    /// A component has the wrong length.
    #[error(transparent)]
    Component(#[from] InputError),
    /// The components do not make a model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// One server's share of a network, prepared in the ring that its architecture names.
#[derive(Clone)]
pub enum PreparedModel {
    /// In the ring of 64 bits.
    Bits64(Arc<SharedModel<Z64>>),
    /// In the ring of 32 bits.
    Bits32(Arc<SharedModel<Z32>>),
}

impl PreparedModel {
    /// Expands server i's components i (`own`) and i + 1 (`next`), in the order of [`flatten`](crate::flatten),
    /// and prepares them.
    ///
    /// # Errors
    /// [`PrepareError`] when a component has the wrong length or the architecture is not sound.
    pub fn new(architecture: Architecture, own: &Component, next: &Component) -> Result<Self, PrepareError> {
        match architecture.ring {
            Ring::Bits64 => prepare::<Z64>(architecture, own, next),
            Ring::Bits32 => prepare::<Z32>(architecture, own, next),
        }
    }

    /// The public part.
    pub fn architecture(&self) -> &Architecture {
        match self {
            PreparedModel::Bits64(model) => model.architecture(),
            PreparedModel::Bits32(model) => model.architecture(),
        }
    }

    /// Bytes of memory that the weights take on this server.
    pub fn memory_bytes(&self) -> usize {
        match self {
            PreparedModel::Bits64(model) => model.memory_bytes(),
            PreparedModel::Bits32(model) => model.memory_bytes(),
        }
    }
}

fn prepare<E: RingElement>(
    architecture: Architecture,
    own: &Component,
    next: &Component,
) -> Result<PreparedModel, PrepareError> {
    let count = architecture.parameter_count();
    // As shares they are erased.
    let expanded = row(own.expand::<E>(count)?, next.expand::<E>(count)?);
    let (own, next) = (expanded.own(), expanded.next());
    let slice = "one row is adjacent numbers";
    let model = SharedModel::new(architecture, own.as_slice().expect(slice), next.as_slice().expect(slice))?;
    Ok(E::prepared(model))
}

/// Models and the rows that they are asked about, in the ring of their task.
pub enum Question {
    /// In the ring of 64 bits.
    Bits64(Ensemble<Z64>, Shares<Z64>),
    /// In the ring of 32 bits.
    Bits32(Ensemble<Z32>, Shares<Z32>),
}

impl From<(Ensemble<Z64>, Shares<Z64>)> for Question {
    fn from((models, rows): (Ensemble<Z64>, Shares<Z64>)) -> Self {
        Question::Bits64(models, rows)
    }
}

impl From<(Ensemble<Z32>, Shares<Z32>)> for Question {
    fn from((models, rows): (Ensemble<Z32>, Shares<Z32>)) -> Self {
        Question::Bits32(models, rows)
    }
}

impl Question {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Question::Bits64(_, rows) => rows.dim().0,
            Question::Bits32(_, rows) => rows.dim().0,
        }
    }

    /// As [`histogram`].
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    pub fn histogram<C: Channel>(&self, party: &mut Party<C>) -> Result<Aggregate<Z64>, MpcError> {
        match self {
            Question::Bits64(models, rows) => histogram(party, models, rows),
            Question::Bits32(models, rows) => histogram(party, models, rows),
        }
    }

    /// What is in the ring of 64 bits, in which alone [`probabilities`](crate::probabilities) are computed.
    pub fn wide(&self) -> Option<(&Ensemble<Z64>, &Shares<Z64>)> {
        match self {
            Question::Bits64(models, rows) => Some((models, rows)),
            Question::Bits32(..) => None,
        }
    }
}
