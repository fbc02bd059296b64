//! The effective configuration as TOML, with where each value comes from.

use std::fmt::Write as _;
use std::path::Path;

use toml::Value;

use super::check::Check;
use super::key::{Given, Kind};
use super::problem::{ConfigError, Origin, Problem};
use super::source::Settings;

impl Check {
    /// The server's settings as a file of their own: paths are absolute, so it means the same wherever
    /// it is saved.
    ///
    /// # Errors
    /// [`ConfigError`] when keys or values are wrong: the rest would look like an answer.
    pub fn print_server(&self, path: &Path) -> Result<String, ConfigError> {
        ConfigError::refuse(self.of_values.clone())?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut text = format!("# Effective configuration: {} and the variables\n\n", path.display());
        print(&mut text, &self.settings, "", path, folder);
        Ok(text)
    }

    /// The settings of all tasks.
    ///
    /// # Errors
    /// As [`Self::print_server`].
    pub fn print_tasks(&self) -> Result<String, ConfigError> {
        let of_tasks = |problem: &&Problem| problem.file == self.tasks_file || problem.key == "tasks_file";
        ConfigError::refuse(self.problems.iter().filter(of_tasks).cloned().collect())?;
        let mut text = format!("# Tasks of {}\n", self.tasks_file.display());
        if let Some(settings) = &self.task_file {
            text.push('\n');
            print(&mut text, settings, "", &self.tasks_file, Path::new(""));
        }
        for (name, settings) in &self.tasks {
            let _ = write!(text, "\n[tasks.{name}]\n");
            print(&mut text, settings, &format!("tasks.{name}."), &self.tasks_file, Path::new(""));
        }
        Ok(text)
    }
}

fn print(text: &mut String, settings: &Settings, prefix: &str, path: &Path, folder: &Path) {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let mut section = "";
    for (key, setting) in settings.all() {
        let (found, last) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if found != section {
            section = found;
            let _ = write!(text, "\n[{prefix}{section}]\n");
        }
        let Some(setting) = setting else {
            if let Given::Optional { absent, .. } = key.given {
                let _ = writeln!(text, "# {last} is left out: {absent}");
            }
            continue;
        };
        let value = match (&key.kind, &setting.value) {
            (Kind::Path, Value::String(path)) => {
                let path = folder.join(path);
                let path = std::path::absolute(&path).unwrap_or(path);
                Value::String(path.display().to_string())
            }
            (_, value) => value.clone(),
        };
        let origin = match &setting.origin {
            Origin::Line(line) => format!("{file}:{line}"),
            Origin::Variable(variable) => variable.clone(),
            Origin::Default => "default".to_owned(),
        };
        let _ = writeln!(text, "{last} = {value}  # {origin}");
    }
}
