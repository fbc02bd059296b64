//! Where the secrets of a server come from.

use concilium_privacy::{Mechanism, MechanismError, NoiseSource, OpenDpNoise};
use concilium_rpc::lane::{FillRandom, system_randomness};

/// Makes a source of this server's noise shares for a mechanism.
pub type MakeNoise = Box<dyn Fn(Mechanism) -> Result<Box<dyn NoiseSource>, MechanismError> + Send + Sync>;

/// The sources from which a server draws what nobody may know. Whoever runs the library as a program
/// takes [`Randomness::system`]; no file, variable or argument of a program can replace it.
pub struct Randomness {
    /// Noise.
    pub noise: MakeNoise,
    /// Contributions to the keys that are shared with the other servers, from which all masks of the
    /// protocols are made.
    pub link_keys: FillRandom,
}

impl Randomness {
    /// Noise by [`OpenDpNoise`], keys from the operating system.
    pub fn system() -> Self {
        Randomness {
            noise: Box::new(|mechanism| Ok(Box::new(OpenDpNoise::new(mechanism)?))),
            link_keys: system_randomness(),
        }
    }
}
