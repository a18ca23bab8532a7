//! Documents say what is true: the settings, the alerts, the exit codes.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::CommandFactory;
use outbox_relay::cli::Cli;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

/// All settings of `run`, from the same list that reads them.
fn configuration() -> String {
    let mut table = String::from(
        "# Settings\n\n\
         Made from the program: `UPDATE_DOCUMENTS=1 cargo test --test main documents` writes it anew.\n\n\
         Flags win over the environment, the environment over the file (`--config FILE` or `OUTBOX_RELAY_CONFIG`), the file over the\n\
         defaults. The key in the file is the flag with underscores. Unknown keys are errors, and all is checked before anything is\n\
         touched. `[kafka_properties]` and `[columns]` are tables of the file; the README has an example. `--log-format` is no key of it.\n\n\
         | flag | environment | |\n|---|---|---|\n",
    );
    let cli = Cli::command();
    let run = cli.find_subcommand("run").unwrap();
    let all = run.get_arguments().chain(cli.get_arguments());
    let settings = all.filter(|it| it.get_env().is_some());
    for setting in settings {
        let (flag, env) = (setting.get_long().unwrap(), setting.get_env().unwrap());
        let help = setting.get_help().unwrap().to_string().replace('|', "\\|");
        let values: Vec<String> = (setting.get_possible_values().iter())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        let values = match values.join(", ").as_str() {
            "" | "`true`, `false`" => String::new(),
            values => format!(": {values}"),
        };
        writeln!(
            table,
            "| `--{flag}` | `{}` | {help}{values} |",
            env.to_string_lossy()
        )
        .unwrap();
    }
    table
}

#[test]
fn the_list_of_settings_is_that_of_the_program() {
    let made = configuration();
    if std::env::var_os("UPDATE_DOCUMENTS").is_some() {
        std::fs::write(path("docs/configuration.md"), &made).unwrap();
    }
    assert!(
        text("docs/configuration.md") == made,
        "docs/configuration.md is not what the program has; UPDATE_DOCUMENTS=1 writes it anew"
    );
}

#[test]
fn each_setting_is_in_the_readme() {
    let readme = text("README.md");
    let cli = Cli::command();
    let run = cli.find_subcommand("run").unwrap();
    let flags = run.get_arguments().filter(|it| it.get_env().is_some());
    let missing: Vec<_> = flags
        .filter_map(|it| it.get_long())
        .filter(|flag| {
            !readme.contains(&format!("`--{flag}")) && !readme.contains(&format!("--{flag} "))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn each_alert_and_each_exit_code_is_in_the_runbook() {
    let runbook = text("docs/operations.md");
    let alerts = text("deploy/prometheus-alerts.yaml");
    let alerts: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 5);
    for alert in alerts {
        assert!(runbook.contains(&format!("\n### {alert}\n")), "{alert}");
    }
    let help = Cli::command().get_after_help().unwrap().to_string();
    let codes = help.lines().filter_map(|line| line.trim().split_once("  "));
    let codes: Vec<&str> = codes.map(|(code, _)| code).collect();
    assert_eq!(codes, ["0", "1", "2", "3", "4", "5"]);
    for code in codes {
        assert!(runbook.contains(&format!("\n| {code} | ")), "{code}");
    }
}
