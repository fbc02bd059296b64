//! A task as the server runs it: its configuration checked, its noise pool, and what the other
//! servers say about it.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use concilium_mpc::PartyIndex;
use concilium_network::InputDomain;
use concilium_network::limits::{
    MAXIMUM_CLASSES, MAXIMUM_FRACTIONAL_BITS, MINIMUM_CLASSES, MINIMUM_FRACTIONAL_BITS,
};
use concilium_privacy::{Mechanism, NoisePool, OpenDpNoise, Release, TaskPolicy};
use concilium_rpc::identity::check_name;
use concilium_rpc::status::RpcError;
use concilium_rpc::v1;

use crate::config::{ConfigError, TaskFile, TaskSection};

/// Most bytes of one component of a request.
const MAXIMUM_REQUEST_BYTES: usize = 64 << 20;

/// One task, ready to serve.
pub struct Task {
    /// Release, noise and caps.
    pub policy: TaskPolicy,
    /// Shape and range of inputs.
    pub domain: InputDomain,
    /// Fractional bits of inputs and models.
    pub fractional_bits: u32,
    /// Names of the classes, or none.
    pub class_names: Vec<String>,
    /// Most rows of one request.
    pub request_rows: u32,
    /// Noise drawn ahead.
    pub noise: NoisePool,
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
        noise_rows: NonZeroUsize,
    ) -> Result<Self, ConfigError> {
        let refuse = |key: &str, problem: String| ConfigError::Value {
            path: path.to_owned(),
            key: format!("tasks.{name}.{key}"),
            problem,
        };
        check_name(name).map_err(|error| refuse("", error.to_string()))?;
        let domain = InputDomain::new(
            section.input_shape.clone(),
            section.input_minimum.values(),
            section.input_maximum.values(),
        )
        .map_err(|error| refuse("input_shape", error.to_string()))?;
        let within = |key: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(refuse(key, format!("is {value}; {low} to {high} are allowed")))
        };
        let (low, high) = (MINIMUM_FRACTIONAL_BITS as usize, MAXIMUM_FRACTIONAL_BITS as usize);
        within("fractional_bits", section.fractional_bits as usize, low, high)?;
        within("classes", section.classes, MINIMUM_CLASSES, MAXIMUM_CLASSES)?;
        within("request_rows", section.request_rows as usize, 1, 4096)?;
        let request_bytes = section.request_rows as usize * domain.features() * 8;
        if request_bytes > MAXIMUM_REQUEST_BYTES {
            let most = MAXIMUM_REQUEST_BYTES / (8 * domain.features());
            return Err(refuse(
                "request_rows",
                format!("is {}; inputs of this shape allow {most}", section.request_rows),
            ));
        }
        if !section.class_names.is_empty() && section.class_names.len() != section.classes {
            let count = section.class_names.len();
            return Err(refuse("class_names", format!("has {count} names for {} classes", section.classes)));
        }
        let mechanism = match (section.sigma, section.scale) {
            (Some(sigma), None) => Mechanism::DiscreteGaussian { sigma },
            (None, Some(scale)) => Mechanism::DiscreteLaplace { scale },
            _ => {
                let problem = "or `scale` must be given, and not both: sigma for discrete Gaussian noise, \
                               scale for discrete Laplace noise";
                return Err(refuse("sigma", problem.to_owned()));
            }
        };
        let policy = TaskPolicy {
            task: name.to_owned(),
            epoch: section.epoch,
            release: section.release,
            mechanism,
            bins: section.classes,
            cap_total: section.budget_rho,
            cap_per_client: section.budget_per_client_rho,
            delta: section.delta,
        };
        policy.validate().map_err(|error| refuse("budget_rho", error.to_string()))?;
        let keys = canonical(section, &policy, &domain);
        let source = OpenDpNoise::new(mechanism).map_err(|error| refuse("sigma", error.to_string()))?;
        let noise = NoisePool::new(source, section.classes, noise_rows)
            .map_err(|error| refuse("sigma", error.to_string()))?;
        Ok(Task {
            policy,
            domain,
            fractional_bits: section.fractional_bits,
            class_names: section.class_names.clone(),
            request_rows: section.request_rows,
            noise,
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
        use v1::noise_mechanism::Kind;
        let (kind, parameter) = match self.policy.mechanism {
            Mechanism::DiscreteGaussian { sigma } => (Kind::DiscreteGaussian, sigma),
            Mechanism::DiscreteLaplace { scale } => (Kind::DiscreteLaplace, scale),
            _ => (Kind::Unspecified, concilium_privacy::NoiseScale::from_millionths(0)),
        };
        v1::NoiseMechanism { kind: kind.into(), parameter_millionths: parameter.millionths() }
    }

    /// The release as it travels.
    pub fn wire_release(&self) -> v1::Release {
        match self.policy.release {
            Release::Label => v1::Release::Label,
            Release::Histogram => v1::Release::Histogram,
            _ => v1::Release::Unspecified,
        }
    }

    /// The cost of one row, in nano-rho.
    pub fn row_cost_nano_rho(&self) -> u64 {
        self.policy.row_cost().map_or(u64::MAX, concilium_privacy::NanoRho::units)
    }
}

