//! The task file, equal on all three servers.

use std::collections::BTreeMap;
use std::path::Path;

use concilium_network::{InputDomain, Precision, Ring};
use concilium_privacy::{
    Cap, Delta, EpochBasis, EpochDeclaration, Mechanism, NanoRho, NoiseScale, PolicyError, PrivacyUnit,
    Release, SpendingWindow, TaskPolicy, Threshold,
};
use concilium_rpc::identity::check_name;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::keys::{TASK_FILE_KEYS, TASK_KEYS};
use super::problem::{ConfigError, Problem};
use super::source::{Document, Settings};

/// Most bytes of one component of a request.
const MAXIMUM_REQUEST_BYTES: usize = 64 << 20;

const SECONDS_PER_HOUR: u64 = 3600;

/// The task file.
#[derive(Clone, Debug)]
pub struct TaskFile {
    /// Most that one client may get of all tasks together; absent for no further bound.
    pub budget_per_client_all_tasks_rho: Option<NanoRho>,
    /// The tasks, each under its name: `[tasks.NAME]`.
    pub tasks: BTreeMap<String, TaskSection>,
}

/// One value for all features or one for each.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Bound {
    /// The same for all features.
    One(f64),
    /// One for each feature, in row-major order.
    Each(Vec<f64>),
}

impl Bound {
    /// The values as a list of one or of all.
    pub fn values(&self) -> Vec<f64> {
        match self {
            Bound::One(value) => vec![*value],
            Bound::Each(values) => values.clone(),
        }
    }
}

/// One task. All three servers must say the same; they compare at connect time. [`TASK_KEYS`] describes
/// every key.
///
/// Numbers that decide about privacy (`sigma`, `scale`, `budget_*_rho`, `delta`) are read as the
/// decimal text that is written, without binary rounding; a string is taken as well.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSection {
    /// The ensemble's epoch.
    pub epoch: u64,
    /// What an epoch begins with that is not the task's first.
    pub epoch_basis: Option<EpochBasis>,
    /// Who answers for that.
    pub epoch_attested_by: Option<String>,
    /// Shape of one input, without the batch axis.
    pub input_shape: Vec<usize>,
    /// Smallest value of a feature: one number for all, or a list.
    pub input_minimum: Bound,
    /// Largest value of a feature: one number for all, or a list.
    pub input_maximum: Bound,
    /// The ring of inputs and models.
    pub ring_bits: Ring,
    /// Fractional bits of the fixed-point encoding.
    pub fractional_bits: u32,
    /// Number of classes.
    pub classes: usize,
    /// Names of the classes, or none.
    pub class_names: Vec<String>,
    /// What a client gets.
    pub release: Release,
    /// Standard deviation of discrete Gaussian noise that any two servers guarantee, in votes.
    pub sigma: Option<NoiseScale>,
    /// Scale of discrete Laplace noise that any two servers guarantee, in votes.
    pub scale: Option<NoiseScale>,
    /// Noisy votes that an answer of `confident_label` needs.
    pub confidence_votes: Option<u32>,
    /// Standard deviation of discrete Gaussian noise of that test.
    pub confidence_sigma: Option<NoiseScale>,
    /// Scale of discrete Laplace noise of that test.
    pub confidence_scale: Option<NoiseScale>,
    /// Whom the guarantee protects.
    pub privacy_unit: PrivacyUnit,
    /// Most models of one owner.
    pub models_per_owner: u32,
    /// Most that may ever be released about this epoch's models.
    pub budget_rho: NanoRho,
    /// Most that one client may get; absent for no further bound.
    pub budget_per_client_rho: Option<NanoRho>,
    /// Most that may be released within a time.
    pub budget_window_rho: Option<NanoRho>,
    /// The length of that time, in hours.
    pub budget_window_hours: Option<u64>,
    /// The delta at which spending is shown as epsilon.
    pub delta: Delta,
    /// Most rows of one request.
    pub request_rows: u32,
}

impl TaskSection {
    /// Shape and range of the inputs, if the keys fit each other.
    ///
    /// # Errors
    /// What [`InputDomain::new`] says.
    pub(crate) fn domain(&self) -> Result<InputDomain, concilium_network::InputError> {
        let (low, high) = (self.input_minimum.values(), self.input_maximum.values());
        InputDomain::new(self.input_shape.clone(), low, high)
    }

    /// The ring and the fractional bits.
    pub(crate) fn precision(&self) -> Precision {
        Precision { ring: self.ring_bits, fractional_bits: self.fractional_bits }
    }

