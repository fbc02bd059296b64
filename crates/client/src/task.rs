//! What the servers announce about a task, as long as all three announce the same.

use concilium_network::{InputDomain, InputError, Ring, limits};
use concilium_privacy::{
    Delta, EpochBasis, EpochDeclaration, Mechanism, NanoRho, NoiseScale, PrivacyUnit, Release,
    SpendingWindow, TaskPolicy, Threshold, convert,
};
use concilium_rpc::{identity::check_name, v1};
use thiserror::Error;

use crate::{connection::ServerError, terminal::FailureClass};

/// A task, equal on all three servers and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Name of the task.
    pub name: String,
    /// Counts the ensembles of this task; the budget belongs to one epoch.
    pub epoch: u64,
    /// Shape of a row and ranges of its features.
    pub domain: InputDomain,
    /// The ring of inputs and models.
    pub ring: Ring,
    /// Fractional bits of the fixed-point encoding of inputs and weights.
    pub fractional_bits: u32,
    /// Number of classes, 2 to 64.
    pub classes: usize,
    /// One name for each class, or empty.
    pub class_names: Vec<String>,
    /// What is released about the votes.
    pub release: Release,
    /// The noise that any two servers' shares guarantee.
    pub mechanism: Mechanism,
    /// When a confident label is an answer; absent for other releases.
    pub threshold: Option<Threshold>,
    /// Whom the guarantee protects.
    pub unit: PrivacyUnit,
    /// Most models of one owner that vote.
    pub models_per_owner: u32,
    /// Most that one row costs.
    pub cost_per_row: NanoRho,
    /// Digest of the shared policy.
    pub policy_digest: [u8; 32],
    /// Owners that can vote: the fewest that any server counts.
    pub owners_ready: u32,
    /// Models that can vote: the fewest that any server counts.
    pub models_ready: u32,
    /// Most rows of one request, at least 1.
    pub max_rows_per_request: u32,
    /// Delta at which spending is shown as epsilon.
    pub delta: Delta,
    /// Spent by the caller: the most that any server counts.
    pub caller_spent: NanoRho,
    /// Cap of one client, if there is one.
    pub caller_cap: Option<NanoRho>,
    /// Cap of one client over all tasks, if there is one.
    pub caller_cap_all_tasks: Option<NanoRho>,
    /// Cap of the epoch for all clients together.
    pub task_cap: NanoRho,
    /// Pace of spending, if there is one.
    pub window: Option<SpendingWindow>,
    /// What the epoch began with, and who answers for that; `None` for a first epoch.
    pub declaration: Option<EpochDeclaration>,
}

/// Why there is no agreed task.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A server failed.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// No server serves the task.
    #[error("there is no task `{task}`; the servers serve: {served}")]
    Unknown {
        /// The task asked for.
        task: String,
        /// The tasks of server 0, separated by commas.
        served: String,
    },
    /// Some servers serve the task and others do not.
    #[error(
        "task `{task}`: server {with} serves it, server {without} does not; the operators must \
         configure the same tasks"
    )]
    Missing {
        /// The task.
        task: String,
        /// A server that serves it.
        with: u8,
        /// A server that does not.
        without: u8,
    },
    /// Two servers announce different policies.
    #[error(
        "task `{task}`: `{field}` is {first_value} on server {first} but {second_value} on server \
         {second}; the operators must configure the same value"
    )]
    Disagree {
        /// The task.
        task: String,
        /// The field that differs.
        field: &'static str,
        /// One server.
        first: u8,
        /// Its value.
        first_value: String,
        /// The other server.
        second: u8,
        /// Its value.
        second_value: String,
    },
    /// The announced task cannot be used.
    #[error("task `{task}`: the servers announce {problem}; they are of another version or misconfigured")]
    Malformed {
        /// The task.
        task: String,
        /// What is wrong.
        problem: String,
    },
    /// The announced ranges cannot be used.
    #[error("task `{task}`: the servers announce an input that cannot be used: {source}")]
    Domain {
        /// The task.
        task: String,
        /// What is wrong.
        source: InputError,
    },
}

