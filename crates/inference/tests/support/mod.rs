//! What the tests of evaluation share: small random numbers, and models as three servers hold them.

#![allow(unreachable_pub, reason = "every test program compiles its own copy")]

use std::sync::Arc;

use concilium_inference::{Ensemble, SharedModel, flatten};
use concilium_mpc::local::share;
use concilium_network::FixedNetwork;
use concilium_ring::Z64;
use ndarray::Array1;

pub const FRACTIONAL_BITS: u32 = 12;

/// SplitMix64, to choose test networks.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn uniform(&mut self, magnitude: f64) -> f64 {
        (self.word() as f64 / u64::MAX as f64 * 2.0 - 1.0) * magnitude
    }
}

/// The three servers' ensembles of the given networks.
pub fn ensembles(seed: u64, networks: &[FixedNetwork]) -> [Ensemble; 3] {
    let shared: Vec<[Arc<SharedModel>; 3]> = networks
        .iter()
        .enumerate()
        .map(|(owner, network)| {
            let elements = Array1::from_vec(flatten(network)).insert_axis(ndarray::Axis(0));
            let parts = share(seed.wrapping_add(owner as u64), &elements);
            parts.map(|part| {
                let component = |view: ndarray::ArrayView2<'_, Z64>| view.iter().copied().collect::<Vec<_>>();
                let (own, next) = (component(part.own()), component(part.next()));
                Arc::new(SharedModel::new(network.architecture(), &own, &next).expect("the share is sound"))
            })
        })
        .collect();
    [0, 1, 2].map(|server| {
        let models: Vec<_> = shared.iter().map(|parts| parts[server].clone()).collect();
        let architecture = models[0].architecture().clone();
        Ensemble::new(models, architecture.input_features, architecture.classes, FRACTIONAL_BITS)
            .expect("all models fit the task")
    })
}