    /// The noise; `None` unless exactly one of `sigma` and `scale` is given.
    pub(crate) fn mechanism(&self) -> Option<Mechanism> {
        mechanism(self.sigma, self.scale)
    }

    /// Release, noise and caps, not validated. A threshold that is not given in full is absent.
    pub(crate) fn policy(
        &self,
        name: &str,
        mechanism: Mechanism,
        cap_per_client_all_tasks: Option<NanoRho>,
    ) -> TaskPolicy {
        let test = self::mechanism(self.confidence_sigma, self.confidence_scale);
        let threshold = self.confidence_votes.zip(test);
        let window = self.budget_window_rho.zip(self.budget_window_hours);
        let declaration = self.epoch_basis.zip(self.epoch_attested_by.clone());
        TaskPolicy {
            task: name.to_owned(),
            epoch: self.epoch,
            release: self.release,
            mechanism,
            threshold: threshold.map(|(votes, mechanism)| Threshold { votes, mechanism }),
            unit: self.privacy_unit,
            models_per_owner: self.models_per_owner,
            bins: self.classes,
            cap_total: self.budget_rho,
            cap_per_client: self.budget_per_client_rho,
            cap_per_client_all_tasks,
            window: window.map(|(rho, hours)| SpendingWindow { rho, seconds: hours * SECONDS_PER_HOUR }),
            delta: self.delta,
            declaration: declaration.map(|(basis, attested_by)| EpochDeclaration { basis, attested_by }),
        }
    }
}

fn mechanism(sigma: Option<NoiseScale>, scale: Option<NoiseScale>) -> Option<Mechanism> {
    match (sigma, scale) {
        (Some(sigma), None) => Some(Mechanism::DiscreteGaussian { sigma }),
        (None, Some(scale)) => Some(Mechanism::DiscreteLaplace { scale }),
        _ => None,
    }
}

impl TaskFile {
    /// Reads and checks a task file.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that is wrong, each naming file, key, value and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::finish(Document::read(path))
    }

    /// Checks the text of a task file that came from `path`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::finish(Document::parse(text, path))
    }

    /// The policies of all tasks, by name: release, noise and caps.
    pub fn policies(&self) -> Vec<TaskPolicy> {
        let shared = self.budget_per_client_all_tasks_rho;
        let policy = |(name, section): (&String, &TaskSection)| {
            section.mechanism().map(|mechanism| section.policy(name, mechanism, shared))
        };
        self.tasks.iter().filter_map(policy).collect()
    }

    fn finish(document: Result<Document, Vec<Problem>>) -> Result<Self, ConfigError> {
        let read = TaskRead::new(document);
        ConfigError::refuse(read.problems().cloned().collect())?;
        Ok(read.file)
    }
}

/// A task file with everything that is wrong with it.
pub(super) struct TaskRead {
    /// Problems of no task.
    problems: Vec<Problem>,
    /// The settings for all tasks together; none when the file is no TOML.
    pub(super) settings: Option<Settings>,
    /// The settings of each task.
    pub(super) tasks: Vec<(String, Settings)>,
    /// The tasks without fault.
    pub(super) file: TaskFile,
}

impl TaskRead {
    /// Reads a task file to its end.
    pub(super) fn load(path: &Path) -> Self {
        Self::new(Document::read(path))
    }

    fn new(document: Result<Document, Vec<Problem>>) -> Self {
        let file = TaskFile { budget_per_client_all_tasks_rho: None, tasks: BTreeMap::new() };
        let mut read = TaskRead { problems: Vec::new(), settings: None, tasks: Vec::new(), file };
        match document {
            Ok(document) => read.take(&document),
            Err(problems) => read.problems = problems,
        }
        read
    }

