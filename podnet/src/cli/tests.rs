//! The help of every command, as people see it.

use clap::{CommandFactory, Parser};

use super::Cli;

fn help(name: &str) -> String {
    // What this process happens to have in its environment is no part of the help.
    let mut command = Cli::command().mut_subcommands(|it| it.mut_args(|arg| arg.hide_env_values(true)));
    command.build();
    let command = match name {
        "" => &mut command,
        name => command.find_subcommand_mut(name).unwrap(),
    };
    command.render_long_help().to_string()
}

#[test]
fn help_texts() {
    for name in ["", "agent", "services", "status", "check", "cleanup"] {
        let snapshot = format!("help-{}", if name.is_empty() { "podnet" } else { name });
        insta::assert_snapshot!(snapshot, help(name));
    }
}

#[test]
fn arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn wrong_usage_names_the_flag() {
    for (arguments, flag) in [
        (["podnet", "agent", "--max-slots=0"].as_slice(), "--max-slots"),
        (&["podnet", "agent", "--metrics-bind-address=80"], "--metrics-bind-address"),
        (&["podnet", "agent", "--manifests=a", "--kubeconfig=b"], "--manifests"),
    ] {
        let error = Cli::try_parse_from(arguments).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(flag), "{error}");
    }
}
