//! From the sums over owners to what leaves a server: noise, and what is computed after it.
//!
//! Everything here takes sums without noise and gives either something noised or something that can
//! only be noised. A server charges between the steps of [`ThresholdTest`]; who audits the releases
//! runs the same steps.

use concilium_mpc::consensus::{Counts, Decisions};
use concilium_mpc::release::{Aggregate, Noised, ReleasedComponents};
use concilium_mpc::{Channel, MpcError, Party, PartyIndex, Stage};
use concilium_ring::Z64;

/// Comparison window for noisy counts: differences of two stay below 2^31 unless noise exceeds a
/// thousand times the largest sigma that policy allows.
const COUNT_WINDOW: u32 = 32;

/// Deals what is computed after the votes.
const DEALER: PartyIndex = PartyIndex::ALL[0];

/// Adds this server's `noise` to the sums and releases them: [`open_sums`] puts them together.
///
/// `noise` has one value for each sum, row-major, in units of the sums.
///
/// [`open_sums`]: concilium_mpc::opening::open_sums
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If there is not one noise value for each sum.
pub fn noised_sums<C: Channel>(
    party: &mut Party<C>,
    sums: Aggregate<Z64>,
    noise: &[i64],
) -> Result<ReleasedComponents, MpcError> {
    party.enter(Stage::Noise);
    Ok(sums.inject(party, noise)?.components())
}

/// Adds this server's `noise` to the counts and releases the class with the largest noised count of
/// every row: [`open_labels`] puts them together.
///
/// [`open_labels`]: concilium_mpc::opening::open_labels
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If there is not one noise value for each count.
pub fn noised_labels<C: Channel>(
    party: &mut Party<C>,
    counts: Aggregate<Z64>,
    noise: &[i64],
) -> Result<ReleasedComponents, MpcError> {
    party.enter(Stage::Noise);
    let noised = counts.inject(party, noise)?;
    party.enter(Stage::Label);
    Ok(noised.argmax(party, DEALER, COUNT_WINDOW)?.components())
}

/// Whether the largest count of every row reaches a threshold: computed, noised and not opened.
pub struct ThresholdTest {
    counts: Counts<Z64>,
    decisions: Noised<Decisions>,
}

impl ThresholdTest {
    /// Compares every row's largest count, with this server's `noise` of one value a row, with
    /// `threshold` votes.
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    ///
    /// # Panics
    /// If there is not one noise value for each row.
    pub fn compute<C: Channel>(
        party: &mut Party<C>,
        counts: Aggregate<Z64>,
        noise: &[i64],
        threshold: u32,
    ) -> Result<Self, MpcError> {
        party.enter(Stage::Threshold);
        let counts = counts.reshare(party)?;
        let noised = counts.maximum(party, DEALER)?.inject(party, noise)?;
        let decisions = noised.at_least(party, DEALER, threshold, COUNT_WINDOW)?;
        Ok(ThresholdTest { counts, decisions })
    }

    /// Opens to the three servers which rows reach the threshold. To be called only when every server
    /// has made the charge for it durable: there is no way back.
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost, has the wrong length, or the servers hold different bits.
    pub fn open<C: Channel>(self, party: &mut Party<C>) -> Result<Passed, MpcError> {
        party.enter(Stage::Threshold);
        let consensus = self.decisions.open_among_servers(party)?;
        Ok(Passed { counts: self.counts, consensus })
    }
}

/// The counts of all rows, and which rows get an answer.
pub struct Passed {
    counts: Counts<Z64>,
    consensus: Vec<bool>,
}

impl Passed {
    /// For each row whether it reached the threshold.
    pub fn consensus(&self) -> &[bool] {
        &self.consensus
    }

    /// Rows that reached it, for which noise is due.
    pub fn rows(&self) -> usize {
        self.consensus.iter().filter(|&&passed| passed).count()
    }

    /// Adds fresh `noise` to the counts of the rows that reached the threshold, and releases the class
    /// with the largest noised count for them and "no consensus" for the others:
    /// [`open_confident_labels`] puts them together.
    ///
    /// [`open_confident_labels`]: concilium_mpc::opening::open_confident_labels
    ///
    /// # Errors
    /// [`MpcError`] when a message is lost or has the wrong length.
    ///
    /// # Panics
    /// If there is not one noise value for each count of the rows that reached the threshold.
    pub fn answer<C: Channel>(
        self,
        party: &mut Party<C>,
        noise: &[i64],
    ) -> Result<ReleasedComponents, MpcError> {
        let Passed { counts, consensus } = self;
        let passed: Vec<usize> = (0..consensus.len()).filter(|&row| consensus[row]).collect();
        let labels = if passed.is_empty() {
            None
        } else {
            party.enter(Stage::Noise);
            let noised = counts.into_rows(&passed).inject(party, noise)?;
            party.enter(Stage::Label);
            Some(noised.argmax(party, DEALER, COUNT_WINDOW)?)
        };
        Ok(Noised::spread(labels, party.index(), &consensus).components())
    }
}