    /// Everything that is wrong.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let of_settings = self.settings.iter().chain(self.tasks.iter().map(|(_, settings)| settings));
        self.problems.iter().chain(of_settings.flat_map(|settings| &settings.problems))
    }

    /// The keys before the sections, and the cap per client over all tasks if it is good.
    fn take_shared(&mut self, document: &Document) -> Option<NanoRho> {
        let mut table = document.table.clone();
        table.remove("tasks");
        table.retain(|key, _| {
            let known = TASK_FILE_KEYS.iter().any(|described| described.name == key);
            if !known {
                let remedy = "keys of a task belong below [tasks.NAME]";
                self.problems.push(document.problem(key, None, "is unknown".into(), remedy));
            }
            known
        });
        let mut settings = Settings::read(document, "", &table, TASK_FILE_KEYS);
        settings.complete();
        let good = settings.are_good(&["budget_per_client_all_tasks_rho"]);
        let shared = settings.build::<SharedKeys>().ok().filter(|_| good);
        self.settings = Some(settings);
        self.file.budget_per_client_all_tasks_rho = shared?.budget_per_client_all_tasks_rho;
        self.file.budget_per_client_all_tasks_rho
    }

    fn take(&mut self, document: &Document) {
        let shared = self.take_shared(document);
        let tasks = document.table.get("tasks");
        let empty = toml::Table::new();
        let tasks = match tasks {
            Some(Value::Table(tasks)) => tasks,
            Some(other) => {
                let remedy = "write a section [tasks.NAME] for each task";
                self.problems.push(document.problem("tasks", Some(other), "is no section".into(), remedy));
                return;
            }
            None => &empty,
        };
        if tasks.is_empty() {
            let remedy = "define at least one task in a section [tasks.NAME]";
            self.problems.push(document.problem("tasks", None, "is empty".into(), remedy));
        }
        for (name, table) in tasks {
            let key = format!("tasks.{name}");
            if check_name(name).is_err() {
                let remedy = "names of tasks have 1 to 64 of the characters a-z, 0-9 and -";
                self.problems.push(document.problem(&key, None, "is no name of a task".into(), remedy));
            }
            let Some(table) = table.as_table() else {
                let remedy = format!("write a section [{key}]");
                self.problems.push(document.problem(&key, Some(table), "is no section".into(), &remedy));
                continue;
            };
            let mut settings = Settings::read(document, &format!("{key}."), table, TASK_KEYS);
            settings.complete();
            match settings.build::<TaskSection>() {
                Ok(section) => {
                    check(&mut settings, name, &section, shared);
                    if settings.is_sound() {
                        self.file.tasks.insert(name.clone(), section);
                    }
                }
                Err(error) => {
                    let problem = format!("can't be used: {}", error);
                    self.problems.push(document.problem(&key, None, problem, "correct the task"));
                }
            }
            self.tasks.push((name.clone(), settings));
        }
    }
}

/// The keys before the sections.
#[derive(Deserialize)]
struct SharedKeys {
    budget_per_client_all_tasks_rho: Option<NanoRho>,
}

/// Checks the keys of a task against each other.
fn check(settings: &mut Settings, name: &str, section: &TaskSection, shared: Option<NanoRho>) {
    if settings.are_good(&["input_shape", "input_minimum", "input_maximum"]) {
        check_inputs(settings, section);
    }
    check_precision(settings, section);
    if settings.are_good(&["class_names", "classes"])
        && !section.class_names.is_empty()
        && section.class_names.len() != section.classes
    {
        let problem = format!("has {} names for {} classes", section.class_names.len(), section.classes);
        settings.complain("class_names", problem, "name every class once, or none");
    }
    match (settings.is_given("sigma"), settings.is_given("scale")) {
        (true, true) => {
            let remedy = "keep sigma for discrete Gaussian noise or scale for discrete Laplace noise";
            settings.complain("sigma", "contradicts `scale`, which is given, too".to_owned(), remedy);
            return;
        }
        (false, false) => {
            let remedy = "add sigma for discrete Gaussian noise, or scale for discrete Laplace noise";
            settings.complain("sigma", "is missing, and so is `scale`".to_owned(), remedy);
            return;
        }
        _ => {}
    }
    let noise = if section.sigma.is_some() { "sigma" } else { "scale" };
    let Some(mechanism) = section.mechanism() else { return };
    let mut needed =
        vec![noise, "budget_rho", "delta", "classes", "release", "privacy_unit", "models_per_owner"];
    needed.extend(POLICY_OPTIONS.into_iter().filter(|key| settings.is_given(key)));
    if !settings.are_good(&needed) || !check_pairs(settings, section) {
        return;
    }
    if let Err(error) = section.policy(name, mechanism, shared).validate() {
        let key = key_of(&error, settings, noise);
        // The text names the task, as the key does here.
        let text = error.to_string();
        let text = text.strip_prefix(&format!("task {name}: ")).unwrap_or(&text);
        let (problem, remedy) = text.split_once("; ").unwrap_or((text, "correct the value"));
        settings.complain(key, format!("can't be used: {problem}"), remedy);
    }
}

