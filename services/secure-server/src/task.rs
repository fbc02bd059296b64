//! A task as the server runs it: its configuration checked, its noise pool, and what the other
//! servers say about it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use concilium_mpc::PartyIndex;
use concilium_network::{InputDomain, Precision};
use concilium_privacy::{
    EpochBasis, EpochDeclaration, Mechanism, NanoRho, NoisePool, PrivacyUnit, Release, TaskPolicy, Threshold,
};
use concilium_rpc::status::RpcError;
use concilium_rpc::v1;

use crate::config::{ConfigError, Origin, Problem, TaskFile, TaskSection};
use crate::randomness::Randomness;

/// What the computation gives is what the noise is drawn for.
const _: () = assert!(concilium_mpc::probability::FRACTION_BITS == concilium_privacy::PROBABILITY_BITS);

/// One task, ready to serve.
pub struct Task {
    /// Release, noise and caps.
    pub policy: TaskPolicy,
    /// Shape and range of inputs.
    pub domain: InputDomain,
    /// The ring and the fractional bits of inputs and models.
    pub precision: Precision,
    /// Names of the classes, or none.
    pub class_names: Vec<String>,
    /// Most rows of one request.
    pub request_rows: u32,
    /// Noise of answers, drawn ahead, in units of the release: votes, or for probabilities 2^-16 of a vote.
    pub noise: NoisePool,
    /// Noise of threshold tests, one value a row, for a task that has a threshold.
    pub threshold_noise: Option<NoisePool>,
    /// Canonical keys and values that the three servers compare.
    pub keys: BTreeMap<String, String>,
    /// Digest of `keys`.
    pub digest: [u8; 32],
}

impl Task {
    fn new(
        path: &Path,
        name: &str,
        section: &TaskSection,
        cap_per_client_all_tasks: Option<NanoRho>,
        noise_rows: NonZeroUsize,
        randomness: &Randomness,
    ) -> Result<Self, ConfigError> {
        // Reading the file has checked all this; what fails here is a fault of that check.
        let refuse = |problem: String| {
            let key = format!("tasks.{name}");
            ConfigError::of(Problem {
                key,
                ..Problem::of_file(path.to_owned(), Origin::Default, problem, "correct the task")
            })
        };
        let domain = section.domain().map_err(|error| refuse(error.to_string()))?;
        let mechanism = section.mechanism().ok_or_else(|| refuse("has no noise".to_owned()))?;
        let policy = section.policy(name, mechanism, cap_per_client_all_tasks);
        policy.validate().map_err(|error| refuse(error.to_string()))?;
        let keys = canonical(section, &policy, &domain);
        let pool = |mechanism: Mechanism, bins: usize| {
            let source = (randomness.noise)(mechanism).map_err(|error| refuse(error.to_string()))?;
            NoisePool::new(source, bins, noise_rows).map_err(|error| refuse(error.to_string()))
        };
        let noise = pool(mechanism.on_lattice(policy.release.fraction_bits()), section.classes)?;
        let threshold_noise = policy.threshold.map(|threshold| pool(threshold.mechanism, 1)).transpose()?;
        Ok(Task {
            policy,
            domain,
            precision: section.precision(),
            class_names: section.class_names.clone(),
            request_rows: section.request_rows,
            noise,
            threshold_noise,
            digest: digest(&keys),
            keys,
        })
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.policy.task
    }

    /// What peers are told about the task.
    pub fn peer_policy(&self) -> v1::TaskPolicy {
        v1::TaskPolicy {
            name: self.name().to_owned(),
            digest: self.digest.to_vec().into(),
            keys: self.keys.clone().into_iter().collect(),
        }
    }

    /// The mechanism as it travels.
    pub fn wire_mechanism(&self) -> v1::NoiseMechanism {
        wire_mechanism(self.policy.mechanism)
    }

    /// The threshold of a confident label as it travels.
    pub fn wire_threshold(&self) -> Option<v1::ConfidenceThreshold> {
        self.policy.threshold.map(|Threshold { votes, mechanism }| v1::ConfidenceThreshold {
            votes,
            mechanism: Some(wire_mechanism(mechanism)),
        })
    }

