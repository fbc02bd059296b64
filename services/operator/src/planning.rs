//! What a policy promises, and what it would pay for.

use std::{io::Write, path::Path};

use concilium_client_library::terminal::{Failure, FailureClass, Output};
use concilium_privacy::{
    Mechanism, TaskPolicy, convert, explain as words,
    utility::{self, LEAST_USEFUL_ACCURACY, Usefulness, Vote},
};
use concilium_server::config::TaskFile;
use serde::Serialize;

use crate::arguments::WhatIfArguments;

fn refused(error: impl std::error::Error + 'static) -> Failure {
    Failure::new(FailureClass::Input, &error)
}

/// The policies in a task file: of all tasks, or of the one named.
///
/// # Errors
/// [`Failure`] when the file is refused or has no such task.
pub fn of_file(path: &Path, task: Option<&str>) -> Result<Vec<TaskPolicy>, Failure> {
    let file = TaskFile::load(path).map_err(refused)?;
    let mut policies = file.policies();
    policies.retain(|policy| task.is_none_or(|task| policy.task == task));
    match (policies.is_empty(), task) {
        (true, Some(task)) => {
            let served: Vec<_> = file.tasks.keys().map(String::as_str).collect();
            let message = format!("{} has no task `{task}`; it has {}", path.display(), served.join(", "));
            Err(Failure::message(FailureClass::Input, message))
        }
        _ => Ok(policies),
    }
}

/// Prints the guarantee of each policy in one sentence, and its terms.
///
/// # Errors
/// [`Failure`] if standard output is closed, or a delta is not between 0 and 1.
pub fn explain(policies: &[TaskPolicy], output: &mut Output<impl Write>) -> Result<(), Failure> {
    for (position, policy) in policies.iter().enumerate() {
        if position > 0 {
            output.line("")?;
        }
        output.line(words::guarantee(policy).map_err(refused)?)?;
        words::terms(policy).iter().try_for_each(|line| output.line(format_args!("  {line}")))?;
    }
    Ok(())
}

/// The answer to a what-if.
#[derive(Debug, Serialize)]
struct Answer {
    task: String,
    release: &'static str,
    privacy_unit: String,
    votes_of_one_unit: u32,
    sigma: Option<String>,
    scale: Option<String>,
    rho_per_row: String,
    rho_arithmetic: String,
    budget_rho: String,
    epsilon: f64,
    /// Of the continuous Gaussian, or of discrete Laplace rows of one vote: information.
    exact_epsilon: Option<f64>,
    delta: f64,
    rows: u64,
    models: u32,
    share: f64,
    accuracy: f64,
    answered: f64,
    useful: bool,
}

/// Prints what a budget pays for under `policy` with the changes that are asked about, and how often an
/// answer is right; `ready` models vote unless the question says how many.
///
/// # Errors
/// [`Failure`] of the class of a refusal when the noise is useless for so many models, or the budget
/// pays for no row; of input when the question makes no sense.
pub fn what_if(
    mut policy: TaskPolicy,
    ready: u32,
    question: &WhatIfArguments,
    output: &mut Output<impl Write>,
) -> Result<(), Failure> {
    if let Some(delta) = question.delta {
        policy.delta = delta;
    }
    if let Some(rho) = question.rho {
        policy.cap_total = rho;
    }
    if let Some(epsilon) = question.epsilon {
        policy.cap_total = utility::budget(epsilon, policy.delta).map_err(refused)?;
    }
    policy.mechanism = match (question.sigma, question.scale, question.rows) {
        (Some(sigma), ..) => Mechanism::DiscreteGaussian { sigma },
        (_, Some(scale), _) => Mechanism::DiscreteLaplace { scale },
        (.., Some(rows)) => {
            let sigma = utility::sigma_for(&policy, policy.cap_total, rows).map_err(refused)?;
            let sigma = sigma.ok_or_else(|| {
                let message = format!("no sigma pays for {rows} rows with rho {}", policy.cap_total);
                Failure::message(FailureClass::Refused, message)
            })?;
            Mechanism::DiscreteGaussian { sigma }
        }
        (None, None, None) => policy.mechanism,
    };
    let answer = answer(&policy, Vote { models: question.models.unwrap_or(ready), share: question.share })?;
    if question.json {
        let text = serde_json::to_string_pretty(&answer).map_err(refused)?;
        output.line(text)?;
    } else {
        print(&answer, output)?;
    }
    if answer.useful {
        return Ok(());
    }
    let Answer { models, share, rows, .. } = answer;
    let message = if rows == 0 {
        format!("useless: the budget of rho {} does not pay for one row", answer.budget_rho)
    } else {
        format!(
            "useless: with {models} models of which {share} agree, fewer than {LEAST_USEFUL_ACCURACY} of all \
             answers are there and right; take more models or less noise, and fewer rows"
        )
    };
    Err(Failure::message(FailureClass::Refused, message))
}