/// Keys of the policy that may be left out.
const POLICY_OPTIONS: [&str; 8] = [
    "epoch_basis",
    "epoch_attested_by",
    "budget_per_client_rho",
    "budget_window_rho",
    "budget_window_hours",
    "confidence_votes",
    "confidence_sigma",
    "confidence_scale",
];

/// Complains about halves of what must be given in full, and tells whether there are none.
fn check_pairs(settings: &mut Settings, section: &TaskSection) -> bool {
    let remedy = "give both or none";
    let pairs = [("budget_window_rho", "budget_window_hours"), ("epoch_basis", "epoch_attested_by")];
    for (given, missing) in pairs.into_iter().flat_map(|(one, other)| [(one, other), (other, one)]) {
        if settings.is_given(given) && !settings.is_given(missing) {
            settings.complain(missing, format!("is missing, and `{given}` is given"), remedy);
            return false;
        }
    }
    match (section.confidence_votes, section.confidence_sigma, section.confidence_scale) {
        (_, Some(_), Some(_)) => {
            let remedy = "keep one of them";
            settings.complain("confidence_sigma", "contradicts `confidence_scale`".to_owned(), remedy);
            false
        }
        (Some(_), None, None) => {
            let problem = "is missing, and so is `confidence_scale`".to_owned();
            settings.complain("confidence_sigma", problem, "give one of them with confidence_votes");
            false
        }
        (None, Some(_), None) | (None, None, Some(_)) => {
            let problem = "is missing, and the noise of the test is given".to_owned();
            settings.complain("confidence_votes", problem, remedy);
            false
        }
        _ => true,
    }
}

/// The key that a policy's fault is reported at.
fn key_of(error: &PolicyError, settings: &Settings, noise: &'static str) -> &'static str {
    match error {
        PolicyError::Mechanism { .. } | PolicyError::LaplaceProbabilities { .. } => noise,
        PolicyError::ThresholdMechanism { .. } if settings.is_given("confidence_sigma") => "confidence_sigma",
        PolicyError::ThresholdMechanism { .. } => "confidence_scale",
        PolicyError::ThresholdMissing { .. } | PolicyError::ThresholdUnused { .. } => "confidence_votes",
        PolicyError::ModelsPerOwner { .. } => "models_per_owner",
        PolicyError::Delta { .. } => "delta",
        PolicyError::CapBelowOneRow { cap, .. } | PolicyError::CapsContradict { cap, .. } => match cap {
            Cap::Client => "budget_per_client_rho",
            // The key of the whole file is named in the text; the row's price is this task's.
            Cap::Window => "budget_window_rho",
            _ => "budget_rho",
        },
        PolicyError::WindowLength { .. } => "budget_window_hours",
        PolicyError::AttestedBy { .. } => "epoch_attested_by",
        PolicyError::FirstEpoch { .. } => "epoch_basis",
        _ => "budget_rho",
    }
}

/// Checks the fractional bits and the release against the ring.
fn check_precision(settings: &mut Settings, section: &TaskSection) {
    let ring = section.ring_bits;
    let allowed = ring.fractional_bits();
    if settings.are_good(&["ring_bits", "fractional_bits"]) && !allowed.contains(&section.fractional_bits) {
        let problem = format!("does not fit a ring of {ring} bits");
        let remedy = format!("use {} to {}", allowed.start(), allowed.end());
        settings.complain("fractional_bits", problem, &remedy);
    }
    let narrow = ring == Ring::Bits32;
    if settings.are_good(&["ring_bits", "release"]) && narrow && section.release == Release::MeanProbability {
        let problem = "has no room for the probabilities of `release`".to_owned();
        settings.complain("ring_bits", problem, "use 64, or release label, histogram or confident_label");
    }
}

fn check_inputs(settings: &mut Settings, section: &TaskSection) {
    let domain = match section.domain() {
        Ok(domain) => domain,
        Err(error) => {
            let text = error.to_string();
            let (problem, remedy) = text
                .split_once("; ")
                .unwrap_or((&text, "correct input_shape, input_minimum or input_maximum"));
            settings.complain("input_shape", format!("can't be used: {problem}"), remedy);
            return;
        }
    };
    let most = MAXIMUM_REQUEST_BYTES / (section.ring_bits.element_bytes() * domain.features());
    if settings.are_good(&["request_rows"]) && section.request_rows as usize > most {
        let problem = format!("is too much for inputs of {} features", domain.features());
        settings.complain("request_rows", problem, &format!("use at most {most}"));
    }
}