    /// The privacy unit as it travels.
    pub fn wire_unit(&self) -> v1::PrivacyUnit {
        match self.policy.unit {
            PrivacyUnit::Record => v1::PrivacyUnit::Record,
            PrivacyUnit::Owner => v1::PrivacyUnit::Owner,
            _ => v1::PrivacyUnit::Unspecified,
        }
    }

    /// What the epoch began with, as it travels, and who answers for that.
    pub fn wire_declaration(&self) -> (v1::EpochBasis, String) {
        match &self.policy.declaration {
            None => (v1::EpochBasis::Unspecified, String::new()),
            Some(EpochDeclaration { basis, attested_by }) => {
                let basis = match basis {
                    EpochBasis::Retrained => v1::EpochBasis::Retrained,
                    EpochBasis::CarriedOver => v1::EpochBasis::CarriedOver,
                };
                (basis, attested_by.clone())
            }
        }
    }

    /// The release as it travels.
    pub fn wire_release(&self) -> v1::Release {
        match self.policy.release {
            Release::Label => v1::Release::Label,
            Release::Histogram => v1::Release::Histogram,
            Release::ConfidentLabel => v1::Release::ConfidentLabel,
            Release::MeanProbability => v1::Release::MeanProbability,
            _ => v1::Release::Unspecified,
        }
    }

    /// The most that one row costs, in nano-rho.
    pub fn row_cost_nano_rho(&self) -> u64 {
        self.policy.row_cost().map_or(u64::MAX, concilium_privacy::NanoRho::units)
    }
}

fn wire_mechanism(mechanism: Mechanism) -> v1::NoiseMechanism {
    use v1::noise_mechanism::Kind;
    let (kind, parameter) = match mechanism {
        Mechanism::DiscreteGaussian { sigma } => (Kind::DiscreteGaussian, sigma),
        Mechanism::DiscreteLaplace { scale } => (Kind::DiscreteLaplace, scale),
        _ => (Kind::Unspecified, concilium_privacy::NoiseScale::from_millionths(0)),
    };
    v1::NoiseMechanism { kind: kind.into(), parameter_millionths: parameter.millionths() }
}