fn answer(policy: &TaskPolicy, vote: Vote) -> Result<Answer, Failure> {
    let price = policy.row_cost().map_err(refused)?;
    let rows = utility::rows(policy, policy.cap_total).map_err(refused)?;
    let usefulness = Usefulness::of(policy, vote).map_err(refused)?;
    let (sigma, scale, exact) = match policy.mechanism {
        Mechanism::DiscreteGaussian { sigma } => {
            (Some(sigma), None, convert::gaussian_epsilon(policy.cap_total, policy.delta).ok())
        }
        Mechanism::DiscreteLaplace { scale } => {
            let rows = u32::try_from(rows).ok().filter(|rows| *rows <= 100_000);
            let one_vote = rows.filter(|_| policy.votes_of_one_unit() == 1 && policy.threshold.is_none());
            let exact = one_vote.and_then(|rows| convert::laplace_epsilon(scale, rows, policy.delta).ok());
            (None, Some(scale), exact)
        }
        _ => (None, None, None),
    };
    Ok(Answer {
        task: policy.task.clone(),
        release: policy.release.name(),
        privacy_unit: policy.unit.to_string(),
        votes_of_one_unit: policy.votes_of_one_unit(),
        sigma: sigma.map(|sigma| sigma.to_string()),
        scale: scale.map(|scale| scale.to_string()),
        rho_per_row: price.to_string(),
        rho_arithmetic: policy.price_in_words(),
        budget_rho: policy.cap_total.to_string(),
        epsilon: convert::epsilon(policy.cap_total, policy.delta).map_err(refused)?,
        exact_epsilon: exact,
        delta: convert::delta_value(policy.delta),
        rows,
        models: vote.models,
        share: vote.share,
        accuracy: usefulness.accuracy,
        answered: usefulness.answered,
        useful: rows > 0 && usefulness.is_useful(),
    })
}

fn print(answer: &Answer, output: &mut Output<impl Write>) -> Result<(), Failure> {
    let Answer { task, release, privacy_unit, delta, rows, models, share, accuracy, answered, .. } = answer;
    let noise = match (&answer.sigma, &answer.scale) {
        (Some(sigma), _) => format!("sigma {sigma}"),
        (None, Some(scale)) => format!("scale {scale}"),
        (None, None) => "unknown noise".to_owned(),
    };
    output.line(format_args!("task {task}: {release} with {noise}, privacy unit {privacy_unit}"))?;
    output.line(format_args!("a row costs rho {} = {}", answer.rho_per_row, answer.rho_arithmetic))?;
    output.line(format_args!(
        "a budget of rho {} is epsilon {:.3} at delta {delta} and pays for {rows} rows",
        answer.budget_rho, answer.epsilon
    ))?;
    if let Some(exact) = answer.exact_epsilon {
        output.line(format_args!("the exact epsilon of this noise alone is {exact:.3}, for information"))?;
    }
    output.line(format_args!(
        "with {models} models of which {share} agree, the label is right in {:.1} of 100 answers",
        100.0 * accuracy
    ))?;
    if *answered < 1.0 {
        output.line(format_args!("and there is an answer in {:.1} of 100 cases", 100.0 * answered))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Arguments, BudgetArguments, BudgetCommand, Command};

    const TASKS: &str = "[tasks.digits]\nepoch = 1\ninput_shape = [4]\ninput_minimum = 0\ninput_maximum = 1\n\
        fractional_bits = 12\nclasses = 10\nrelease = \"label\"\nsigma = 5\nbudget_rho = 1.2297\ndelta = 1e-5\n";

    fn ask(line: &str) -> (String, Result<(), Failure>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.toml");
        std::fs::write(&path, TASKS).unwrap();
        let line = format!("concilium-operator budget what-if --task digits {line}");
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Budget(BudgetArguments { command: Some(BudgetCommand::WhatIf(question)), .. }) =
            arguments.command
        else {
            panic!("another command")
        };
        let policy = of_file(&path, Some("digits")).unwrap().remove(0);
        let mut bytes = Vec::new();
        let result = what_if(policy, 50, &question, &mut Output::new(&mut bytes));
        (String::from_utf8(bytes).unwrap(), result)
    }

    #[test]
    fn a_useful_policy_is_said_to_pay_for_its_rows() {
        let (text, result) = ask("");
        result.unwrap();
        for part in
            ["sigma 5", "rho 0.040000001 = 1^2 / 5^2", "epsilon 8.000", "pays for 30 rows", "50 models"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let (text, result) = ask("--rows 1000 --epsilon 8 --models 250 --json");
        result.unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(json["rows"].as_u64().unwrap() >= 1000 && json["useful"] == true, "{text}");
        let sigma: f64 = json["sigma"].as_str().unwrap().parse().unwrap();
        assert!((sigma - 28.52).abs() < 0.02, "{sigma}");
        let (text, result) = ask("--scale 5 --json");
        result.unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(json["exact_epsilon"].as_f64().unwrap() < json["epsilon"].as_f64().unwrap(), "{text}");
    }

    #[test]
    fn useless_noise_and_budgets_are_refused() {
        for (line, part) in [
            ("--models 10", "with 10 models"),
            ("--sigma 20", "more models or less noise"),
            ("--rho 0.03", "does not pay for one row"),
            ("--rows 1000 --models 10", "with 10 models"),
        ] {
            let failure = ask(line).1.unwrap_err();
            assert_eq!(failure.class(), FailureClass::Refused, "{line}");
            let text = failure.to_string();
            assert!(text.starts_with("useless: ") && text.contains(part), "{line}: {text}");
        }
        for line in ["--share 0.05", "--share nan", "--models 0", "--sigma 1", "--delta 1"] {
            assert_eq!(ask(line).1.unwrap_err().class(), FailureClass::Input, "{line}");
        }
    }

    #[test]
    fn a_file_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.toml");
        std::fs::write(&path, TASKS).unwrap();
        let mut bytes = Vec::new();
        explain(&of_file(&path, None).unwrap(), &mut Output::new(&mut bytes)).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("task digits epoch 1") && text.contains("(8, 0.00001)"), "{text}");
        let missing = of_file(&path, Some("votes")).unwrap_err();
        assert!(missing.to_string().contains("no task `votes`; it has digits"), "{missing}");
    }
}
