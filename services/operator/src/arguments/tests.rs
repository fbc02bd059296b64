//! What the command line takes and refuses.

use clap::CommandFactory as _;
use concilium_client_library::terminal::EXIT_CODES;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
    assert!(AFTER_HELP.ends_with(EXIT_CODES));
}

#[test]
fn arguments_are_read() {
    let parse = |line: &[&str]| {
        Arguments::try_parse_from(["concilium-operator"].iter().chain(line))
            .map(|arguments| arguments.command)
            .map_err(|error| error.exit_code())
    };
    let line = [
        "certs", "issue", "--ca", "a", "--role", "server", "--name", "server-1", "--dns", "x", "--ip", "::1",
    ];
    let complete: Vec<&str> = line.into_iter().chain(["--out", "o"]).collect();
    let Ok(Command::Certs { command: CertsCommand::Issue(issue) }) = parse(&complete) else {
        panic!("another command")
    };
    assert_eq!((issue.role, issue.days, issue.ip.len()), (Role::Server, 365, 1));
    let Ok(Command::Budget(BudgetArguments { command: None, server: Some(2), task: None })) =
        parse(&["budget", "--server", "2"])
    else {
        panic!("another command")
    };
    let Ok(Command::LogFilter(log)) = parse(&["log-filter", "--for", "10m", "debug"]) else {
        panic!("another command")
    };
    assert_eq!((log.duration, log.show), (Some(Duration::from_secs(600)), false));
    assert!(parse(&["log-filter", "--show", "--server", "1"]).is_ok());
    for line in [
        &line[..],
        &["log-filter"],
        &["log-filter", "--show", "debug"],
        &["log-filter", "--for", "10", "debug"],
        &["log-filter", "--for", "0s", "debug"],
        &["log-filter", "--for", "8d", "debug"],
        &["budget", "--server", "3"],
        &["budget", "what-if"],
        &["budget", "--server", "1", "what-if", "--task", "x"],
        &["budget", "what-if", "--task", "x", "--sigma", "2", "--scale", "3"],
        &["budget", "what-if", "--task", "x", "--rho", "1", "--epsilon", "3"],
        &["budget", "what-if", "--task", "x", "--task-file", "f"],
        &["budget", "what-if", "--task", "x", "--sigma", "-1"],
        &["certs", "issue", "--ca", "a", "--role", "king", "--name", "x", "--out", "o"],
        &["certs", "init"],
        &[],
    ] {
        assert_eq!(parse(line).err(), Some(2), "{line:?}");
    }
}