impl TaskError {
    /// What kind of failure it is, for the exit code of a program.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Server(error) => error.class(),
            Self::Unknown { .. } => FailureClass::Input,
            _ => FailureClass::Refused,
        }
    }
}

impl Task {
    /// What is left to the caller; `None` if clients share the task's cap only, of which the caller
    /// does not know how much others have spent.
    pub fn caller_left(&self) -> Option<NanoRho> {
        self.caller_cap.map(|cap| cap.saturating_sub(self.caller_spent))
    }

    /// Rows that the caller's cap still pays for; `None` without such a cap.
    pub fn rows_left(&self) -> Option<u64> {
        self.caller_left().map(|left| left.units().checked_div(self.cost_per_row.units()).unwrap_or(u64::MAX))
    }

    /// The policy that the servers announce.
    pub fn policy(&self) -> TaskPolicy {
        TaskPolicy {
            task: self.name.clone(),
            epoch: self.epoch,
            release: self.release,
            mechanism: self.mechanism,
            threshold: self.threshold,
            unit: self.unit,
            models_per_owner: self.models_per_owner,
            bins: self.classes,
            cap_total: self.task_cap,
            cap_per_client: self.caller_cap,
            cap_per_client_all_tasks: self.caller_cap_all_tasks,
            window: self.window,
            delta: self.delta,
            declaration: self.declaration.clone(),
        }
    }

    /// Epsilon of a spending at the task's delta, rounded upwards.
    pub fn epsilon(&self, spent: NanoRho) -> f64 {
        epsilon(spent, self.delta)
    }

    /// Name of a class: the announced one or its index.
    pub fn class_name(&self, class: usize) -> String {
        self.class_names.get(class).cloned().unwrap_or_else(|| class.to_string())
    }
}

/// Epsilon of a spending at a delta that was checked to lie between 0 and 1; infinite otherwise.
pub fn epsilon(spent: NanoRho, delta: Delta) -> f64 {
    convert::epsilon(spent, delta).unwrap_or(f64::INFINITY)
}

/// The mechanism that a message names; `None` for one that is unknown or too weak.
pub fn mechanism(message: Option<&v1::NoiseMechanism>) -> Option<Mechanism> {
    use v1::noise_mechanism::Kind;
    let message = message?;
    let parameter = NoiseScale::from_millionths(message.parameter_millionths);
    let mechanism = match message.kind() {
        Kind::Unspecified => return None,
        Kind::DiscreteGaussian => Mechanism::DiscreteGaussian { sigma: parameter },
        Kind::DiscreteLaplace => Mechanism::DiscreteLaplace { scale: parameter },
    };
    mechanism.validate().ok().map(|()| mechanism)
}

/// A mechanism in words.
pub fn describe_mechanism(mechanism: Mechanism) -> String {
    match mechanism {
        Mechanism::DiscreteGaussian { sigma } => format!("discrete Gaussian, sigma {sigma}"),
        Mechanism::DiscreteLaplace { scale } => format!("discrete Laplace, scale {scale}"),
        _ => "another mechanism".to_owned(),
    }
}

/// The release that a message names; `None` for one that is unknown.
pub fn release(message: v1::Release) -> Option<Release> {
    match message {
        v1::Release::Label => Some(Release::Label),
        v1::Release::Histogram => Some(Release::Histogram),
        v1::Release::ConfidentLabel => Some(Release::ConfidentLabel),
        v1::Release::MeanProbability => Some(Release::MeanProbability),
        v1::Release::Unspecified => None,
    }
}

/// The privacy unit that a message names; `None` for one that is unknown.
pub fn privacy_unit(message: v1::PrivacyUnit) -> Option<PrivacyUnit> {
    match message {
        v1::PrivacyUnit::Record => Some(PrivacyUnit::Record),
        v1::PrivacyUnit::Owner => Some(PrivacyUnit::Owner),
        v1::PrivacyUnit::Unspecified => None,
    }
}