/// Everything on which the servers must agree, one text for each key.
fn canonical(section: &TaskSection, policy: &TaskPolicy, domain: &InputDomain) -> BTreeMap<String, String> {
    let option = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    // A first epoch says nothing here, and is the same policy for servers that know nothing of these keys.
    // So does the ring of 64 bits.
    let declared = [
        ("epoch_basis", section.epoch_basis.map(|value| value.to_string())),
        ("epoch_attested_by", section.epoch_attested_by.clone()),
        ("ring_bits", (!section.ring_bits.is_default()).then(|| section.ring_bits.to_string())),
    ];
    let declared = declared.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    let mut keys = BTreeMap::from(
        [
            ("epoch", section.epoch.to_string()),
            ("input_shape", format!("{:?}", domain.shape())),
            // `{:?}` of a double is its shortest exact text.
            ("input_minimum", format!("{:?}", section.input_minimum.values())),
            ("input_maximum", format!("{:?}", section.input_maximum.values())),
            ("fractional_bits", section.fractional_bits.to_string()),
            ("classes", section.classes.to_string()),
            ("class_names", section.class_names.join(",")),
            ("release", policy.release.to_string()),
            ("sigma", option(section.sigma.map(|value| value.to_string()))),
            ("scale", option(section.scale.map(|value| value.to_string()))),
            ("confidence_votes", option(section.confidence_votes.map(|value| value.to_string()))),
            ("confidence_sigma", option(section.confidence_sigma.map(|value| value.to_string()))),
            ("confidence_scale", option(section.confidence_scale.map(|value| value.to_string()))),
            ("privacy_unit", policy.unit.to_string()),
            ("models_per_owner", policy.models_per_owner.to_string()),
            ("budget_rho", policy.cap_total.to_string()),
            ("budget_per_client_rho", option(policy.cap_per_client.map(|value| value.to_string()))),
            (
                "budget_per_client_all_tasks_rho",
                option(policy.cap_per_client_all_tasks.map(|value| value.to_string())),
            ),
            ("budget_window_rho", option(section.budget_window_rho.map(|value| value.to_string()))),
            ("budget_window_hours", option(section.budget_window_hours.map(|value| value.to_string()))),
            ("delta", policy.delta.to_string()),
            ("request_rows", section.request_rows.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    keys.extend(declared);
    keys
}

fn digest(keys: &BTreeMap<String, String>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("concilium v1 task policy keys");
    for text in keys.iter().flat_map(|(key, value)| [key, value]) {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Reads a task file as a server does, for comparing it with what servers say.
///
/// # Errors
/// As [`Tasks::load`].
pub fn policies(path: &Path) -> Result<Vec<v1::TaskPolicy>, ConfigError> {
    Ok(Tasks::load(path.to_owned(), 1, &Randomness::system())?.all().map(|task| task.peer_policy()).collect())
}

/// All tasks of a server.
pub struct Tasks {
    tasks: BTreeMap<String, Arc<Task>>,
    /// What each peer said about its tasks when its link came up.
    peers: RwLock<HashMap<PartyIndex, Vec<v1::TaskPolicy>>>,
}

impl Tasks {
    /// Reads and checks the task file and starts to draw `noise_rows` rows of noise ahead for each task.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, the task and the key.
    pub fn load(path: PathBuf, noise_rows: usize, randomness: &Randomness) -> Result<Self, ConfigError> {
        let file = TaskFile::load(&path)?;
        let noise_rows = NonZeroUsize::new(noise_rows).unwrap_or(NonZeroUsize::MIN);
        let tasks = file
            .tasks
            .iter()
            .map(|(name, section)| {
                let shared = file.budget_per_client_all_tasks_rho;
                Ok((name.clone(), Arc::new(Task::new(&path, name, section, shared, noise_rows, randomness)?)))
            })
            .collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
        Ok(Tasks { tasks, peers: RwLock::default() })
    }

    /// All tasks, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// The task of this name.
    ///
    /// # Errors
    /// [`RpcError::UnknownTask`] with the names that are served.
    pub fn get(&self, name: &str) -> Result<&Arc<Task>, RpcError> {
        self.tasks.get(name).ok_or_else(|| RpcError::UnknownTask {
            task: name.to_owned(),
            served: self.tasks.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Notes what a peer said when its link came up.
    pub fn note_peer(&self, peer: PartyIndex, tasks: &[v1::TaskPolicy]) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).insert(peer, tasks.to_vec());
    }

    /// Refuses a task on which a peer has another policy.
    ///
    /// # Errors
    /// [`RpcError::PolicyMismatch`] naming the first key that differs and both values.
    pub fn check_agreement(&self, task: &Task) -> Result<(), RpcError> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        for (peer, theirs) in peers.iter() {
            let mismatch = |key: &str, here: &str, there: &str| RpcError::PolicyMismatch {
                task: task.name().to_owned(),
                key: key.to_owned(),
                here: here.to_owned(),
                there: there.to_owned(),
                peer: peer.to_string(),
            };
            let Some(policy) = theirs.iter().find(|policy| policy.name == task.name()) else {
                return Err(mismatch("tasks", task.name(), "no such task"));
            };
            if policy.digest[..] == task.digest {
                continue;
            }
            let absent = || "absent".to_owned();
            let keys: BTreeSet<_> = task.keys.keys().chain(policy.keys.keys()).collect();
            for key in keys {
                let here = task.keys.get(key).cloned().unwrap_or_else(absent);
                let there = policy.keys.get(key).cloned().unwrap_or_else(absent);
                if there != here {
                    return Err(mismatch(key, &here, &there));
                }
            }
            return Err(mismatch("version", "this server's keys", "further keys"));
        }
        Ok(())
    }
}