/// Everything on which the servers must agree, one text for each key.
fn canonical(section: &TaskSection, policy: &TaskPolicy, domain: &InputDomain) -> BTreeMap<String, String> {
    let option = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    BTreeMap::from(
        [
            ("epoch", section.epoch.to_string()),
            ("input_shape", format!("{:?}", domain.shape())),
            // `{:?}` of a double is its shortest exact text.
            ("input_minimum", format!("{:?}", section.input_minimum.values())),
            ("input_maximum", format!("{:?}", section.input_maximum.values())),
            ("fractional_bits", section.fractional_bits.to_string()),
            ("classes", section.classes.to_string()),
            ("class_names", section.class_names.join(",")),
            ("release", format!("{:?}", policy.release).to_lowercase()),
            ("sigma", option(section.sigma.map(|value| value.to_string()))),
            ("scale", option(section.scale.map(|value| value.to_string()))),
            ("budget_rho", policy.cap_total.to_string()),
            ("budget_per_client_rho", option(policy.cap_per_client.map(|value| value.to_string()))),
            ("delta", policy.delta.to_string()),
            ("request_rows", section.request_rows.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    )
}

fn digest(keys: &BTreeMap<String, String>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("concilium v1 task policy keys");
    for text in keys.iter().flat_map(|(key, value)| [key, value]) {
        hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// All tasks of a server.
pub struct Tasks {
    tasks: BTreeMap<String, Arc<Task>>,
    /// What each peer said about its tasks when its link came up.
    peers: RwLock<HashMap<PartyIndex, Vec<v1::TaskPolicy>>>,
}

impl Tasks {
    /// Reads and checks the task file.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, the task and the key.
    pub fn load(path: PathBuf, noise_rows: usize) -> Result<Self, ConfigError> {
        let file = TaskFile::load(&path)?;
        let noise_rows = NonZeroUsize::new(noise_rows).unwrap_or(NonZeroUsize::MIN);
        let tasks = file
            .tasks
            .iter()
            .map(|(name, section)| Ok((name.clone(), Arc::new(Task::new(&path, name, section, noise_rows)?))))
            .collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
        if tasks.is_empty() {
            let problem = "is empty; define at least one task".to_owned();
            return Err(ConfigError::Value { path, key: "tasks".to_owned(), problem });
        }
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
            for (key, here) in &task.keys {
                let there = policy.keys.get(key).map_or("absent", String::as_str);
                if there != here {
                    return Err(mismatch(key, here, there));
                }
            }
            return Err(mismatch("version", "this server's keys", "further keys"));
        }
        Ok(())
    }
}