/// What messages say an epoch began with; `None` for a first epoch.
pub fn declaration(basis: v1::EpochBasis, attested_by: &str) -> Option<EpochDeclaration> {
    let basis = match basis {
        v1::EpochBasis::Unspecified => return None,
        v1::EpochBasis::Retrained => EpochBasis::Retrained,
        v1::EpochBasis::CarriedOver => EpochBasis::CarriedOver,
    };
    Some(EpochDeclaration { basis, attested_by: attested_by.to_owned() })
}

/// The fields in which the servers must not differ, as text for comparison and messages.
fn shared_fields(task: &v1::Task) -> [(&'static str, String); 20] {
    // The shortest text of a number differs whenever its bits do, apart from NaN.
    [
        ("policy_digest", hex::encode(&task.policy_digest)),
        ("epoch", task.epoch.to_string()),
        ("epoch_basis", task.epoch_basis().as_str_name().to_owned()),
        ("epoch_attested_by", task.epoch_attested_by.clone()),
        ("input_shape", format!("{:?}", task.input_shape)),
        ("input_minimum", format!("{:?}", task.input_minimum)),
        ("input_maximum", format!("{:?}", task.input_maximum)),
        ("ring_bits", ring_bits(task).to_string()),
        ("fractional_bits", task.fractional_bits.to_string()),
        ("classes", task.classes.to_string()),
        ("class_names", format!("{:?}", task.class_names)),
        ("release", task.release().as_str_name().to_owned()),
        ("mechanism", format!("{:?}", task.mechanism)),
        ("threshold", format!("{:?}", task.threshold)),
        ("privacy_unit", task.privacy_unit().as_str_name().to_owned()),
        ("models_per_owner", task.models_per_owner.to_string()),
        ("cost_nano_rho_per_row", task.cost_nano_rho_per_row.to_string()),
        ("max_rows_per_request", task.max_rows_per_request.to_string()),
        ("delta", format!("{:?}", task.delta)),
        (
            "caps",
            format!(
                "{:?}, {:?}, {:?}, {:?}",
                task.task_cap_nano_rho,
                task.caller_cap_nano_rho,
                task.caller_cap_all_tasks_nano_rho,
                task.window
            ),
        ),
    ]
}

/// The width of a task's ring; servers that know but one do not name it.
fn ring_bits(task: &v1::Task) -> u32 {
    task.ring_bits.unwrap_or(Ring::default().bits())
}

/// Longest value of a field that an error repeats, in characters.
const LONGEST_VALUE: usize = 60;

/// Joins the three servers' announcements, all of them or the one named.
///
/// # Errors
/// [`TaskError`] if a task is missing on a server, differs between servers or cannot be used. The
/// digest of the policy is compared last among equals, so that the error names the field that differs
/// where it can be seen.
pub fn agree(announced: [Vec<v1::Task>; 3], only: Option<&str>) -> Result<Vec<Task>, TaskError> {
    let wanted = |task: &&v1::Task| only.is_none_or(|name| task.name == name);
    let mut tasks: Vec<Task> = Vec::new();
    for (server, list) in (0_u8..).zip(&announced) {
        for task in list.iter().filter(wanted) {
            if tasks.iter().any(|known| known.name == task.name) {
                continue;
            }
            let find = |other: u8| {
                announced[usize::from(other)].iter().find(|candidate| candidate.name == task.name).ok_or_else(
                    || TaskError::Missing { task: task.name.clone(), with: server, without: other },
                )
            };
            tasks.push(join([find(0)?, find(1)?, find(2)?])?);
        }
    }
    tasks.sort_by(|first, second| first.name.cmp(&second.name));
    Ok(tasks)
}

fn join(copies: [&v1::Task; 3]) -> Result<Task, TaskError> {
    let [first, ..] = copies;
    let expected = shared_fields(first);
    for (server, copy) in (0_u8..).zip(copies).skip(1) {
        let found = shared_fields(copy);
        // The digest differs whenever another field does; it is the last one to be named.
        let (digest, others) = (0, 1..expected.len());
        if let Some(index) = others.chain([digest]).find(|&index| expected[index] != found[index]) {
            let shorten = |text: &str| text.chars().take(LONGEST_VALUE).collect::<String>();
            return Err(TaskError::Disagree {
                task: first.name.clone(),
                field: expected[index].0,
                first: 0,
                first_value: shorten(&expected[index].1),
                second: server,
                second_value: shorten(&found[index].1),
            });
        }
    }
    let mut task = checked(first)?;
    for copy in copies {
        task.owners_ready = task.owners_ready.min(copy.owners_ready);
        task.models_ready = task.models_ready.min(copy.models_ready);
        task.caller_spent = task.caller_spent.max(NanoRho::new(copy.caller_spent_nano_rho));
    }
    Ok(task)
}

/// Brings one announcement to its checked form.
fn checked(task: &v1::Task) -> Result<Task, TaskError> {
    let malformed = |problem: String| TaskError::Malformed { task: task.name.clone(), problem };
    check_name(&task.name).map_err(|error| malformed(error.to_string()))?;
    let shape = task.input_shape.iter().map(|&dimension| dimension as usize).collect();
    let domain = InputDomain::new(shape, task.input_minimum.clone(), task.input_maximum.clone())
        .map_err(|source| TaskError::Domain { task: task.name.clone(), source })?;
    let classes = task.classes as usize;
    if !(limits::MINIMUM_CLASSES..=limits::MAXIMUM_CLASSES).contains(&classes) {
        return Err(malformed(format!("{classes} classes")));
    }
    if !task.class_names.is_empty() && task.class_names.len() != classes {
        return Err(malformed(format!("{} names of {classes} classes", task.class_names.len())));
    }
    let ring = Ring::try_from(ring_bits(task)).map_err(|error| malformed(error.to_string()))?;
    if !ring.fractional_bits().contains(&task.fractional_bits) {
        let problem = format!("{} fractional bits in a ring of {ring} bits", task.fractional_bits);
        return Err(malformed(problem));
    }
    let release = release(task.release()).ok_or_else(|| malformed("no release that is known".to_owned()))?;
    let unit = privacy_unit(task.privacy_unit())
        .ok_or_else(|| malformed("no privacy unit that is known".to_owned()))?;
    let mechanism = mechanism(task.mechanism.as_ref())
        .ok_or_else(|| malformed("no mechanism that is known and strong enough".to_owned()))?;
    let threshold = match &task.threshold {
        Some(threshold) => {
            let mechanism = self::mechanism(threshold.mechanism.as_ref()).ok_or_else(|| {
                malformed("a threshold without a mechanism that is known and strong enough".to_owned())
            })?;
            Some(Threshold { votes: threshold.votes, mechanism })
        }
        None => None,
    };
    if task.max_rows_per_request == 0 {
        return Err(malformed("a limit of 0 rows for a request".to_owned()));
    }
    let policy_digest = <[u8; 32]>::try_from(task.policy_digest.as_ref())
        .map_err(|_| malformed(format!("a policy digest of {} bytes", task.policy_digest.len())))?;
    let delta = delta(task.delta).ok_or_else(|| malformed(format!("the delta {}", task.delta)))?;
    let checked = Task {
        name: task.name.clone(),
        epoch: task.epoch,
        domain,
        ring,
        fractional_bits: task.fractional_bits,
        classes,
        class_names: task.class_names.clone(),
        release,
        mechanism,
        threshold,
        unit,
        models_per_owner: task.models_per_owner,
        cost_per_row: NanoRho::new(task.cost_nano_rho_per_row),
        policy_digest,
        owners_ready: task.owners_ready,
        models_ready: task.models_ready,
        max_rows_per_request: task.max_rows_per_request,
        delta,
        caller_spent: NanoRho::new(task.caller_spent_nano_rho),
        caller_cap: task.caller_cap_nano_rho.map(NanoRho::new),
        caller_cap_all_tasks: task.caller_cap_all_tasks_nano_rho.map(NanoRho::new),
        task_cap: NanoRho::new(task.task_cap_nano_rho),
        window: task
            .window
            .map(|window| SpendingWindow { rho: NanoRho::new(window.cap_nano_rho), seconds: window.seconds }),
        declaration: declaration(task.epoch_basis(), &task.epoch_attested_by),
    };
    // The price is that of the policy: a server that asks for another one has another program.
    let policy = checked.policy();
    match policy.validate().and_then(|()| policy.row_cost()) {
        Ok(cost) if cost == checked.cost_per_row => Ok(checked),
        Ok(cost) => Err(malformed(format!(
            "a price of rho {} for a row, which costs rho {cost} under the announced policy",
            checked.cost_per_row
        ))),
        Err(error) => Err(malformed(format!("a policy that is not sound: {error}"))),
    }
}

/// A delta that was sent as a floating-point number, by its shortest decimal text; `None` unless it
/// lies strictly between 0 and 1.
pub fn delta(value: f64) -> Option<Delta> {
    (value > 0.0 && value < 1.0).then(|| value.to_string().parse().ok()).flatten()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A task as a server announces it.
    pub(crate) fn announcement(name: &str) -> v1::Task {
        v1::Task {
            name: name.to_owned(),
            epoch: 3,
            input_shape: vec![2, 2],
            input_minimum: vec![0.0],
            input_maximum: vec![1.0, 1.0, 2.0, 4.0],
            fractional_bits: 12,
            classes: 3,
            class_names: vec!["cat".into(), "dog".into(), "owl".into()],
            release: v1::Release::Histogram.into(),
            mechanism: Some(v1::NoiseMechanism {
                kind: v1::noise_mechanism::Kind::DiscreteGaussian.into(),
                parameter_millionths: 5_000_000,
            }),
            cost_nano_rho_per_row: 40_000_001,
            policy_digest: vec![7; 32].into(),
            owners_ready: 25,
            models_ready: 26,
            max_rows_per_request: 4,
            delta: 1e-5,
            caller_spent_nano_rho: 100_000_000,
            caller_cap_nano_rho: Some(1_000_000_000),
            task_cap_nano_rho: 5_000_000_000,
            privacy_unit: v1::PrivacyUnit::Record.into(),
            models_per_owner: 2,
            ..v1::Task::default()
        }
    }

    pub(crate) fn task() -> Task {
        checked(&announcement("digits")).unwrap()
    }

    fn copies() -> [Vec<v1::Task>; 3] {
        [0, 1, 2].map(|_| vec![announcement("digits"), announcement("breast")])
    }

    #[test]
    fn equal_announcements_are_joined() {
        let mut announced = copies();
        announced[1][0].models_ready = 20;
        announced[2][0].caller_spent_nano_rho = 200_000_000;
        announced[2].reverse();
        let tasks = agree(announced, None).unwrap();
        assert_eq!(tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>(), ["breast", "digits"]);
        let task = &tasks[1];
        assert_eq!((task.models_ready, task.owners_ready), (20, 25));
        assert_eq!(task.caller_spent, NanoRho::new(200_000_000));
        assert_eq!(task.rows_left(), Some(19));
        assert_eq!(task.domain.maximum(), [1.0, 1.0, 2.0, 4.0]);
        assert_eq!(task.delta, "0.00001".parse().unwrap());
        assert!(task.epsilon(task.caller_spent) > 1.0);
        assert_eq!((task.class_name(1), task.class_name(9)), ("dog".to_owned(), "9".to_owned()));
    }

    #[test]
    fn differences_name_task_field_and_servers() {
        type Change = fn(&mut v1::Task);
        let changes: [(&str, Change); 18] = [
            ("epoch", |task| task.epoch += 1),
            ("input_shape", |task| task.input_shape = vec![4]),
            ("input_minimum", |task| task.input_minimum = vec![-0.0]),
            ("input_maximum", |task| task.input_maximum[3] = 4.000_000_000_000_001),
            ("ring_bits", |task| task.ring_bits = Some(32)),
            ("fractional_bits", |task| task.fractional_bits = 13),
            ("classes", |task| task.classes = 4),
            ("class_names", |task| task.class_names[0] = "hen".into()),
            ("release", |task| task.release = v1::Release::Label.into()),
            ("mechanism", |task| task.mechanism = None),
            ("cost_nano_rho_per_row", |task| task.cost_nano_rho_per_row = 0),
            ("caps", |task| task.caller_cap_nano_rho = None),
            ("caps", |task| task.caller_cap_all_tasks_nano_rho = Some(7)),
            ("caps", |task| task.window = Some(v1::SpendingWindow::default())),
            ("threshold", |task| task.threshold = Some(v1::ConfidenceThreshold::default())),
            ("privacy_unit", |task| task.privacy_unit = v1::PrivacyUnit::Owner.into()),
            ("models_per_owner", |task| task.models_per_owner = 1),
            ("policy_digest", |_| {}),
        ];
        for (name, change) in changes {
            let mut announced = copies();
            change(&mut announced[2][0]);
            announced[2][0].policy_digest = vec![8; 32].into();
            let error = agree(announced.clone(), None).unwrap_err();
            let TaskError::Disagree { task, field, first: 0, second: 2, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!((task.as_str(), *field), ("digits", name), "{error}");
            assert_eq!(error.class(), FailureClass::Refused);
            // The other task is not affected.
            assert_eq!(agree(announced, Some("breast")).unwrap().len(), 1);
        }
    }

    #[test]
    fn tasks_of_some_servers_only_are_refused() {
        let mut announced = copies();
        announced[1].remove(0);
        let error = agree(announced.clone(), None).unwrap_err();
        assert!(matches!(&error, TaskError::Missing { with: 0, without: 1, .. }), "{error}");
        announced[0].remove(0);
        let error = agree(announced, Some("digits")).unwrap_err();
        assert!(matches!(&error, TaskError::Missing { with: 2, without: 0, .. }), "{error}");
        assert!(agree(copies(), Some("none")).unwrap().is_empty());
    }

    #[test]
    fn hostile_announcements_are_refused() {
        type Change = fn(&mut v1::Task);
        let changes: [Change; 21] = [
            |task| task.name = "../x".into(),
            |task| task.input_shape = vec![u32::MAX, u32::MAX, u32::MAX],
            |task| task.input_shape = vec![],
            |task| task.input_minimum = vec![f64::NAN],
            |task| task.input_maximum = vec![1.0, 2.0],
            |task| task.classes = 1,
            |task| task.classes = u32::MAX,
            |task| task.fractional_bits = 64,
            |task| task.ring_bits = Some(48),
            // More than there is room for in 32 bits.
            |task| (task.ring_bits, task.fractional_bits) = (Some(32), 15),
            |task| task.release = 77,
            // A confident label needs a threshold, and no other release has one.
            |task| task.release = v1::Release::ConfidentLabel.into(),
            |task| {
                task.threshold = Some(v1::ConfidenceThreshold { votes: 1, mechanism: task.mechanism });
            },
            |task| task.privacy_unit = 0,
            |task| task.models_per_owner = 0,
            |task| task.cost_nano_rho_per_row += 1,
            // The price of one vote for the guarantee of two.
            |task| task.privacy_unit = v1::PrivacyUnit::Owner.into(),
            |task| task.mechanism.as_mut().unwrap().parameter_millionths = 1,
            |task| task.max_rows_per_request = 0,
            |task| task.policy_digest = vec![7; 31].into(),
            |task| task.delta = 1.0,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut task = announcement("digits");
            change(&mut task);
            let announced = [vec![task.clone()], vec![task.clone()], vec![task]];
            assert!(agree(announced, None).is_err(), "change {index}");
        }
    }
}
